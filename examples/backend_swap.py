"""
Comparing a training run across backends
========================================

Trains the same model on each installed backend, and compares the losses.

An experiment is a function without arguments. It returns a compiled model and a dict of
arguments for fit(), which contains only NumPy arrays and plain values::

    def experiment():
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        model.compile("adam", SmoothL1Loss(beta=1 / 9))
        return model, {"x": x, "y": y, "batch_size": 32, "epochs": 5}

To run it::

    python examples/backend_swap.py --experiment my_file.py:experiment

The script calls this function once and saves the model as a .keras file. Then a
separate process for each backend loads the file and trains on the same data in the same
order, without shuffling. Each backend uses its default for jit_compile.

The losses differ if Keras draws random numbers during training, as in Dropout, because
these differ between backends. They also differ if the training is unstable, because
instability amplifies rounding errors.

The exit status is 0 if the losses of all epochs agree. It is 1 if they do not, if a
backend failed, or if fewer than two backends ran.
"""

import argparse
import functools
import importlib
import itertools
import multiprocessing
import os
import pathlib
import pickle
import signal
import statistics
import sys
import tempfile
import time

import command_line
import compare_weights
import display
import numpy as np
from rich.text import Text

BACKENDS = ("jax", "tensorflow", "torch")
FLOOR = 2.0**-25  # smaller relative differences do not show in float32
FLIGHTS = pathlib.Path(__file__).with_name("flight_delays.py")


def parse_arguments():
    parser = command_line.make_parser(__doc__)
    parser.add_argument(
        "--experiment",
        type=file_and_function,
        default=(FLIGHTS, "experiment"),
        metavar="FILE.py:FUNCTION",
        help="experiment to train (default: the one in flight_delays.py)",
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        default=BACKENDS,
        help="backends to train on (default: all that are installed)",
    )
    parser.add_argument(
        "--epochs",
        type=command_line.positive,
        help="number of epochs (default: that of the experiment)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="largest relative difference between losses of an epoch (default: 1e-3)",
    )
    parser.add_argument("--json", type=pathlib.Path, help="JSON file for the results")
    return parser.parse_args()


def file_and_function(text):
    file, _, function = text.rpartition(":")
    if not file or not function.isidentifier():
        raise argparse.ArgumentTypeError(f"must be FILE.py:FUNCTION, not {text}")
    if not pathlib.Path(file).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {file}")
    return pathlib.Path(file), function


def main():
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    installed, missing = [], []
    for backend in dict.fromkeys(arguments.backends):
        hint = command_line.installation_hint(backend)
        (missing if hint else installed).append(backend)
        if hint:
            say(f"Skipped: {hint}")
    results, failed = run(installed, arguments)
    for error in dict.fromkeys(failed.values()):
        names = [backend for backend in failed if failed[backend] == error]
        logs = ", ".join(str(log_of(backend, arguments)) for backend in names)
        say(f"{', '.join(names)} failed: {error}\nDetails in {logs}", style="red")
    if results:
        show(results)
        figure = draw(results, arguments.tolerance)
        display.save_figure(figure, arguments.out / "swap.png")
    if arguments.json:
        record = {"failed": failed, "not installed": missing, **numbers(results)}
        display.save_json(record, arguments.json)
    sys.exit(verdict(results, failed, arguments.tolerance))


def log_of(backend, arguments):
    return arguments.out / f"{backend}.log"


def say(text, style=""):
    # Keras's messages contain terminal control codes.
    display.console.print(Text.from_ansi(text, style=style), soft_wrap=True)


# Processes. They run one at a time, so that they do not slow each other down.


class BackendError(Exception):
    """A process failed, for the reason in the message."""


def run(backends, arguments):
    """Returns results of the backends that finished, and errors of the others."""
    results, failed = {}, {}
    with tempfile.TemporaryDirectory() as folder, display.progress_bars() as bars:
        tasks = {
            name: bars.add_task(name, start=False, total=None, status="waiting")
            for name in backends
        }
        files = arguments.out / "start.keras", pathlib.Path(folder) / "data"
        for backend in backends:
            log_of(backend, arguments).write_text("")

        def attempt(backend, action, *more):
            """Returns the result of an action, or None if it failed."""
            target = action, *arguments.experiment, *files, *more
            show = functools.partial(bars.update, tasks[backend])
            try:
                log = log_of(backend, arguments)
                return outcome(backend, log, show, *target)
            except BackendError as error:
                failed[backend] = str(error)
                show(status="failed")

        # JAX comes first, because its file suits the other backends best: TensorFlow
        # saves jit_compile=False even if JAX would compile the model, and torch saves
        # most optimizers as classes that only torch can use.
        for backend in sorted(backends, key=BACKENDS.index):
            bars.update(tasks[backend], status="building the model")
            if attempt(backend, make):
                break
        for backend in backends:
            if backend not in failed:
                bars.start_task(tasks[backend])
                result = attempt(backend, train, arguments.epochs)
                if result:
                    results[backend] = result
    return results, failed


def outcome(backend, log, show, *target):
    """Runs a function on a backend in a separate process, and returns its result."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=begin, args=(backend, log, sender, *target))
    process.start()
    sender.close()
    try:
        while True:
            message = receiver.recv()
            if "error" in message:
                raise BackendError(message["error"])
            if "result" in message:
                return message["result"]
            show(**message)
    except EOFError:
        process.join()
        code = process.exitcode
        if code >= 0:
            end = f"ended with exit status {code}"
        else:
            end = f"was killed by {signal.Signals(-code).name}"
        raise BackendError(f"its process {end}") from None
    finally:
        process.join(timeout=10)
        process.kill()


def begin(backend, log, sender, action, *arguments):
    """Sets the backend and the log file of a new process, and runs the action."""
    with log.open("a") as file:
        for stream in (1, 2):  # includes the output of C++ code
            os.dup2(file.fileno(), stream)
    os.environ.update(KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="2")
    try:
        action(sender.send, *arguments)
    except (Exception, SystemExit) as error:
        sender.send({"error": f"{type(error).__name__}: {error}"})
        raise


def make(send, file, function, model_file, data_file):
    """Calls the experiment, and saves its model and its data."""
    import keras

    keras.utils.set_random_seed(0)
    model, data = call(file, function)
    model.optimizer.build(model.trainable_variables)
    model.save(model_file)
    for name, value in data.items():
        convert = functools.partial(portable, name)
        data[name] = keras.tree.map_structure(convert, value)
    data_file.write_bytes(pickle.dumps(data))
    send({"result": True})


def load(file):
    """Returns the experiment's module. Its import registers custom classes."""
    file = file.resolve()
    sys.path.insert(0, str(file.parent))
    found = importlib.import_module(file.stem)
    if found.__file__ != str(file):
        raise ImportError(
            f"{file} has the same name as the module {found.__file__}: rename it."
        )
    return found


def call(file, function):
    import keras

    module = load(file)
    if not hasattr(module, function):
        raise AttributeError(f"{file} has no function {function}.")
    match getattr(module, function)():
        case (keras.Model() as model, dict() as data):
            pass
        case returned:
            raise TypeError(
                f"{function} must return a model and a dict of arguments for fit(). "
                f"Received: {returned!r:.200}"
            )
    for name in ("callbacks", "shuffle", "verbose"):
        if name in data:
            raise ValueError(
                f"{name} is set by this script, to the same value on all backends: "
                f"remove it from the dict that {function} returns. "
                f"Received: {name}={data[name]!r:.100}"
            )
    if not (model.built and model.compiled):
        raise ValueError(
            f"The model that {function} returns must be compiled and built: add a "
            "keras.Input, so that all backends start from the same weights."
        )
    return model, data


def portable(name, value):
    """Converts a value in an argument of fit() for the other processes."""
    import keras

    if keras.ops.is_tensor(value):
        return keras.ops.convert_to_numpy(value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | np.ndarray):
        return value
    raise TypeError(
        f"{name} must contain only arrays and plain values, because it is passed to "
        f"other processes. Received: {type(value).__name__}"
    )


def train(send, file, function, model_file, data_file, epochs):
    """Trains the saved model, and sends its progress and then its result."""
    load(file)
    import keras

    import keras_smoothl1  # noqa: F401  registers the loss

    # Loading Lambda layers is unsafe, but this file comes from the experiment itself.
    model = keras.models.load_model(model_file, safe_mode=False)
    # JAX saves its default as jit_compile=True, with which torch would compile for half
    # a minute. None selects the default of each backend.
    if model.jit_compile:
        model.jit_compile = None
    data = pickle.loads(data_file.read_bytes())
    if epochs:
        data["epochs"] = epochs
    keras.utils.set_random_seed(0)
    ends, pauses = [], []

    def after_step(step, logs):
        """With steps_per_execution, Keras calls this only after several steps."""
        status = f"loss {float(logs['loss']):.4g}"
        last = ends[-1][0] if ends else -1
        ends.append((step, time.perf_counter()))
        send({"advance": step - last, "status": status})

    def after_epoch(epoch, logs):
        for (step, start), (later, end) in itertools.pairwise(ends):
            pauses.append((end - start) / (later - step))
        ends.clear()

    report = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: send(
            {"total": report.params["epochs"] * report.params["steps"]}
        ),
        on_train_batch_end=after_step,
        on_epoch_end=after_epoch,
    )
    data |= {"shuffle": False, "verbose": 0, "callbacks": [report]}
    history = {
        name: np.asarray(values).tolist()
        for name, values in model.fit(**data).history.items()
    }
    result = {
        "history": history,
        "ms per step": 1000 * statistics.median(pauses) if pauses else None,
        "versions": {
            name: importlib.import_module(name).__version__
            for name in ("keras", keras.backend.backend())
        },
        "weights": model.get_weights(),
    }
    send({"result": result})


# Comparison of the results.


def relative(values):
    """Returns the relative difference of losses; infinity if one is not finite."""
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        return float("inf")
    return float(np.ptp(values) / max(np.abs(values).max(), np.finfo(float).tiny))


def curves(results):
    """Yields, for each loss, its name and its values by epoch on each backend."""
    first = next(iter(results.values()))["history"]
    for name in first:
        if name.endswith("loss"):
            yield name, [result["history"][name] for result in results.values()]


def largest_loss_difference(results):
    """Returns the largest relative difference of the losses of an epoch."""
    return max(
        relative(epoch)
        for _, lists in curves(results)
        for epoch in zip(*lists, strict=True)
    )


def distance(results, first, second):
    """Returns the largest difference between the final weights of two backends."""
    weights = (results[backend]["weights"] for backend in (first, second))
    return compare_weights.largest_difference(*weights)


def numbers(results):
    record = {
        backend: {key: result[key] for key in result if key != "weights"}
        for backend, result in results.items()
    }
    return {
        "results": record,
        "largest relative loss difference": (
            largest_loss_difference(results) if results else None
        ),
        "largest weight difference": {
            f"{a}, {b}": distance(results, a, b)
            for a, b in itertools.combinations(results, 2)
        },
    }


def show(results):
    for name, lists in curves(results):
        rows = []
        for epoch, losses in enumerate(zip(*lists, strict=True), 1):
            apart = [f"{relative(losses):.1e}"] if len(losses) > 1 else []
            rows.append((str(epoch), *(f"{loss:.7g}" for loss in losses), *apart))
        columns = ["epoch", *results, "difference"][: len(rows[0])]
        display.print_table(f"{name} of each epoch", columns, rows)
    rows = []
    for backend, result in results.items():
        pace = result["ms per step"]
        others = [
            f"{distance(results, backend, other):.1e}" if other != backend else ""
            for other in results
        ]
        rows.append((backend, f"{pace:.2f}" if pace else "-", *others))
    title = "Time per step, and largest difference between the final weights"
    display.print_table(title, ("", "ms per step", *results), rows)
    versions = {key: v for r in results.values() for key, v in r["versions"].items()}
    say(", ".join(" ".join(version) for version in versions.items()))


def draw(results, tolerance):
    import matplotlib.pyplot as plt

    found = list(curves(results))
    figure, axes = plt.subplots(
        nrows=2,
        ncols=len(found),
        figsize=(7 * len(found), 6.5),
        height_ratios=(3, 2),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for (name, lists), (above, below) in zip(found, axes.T, strict=True):
        epochs = range(1, len(lists[0]) + 1)
        for number, (backend, losses) in enumerate(zip(results, lists, strict=True)):
            style = {"color": f"C{number}", "label": backend}
            width, mark = 7 - 2.5 * number, ["o-", "o-", "o:"][number]
            above.plot(epochs, losses, mark, lw=width, ms=width + 3, **style)
            pairs = zip(lists[0], losses, strict=True)
            apart = [max(relative(pair), FLOOR) for pair in pairs]
            if number:
                below.plot(epochs, apart, ["", "s-", "o:"][number], **style)
        above.set(ylabel=name, title=f"{name} on each backend")
        below.axhline(tolerance, color="grey", linestyle="--", label="tolerance")
        below.axhline(FLOOR, color="grey", lw=0.8, label="resolution of float32")
        below.set(
            xlabel="epoch", ylabel=f"relative difference from {next(iter(results))}"
        )
        below.set_yscale("log")
        below.xaxis.get_major_locator().set_params(integer=True)
        above.legend(frameon=False)
        below.legend(frameon=False, fontsize="small")
    return figure


def verdict(results, failed, tolerance):
    """Prints whether the backends agree, and returns the exit status."""
    if len(results) < 2:
        say("Fewer than two backends finished: nothing was compared.", style="red")
        return 1
    apart = largest_loss_difference(results)
    pairs = itertools.combinations(results, 2)
    furthest = np.max([distance(results, *pair) for pair in pairs])
    agree = apart <= tolerance
    say(
        f"The losses {'agree' if agree else 'differ'}: the largest relative difference "
        f"is {apart:.1e} (tolerance {tolerance:g}). "
        f"The final weights differ by at most {furthest:.1e}.",
        style="green" if agree else "red",
    )
    if not agree:
        say("Random layers and unstable training are possible causes; see --help.")
    return int(not agree or bool(failed))


if __name__ == "__main__":
    main()

"""
One experiment on several backends
==================================

Trains the same on each installed backend, and shows whether they agree.

An experiment is a function without arguments that returns a compiled model and what
its fit() takes, which are NumPy arrays and numbers::

    def experiment():
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        model.compile("adam", SmoothL1Loss(beta=1 / 9))
        return model, {"x": x, "y": y, "batch_size": 32, "epochs": 5}

To run it::

    python examples/backend_swap.py --experiment my_file.py:experiment

It is called once, and the model saved as a .keras file. Each backend, in a process of
its own, loads that file and trains on the same data in the same order, unshuffled, and
compiles as that backend does by default.

Curves part where Keras draws random numbers in training, for example in Dropout, since
these differ between backends, and where a training is unstable, since it enlarges the
last digits, which differ too.

The exit status is 0 if the losses of all epochs agree, and 1 if they do not, if a
backend failed, or if fewer than two ran.
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
FLOOR = 2.0**-25  # where float32 rounds, relatively: less cannot be seen
FLIGHTS = pathlib.Path(__file__).with_name("flight_delays.py")


def parse_arguments():
    parser = command_line.make_parser(__doc__)
    parser.add_argument(
        "--experiment",
        type=file_and_function,
        default=(FLIGHTS, "experiment"),
        metavar="FILE.py:FUNCTION",
        help="what to train (the flights of flight_delays.py)",
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        default=BACKENDS,
        help="where to train it (all that are installed)",
    )
    parser.add_argument(
        "--epochs",
        type=command_line.positive,
        help="epochs, if not the experiment's own",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="how far apart the losses of an epoch may lie, relatively (1e-3)",
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
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
            say(f"{backend} is left out. {hint}")
    results, failed = run(installed, arguments)
    for error in dict.fromkeys(failed.values()):
        names = [backend for backend in failed if failed[backend] == error]
        logs = ", ".join(str(log_of(backend, arguments)) for backend in names)
        say(f"{', '.join(names)} failed: {error}\nMore in {logs}", style="red")
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
    # Messages of Keras hold control codes for a terminal.
    display.console.print(Text.from_ansi(text, style=style), soft_wrap=True)


# The processes, one after the other, so that none disturbs another's time.


class BackendError(Exception):
    """Says how a process failed."""


def run(backends, arguments):
    """Results of the backends that finished, and errors of those that did not."""
    results, failed = {}, {}
    with tempfile.TemporaryDirectory() as folder, display.progress_bars() as bars:
        tasks = {
            name: bars.add_task(name, start=False, total=None, status="waits")
            for name in backends
        }
        files = arguments.out / "start.keras", pathlib.Path(folder) / "data"
        for backend in backends:
            log_of(backend, arguments).write_text("")

        def attempt(backend, action, *more):
            """The result of an action, or None if it failed."""
            target = action, *arguments.experiment, *files, *more
            show = functools.partial(bars.update, tasks[backend])
            try:
                log = log_of(backend, arguments)
                return outcome(backend, log, show, *target)
            except BackendError as error:
                failed[backend] = str(error)
                show(status="failed")

        # JAX first, since what it saves says most: TensorFlow saves that it does not
        # compile even where JAX would, and torch saves most optimizers for itself.
        for backend in sorted(backends, key=BACKENDS.index):
            bars.update(tasks[backend], status="makes the model")
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
    """Runs a function on a backend, in a process of its own, and returns its result."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=begin, args=(backend, log, sender, *target))
    process.start()
    sender.close()
    try:
        while True:
            news = receiver.recv()
            if "error" in news:
                raise BackendError(news["error"])
            if "result" in news:
                return news["result"]
            show(**news)
    except EOFError:
        process.join()
        code = process.exitcode
        end = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
        raise BackendError(f"its process ended by {end}") from None
    finally:
        process.join(timeout=10)
        process.kill()


def begin(backend, log, sender, action, *arguments):
    """The start of a process: its backend, its output, and where it sends results."""
    with log.open("a") as file:
        for stream in (1, 2):  # what C++ writes too
            os.dup2(file.fileno(), stream)
    os.environ.update(KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="2")
    try:
        action(sender.send, *arguments)
    except (Exception, SystemExit) as error:
        sender.send({"error": f"{type(error).__name__}: {error}"})
        raise


def make(send, file, function, model_file, data_file):
    """Calls the experiment, and saves what it returns."""
    import keras

    keras.utils.set_random_seed(0)
    model, data = call(file, function)
    model.optimizer.build(model.trainable_variables)
    model.save(model_file)
    for name, value in data.items():
        carry = functools.partial(carried, name)
        data[name] = keras.tree.map_structure(carry, value)
    data_file.write_bytes(pickle.dumps(data))
    send({"result": True})


def load(file):
    """The experiment's module, whose import registers what the model needs."""
    file = file.resolve()
    sys.path.insert(0, str(file.parent))
    found = importlib.import_module(file.stem)
    if found.__file__ != str(file):
        raise ImportError(
            f"{file} has the name of another module, {found.__file__}: rename it."
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
                f"{function} must return a model and a dict of what its fit() takes. "
                f"Received: {returned!r:.200}"
            )
    for name in ("callbacks", "shuffle", "verbose"):
        if name in data:
            raise ValueError(
                f"{name} is decided here, the same for all backends: leave it out of "
                f"what {function} returns. Received: {name}={data[name]!r:.100}"
            )
    if not (model.built and model.compiled):
        raise ValueError(
            f"The model that {function} returns must be compiled, and built: give it "
            "an Input, so that all backends start from the same weights."
        )
    return model, data


def carried(name, value):
    """A value in an argument of fit(), as other processes can take it."""
    import keras

    if keras.ops.is_tensor(value):
        return keras.ops.convert_to_numpy(value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | np.ndarray):
        return value
    raise TypeError(
        f"{name} must be arrays or plain values, since it is carried to other "
        f"backends. Received: {type(value).__name__}"
    )


def train(send, file, function, model_file, data_file, epochs):
    """Trains from the saved start; sends its progress and then its result."""
    load(file)
    import keras

    import keras_smoothl1  # noqa: F401  registers the loss

    # Lambda layers are not safe to load; but this is what the experiment made.
    model = keras.models.load_model(model_file, safe_mode=False)
    # JAX saves that it compiles, which it does unless told otherwise. Each backend
    # shall do as it does by itself; torch would take half a minute.
    if model.jit_compile:
        model.jit_compile = None
    data = pickle.loads(data_file.read_bytes())
    if epochs:
        data["epochs"] = epochs
    keras.utils.set_random_seed(0)
    ends, pauses = [], []

    def after_step(step, logs):
        """Steps come in twos and more where the model has steps_per_execution."""
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


# What the results are worth.


def relative(values):
    """How far losses lie apart; NaN and infinity agree with nothing."""
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        return float("inf")
    return float(np.ptp(values) / max(np.abs(values).max(), np.finfo(float).tiny))


def curves(results):
    """Each loss that was recorded, as (name, one list of epochs per backend)."""
    first = next(iter(results.values()))["history"]
    for name in first:
        if name.endswith("loss"):
            yield name, [result["history"][name] for result in results.values()]


def parted(results):
    """How far the losses of any epoch lie apart, at most."""
    return max(
        relative(epoch)
        for _, lists in curves(results)
        for epoch in zip(*lists, strict=True)
    )


def distance(results, first, second):
    """The largest difference of a weight at the end."""
    weights = (results[backend]["weights"] for backend in (first, second))
    return compare_weights.largest_difference(*weights)


def numbers(results):
    record = {
        backend: {key: result[key] for key in result if key != "weights"}
        for backend, result in results.items()
    }
    return {
        "results": record,
        "losses part by": parted(results) if results else None,
        "final weights part by": {
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
    title = "Time, and the largest difference between final weights"
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
        below.axhline(FLOOR, color="grey", lw=0.8, label="no difference in float32")
        below.set(
            xlabel="epoch", ylabel=f"relative difference from {next(iter(results))}"
        )
        below.set_yscale("log")
        below.xaxis.get_major_locator().set_params(integer=True)
        above.legend(frameon=False)
        below.legend(frameon=False, fontsize="small")
    return figure


def verdict(results, failed, tolerance):
    """The exit status, after saying why."""
    if len(results) < 2:
        say("Fewer than two backends finished: nothing was compared.", style="red")
        return 1
    apart = parted(results)
    pairs = itertools.combinations(results, 2)
    furthest = np.max([distance(results, *pair) for pair in pairs])
    agree = apart <= tolerance
    say(
        f"The losses {'agree' if agree else 'part'}: they differ by at most "
        f"{apart:.1e} of their size (tolerance {tolerance:g}). "
        f"Final weights differ by at most {furthest:.1e}.",
        style="green" if agree else "red",
    )
    if not agree:
        say("Random layers and unstable training do that; see --help.")
    return int(not agree or bool(failed))


if __name__ == "__main__":
    main()

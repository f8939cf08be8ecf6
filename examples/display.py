"""Output of the examples: progress bars, tables, figures and JSON files."""

import contextlib
import json

import numpy as np
from matplotlib.patches import Rectangle
from rich import box as borders
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

console = Console()


@contextlib.contextmanager
def progress_bars():
    """Yields a `rich.progress.Progress`, which shows a bar for each task added to it.

    The elapsed time and the field `status` of the task are shown next to its bar.
    """
    columns = ["{task.description:26}", BarColumn(20), MofNCompleteColumn(), "steps"]
    columns += [TimeElapsedColumn(), "{task.fields[status]}"]
    with Progress(*columns, console=console) as bars:
        yield bars


def fit(name, model, *args, callbacks=(), **kwargs):
    """Calls `model.fit`, with a progress bar called `name` for its steps and its loss.

    Returns the `History` that `model.fit` returns.
    """
    # Some examples choose the backend after they import this module.
    import keras

    with progress_bars() as bars:
        task = bars.add_task(name, total=None, status="compiling")
        callback = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: bars.update(
                task, total=callback.params["epochs"] * callback.params["steps"]
            ),
            on_train_batch_end=lambda batch, logs: bars.update(
                task, advance=1, status=f"loss {float(logs['loss']):.4g}"
            ),
        )
        return model.fit(*args, verbose=0, callbacks=[callback, *callbacks], **kwargs)


def print_table(title, columns, rows):
    """Prints rows of strings, with the first column left-aligned."""
    table = Table(title=title, box=borders.SIMPLE_HEAD, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def draw_box(axis, box, **style):
    """Draws a bounding box, [left, top, right, bottom] in pixels, on an image."""
    # In Matplotlib, integer coordinates are the centers of pixels, not their edges.
    left, top, right, bottom = box - 0.5
    style |= {"fill": False, "linewidth": 2}
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, **style))


def save_figure(figure, path):
    """Saves a figure, and prints its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print("Figure:", path)


def save_json(record, path):
    """Saves a record as JSON. NaN and infinity, which JSON lacks, become null."""

    def finite(value):
        if isinstance(value, dict):
            return {key: finite(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(finite(record), indent=1))

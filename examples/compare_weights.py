"""Compares the final weights of two training runs.

`largest_difference` compares any two lists of weights. The rest is for the distributed
examples, which train a small model for five steps, on many devices and on one.
"""

import itertools
import sys

import display
import numpy as np

STEPS, GLOBAL_BATCH, TOLERANCE = 5, 32, 1e-5
REDUCTIONS = ("mean", "sum", "mean_with_sample_weight")


def largest_difference(first, second):
    """Returns the largest absolute difference between two lists of weights."""
    pairs = zip(first, second, strict=True)
    # Unlike Python's max, NumPy's returns NaN if any of the differences is NaN.
    return float(np.max([np.abs(a - b).max(initial=0) for a, b in pairs]))


def make_data():
    """Returns inputs, targets with outliers, and sample weights for all steps."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * GLOBAL_BATCH, 8))
    y = np.sin(x[:, :4]) + rng.standard_cauchy((len(x), 4))
    weights = rng.uniform(0, 2, len(x))
    return x.astype("float32"), y.astype("float32"), weights.astype("float32")


def make_model():
    """Returns a model for these data, with the same initial weights at each call."""
    # Not at the top: backend_swap.py imports this module in a process without Keras.
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.Dense(4),
        ]
    )


def learning_rate(reduction):
    """Returns an SGD rate that gives steps of similar size for each reduction."""
    return 1 / (4 * GLOBAL_BATCH) if reduction == "sum" else 1.0


def compare_devices(engine, devices, train, path, *, first=True):
    """Compares training on many devices with training on one, for each reduction.

    Prints a table, saves its numbers, and exits with a message if weights differ by
    `TOLERANCE` or more. All processes must call this function, because `train` runs on
    all of them.

    Args:
        engine: The name of the framework, for the title of the table.
        devices: The number of devices.
        train: A function `train(x, y, weights, reduction, many)` that trains the model
            on many devices, or on one, and returns its weights.
        path: The JSON file to save.
        first: Whether this is the first process. Only the first prints and saves.
    """
    x, y, weights = make_data()
    initial, results = make_model().get_weights(), []
    for reduction, weighted in itertools.product(REDUCTIONS, (False, True)):
        data = x, y, weights if weighted else None
        on_many, on_one = (train(*data, reduction, many) for many in (True, False))
        results.append(
            {
                "reduction": reduction,
                "weights": "(B,)" if weighted else "none",
                "devices": devices,
                "moved": largest_difference(initial, on_one),
                "apart": largest_difference(on_many, on_one),
            }
        )
    if not first:
        return
    rows = [
        (r["reduction"], r["weights"], f"{r['moved']:.2f}", f"{r['apart']:.1e}")
        for r in results
    ]
    columns = ("reduction", "sample weights", "largest change", "difference")
    title = f"{engine}: {devices} devices compared with one"
    display.print_table(title, columns, rows)
    display.save_json(results, path)
    print("Numbers:", path)
    # Written with `all` and `<`, so that NaN is an error too.
    if not all(result["apart"] < TOLERANCE for result in results):
        sys.exit(f"The weights differ by {TOLERANCE} or more.")

"""Trains, saves and loads a model with the installed package: smoke.py BACKEND."""

import os
import pathlib
import statistics
import subprocess
import sys

os.environ["KERAS_BACKEND"] = sys.argv[1]

import keras
import numpy as np

import keras_smoothl1

IMPORT = """
import time, keras
start = time.perf_counter()
import keras_smoothl1
print(1000 * (time.perf_counter() - start))
"""
MAX_IMPORT_MS = 50


def train_save_and_load():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    loss = keras_smoothl1.SmoothL1Loss(beta=[1 / 9, 1.0])
    error = keras_smoothl1.SmoothL1Error(beta=0.5)
    model.compile(keras.optimizers.SGD(0.5), loss, weighted_metrics=[error])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 3), "float32")
    y = x @ np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "float32")
    losses = model.fit(x, y, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2, losses
    model.save("model.keras")
    loaded = keras.models.load_model("model.keras")
    assert loaded.loss.get_config() == loss.get_config()
    np.testing.assert_array_equal(
        loaded.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0)
    )
    print(f"trained from {losses[0]:.3f} to {losses[-1]:.3f}, saved and loaded")


def time_import():
    runs = [
        float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(7)
    ]
    added = statistics.median(runs)
    print(f"import keras_smoothl1 adds {added:.1f} ms to import keras")
    assert added < MAX_IMPORT_MS, runs


if __name__ == "__main__":
    here = pathlib.Path(keras_smoothl1.__file__)
    assert here.is_relative_to(sys.prefix), f"{here} is not what was installed"
    train_save_and_load()
    time_import()

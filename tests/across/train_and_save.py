"""Trains and saves a model on the backend of this process, or loads saved models.

    python train_and_save.py save FOLDER
    python train_and_save.py check FOLDER [FOLDER ...]

It prints one line of JSON: the results of each folder.
"""

import json
import pathlib
import sys

import keras
import numpy as np

from keras_smoothl1 import SmoothL1Error, SmoothL1Loss

LOSS = SmoothL1Loss([0.1, 0.5, 2.0], reduce_dims=-1, dtype="float32", name="targets")


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype("float32")
    y = x @ rng.normal(size=(4, 3)) + rng.standard_cauchy(size=(64, 3))
    weight = rng.uniform(size=64)
    y[0], weight[0] = np.nan, 0
    return x, y.astype("float32"), weight.astype("float32")


def state(optimizer):
    """The iterations, the learning rate, and two moments of each weight."""
    return [keras.ops.convert_to_numpy(x).tolist() for x in optimizer.variables]


def continue_training(model):
    """The state of the model and its optimizer, and the losses of three more epochs."""
    x, y, weight = data()
    now = {
        "config": model.loss.get_config(),
        "optimizer": state(model.optimizer),
        "evaluation": model.evaluate(x, y, sample_weight=weight, verbose=0),
    }
    history = model.fit(
        x, y, sample_weight=weight, epochs=3, batch_size=16, shuffle=False, verbose=0
    )
    return now | {"training": history.history["loss"]}


def save(folder):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01), LOSS, weighted_metrics=[SmoothL1Error(0.5)]
    )
    x, y, weight = data()
    model.fit(x, y, sample_weight=weight, batch_size=16, shuffle=False, verbose=0)
    model.save(folder / "model.keras")
    return continue_training(model)


def check(folder):
    path = folder / "model.keras"
    try:
        keras.models.load_model(path)
        error = ""
    except TypeError as e:
        error = str(e)
    # On torch, Keras 3.15 saves Adam under the name of a private class, which needs
    # torch. The public class loads on each backend.
    model = keras.models.load_model(
        path, custom_objects={"Adam": keras.optimizers.Adam}
    )
    return {"error without custom_objects": error, **continue_training(model)}


if __name__ == "__main__":
    action, *folders = sys.argv[1:]
    run = {"save": save, "check": check}[action]
    results = [run(pathlib.Path(folder)) for folder in folders]
    print(json.dumps({"backend": keras.backend.backend(), "results": results}))

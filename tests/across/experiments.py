"""Experiments for backend_swap.py: one that agrees on all backends, and faulty ones."""

import os
import signal

import keras
import numpy as np

from keras_smoothl1 import SmoothL1Loss


def small(*layers):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype("float32")
    y = (x @ rng.normal(size=(4, 2))).astype("float32")
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.01), SmoothL1Loss(beta=1 / 9))
    data = {"x": x, "y": y, "sample_weight": np.arange(64.0), "batch_size": 16}
    return model, data | {"epochs": 3, "validation_data": (x[:16], y[:16])}


def random():
    return small(keras.layers.Dropout(0.5))


@keras.saving.register_keras_serializable()
class NoTrainingOnTensorFlow(keras.layers.Layer):
    def call(self, x, training=False):
        if training and keras.backend.backend() == "tensorflow":
            raise RuntimeError("This layer does not train on TensorFlow.")
        return x


def not_on_tensorflow():
    return small(NoTrainingOnTensorFlow())


@keras.saving.register_keras_serializable()
class KillsProcessInTraining(keras.layers.Layer):
    def call(self, x, training=False):
        if training:
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def killed():
    return small(KillsProcessInTraining())


def not_built():
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    return model, {"x": np.zeros((4, 4)), "y": np.zeros((4, 2))}


def shuffled():
    model, data = small()
    return model, data | {"shuffle": True}


def swapped():
    return small()[::-1]

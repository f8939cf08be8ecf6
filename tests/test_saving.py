"""Saving and loading preserve settings, state and results."""

import copy
import json
import pickle

import cloudpickle
import keras
import numpy as np
import pytest
from helpers.autodiff import to_numpy

import keras_smoothl1
from keras_smoothl1 import SmoothL1Error, SmoothL1Loss, smooth_l1_loss

RNG = np.random.default_rng(3)
Y_TRUE = RNG.normal(size=(4, 3)).astype("float32")
Y_PRED = RNG.normal(size=(4, 3)).astype("float32")

LOSSES = [
    {},
    {"beta": 1 / 9, "reduction": "sum", "name": "box_loss"},
    {"beta": (0.1, 0.2, 0.3), "reduction": None, "reduce_dims": -1, "keepdims": False},
    {"reduction": "none", "reduce_dims": (1,), "dtype": "float16"},
    {"reduction": "auto", "reduce_dims": [], "dtype": "bfloat16"},
    {"beta": np.array([1.0, 2.0, 3.0]), "reduce_dims": np.array([0, 1])},
    {"beta": np.float32(0.1), "dtype": keras.DTypePolicy("mixed_float16")},
]
METRICS = [{}, {"beta": [0.1, 0.2, 0.3], "name": "error", "dtype": "float16"}]
OBJECTS = [(SmoothL1Loss, settings) for settings in LOSSES] + [
    (SmoothL1Error, settings) for settings in METRICS
]


def through_json(x):
    config = json.loads(json.dumps(x.get_config(), allow_nan=False))
    assert config == x.get_config()
    return type(x).from_config(config)


def through_keras_module(x):
    module = keras.losses if isinstance(x, SmoothL1Loss) else keras.metrics
    return module.deserialize(json.loads(json.dumps(module.serialize(x))))


ROUND_TRIPS = {
    "from_config": lambda x: type(x).from_config(x.get_config()),
    "json": through_json,
    "keras.losses or keras.metrics": through_keras_module,
    "keras.saving": lambda x: keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(x)
    ),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "cloudpickle": lambda x: pickle.loads(cloudpickle.dumps(x)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
@pytest.mark.parametrize(("cls", "settings"), OBJECTS)
def test_round_trip(cls, settings, round_trip):
    original = cls(**settings)
    restored = ROUND_TRIPS[round_trip](original)
    assert type(restored) is cls
    assert restored.get_config() == original.get_config()
    assert repr(restored) == repr(original)
    np.testing.assert_array_equal(
        to_numpy(restored(Y_TRUE, Y_PRED)), to_numpy(original(Y_TRUE, Y_PRED))
    )


def test_the_config_of_the_loss_contains_every_setting():
    assert SmoothL1Loss(
        (0.1, 2), "sum", (0, -1), False, "n", "float16"
    ).get_config() == {
        "beta": [0.1, 2.0],
        "reduction": "sum",
        "reduce_dims": [0, -1],
        "keepdims": False,
        "name": "n",
        "dtype": "float16",
    }


@pytest.mark.parametrize("copier", ["pickle", "cloudpickle", "copy", "deepcopy"])
def test_a_copied_metric_keeps_its_state(copier):
    metric = SmoothL1Error(0.5)
    metric.update_state(Y_TRUE, Y_PRED)
    restored = ROUND_TRIPS[copier](metric)
    assert to_numpy(restored.result()) == to_numpy(metric.result()) != 0
    restored.update_state(Y_TRUE, Y_PRED * 3)
    assert to_numpy(restored.result()) != to_numpy(metric.result())


@pytest.mark.parametrize("name", ["SmoothL1Loss", "SmoothL1Error", "smooth_l1_loss"])
def test_registered_names(name):
    registered = keras.saving.get_registered_object(f"keras_smoothl1>{name}")
    assert registered is getattr(keras_smoothl1, name)


def test_repr_shows_the_settings():
    assert repr(SmoothL1Loss(0.5, reduce_dims=(1, 2))) == (
        "SmoothL1Loss(beta=0.5, reduction='sum_over_batch_size', reduce_dims=[1, 2], "
        "keepdims=True, name='smooth_l1_loss', dtype='float32')"
    )
    assert repr(SmoothL1Error(0.5)) == (
        "SmoothL1Error(beta=0.5, name='smooth_l1_error', dtype='float32')"
    )


@pytest.mark.parametrize(
    "loss", [SmoothL1Loss((0.1, 0.2, 0.3), reduce_dims=-1), smooth_l1_loss]
)
def test_a_compiled_model_is_restored_with_its_loss(loss, tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile("sgd", loss, metrics=[SmoothL1Error(0.5), smooth_l1_loss])
    x = RNG.normal(size=(4, 2)).astype("float32")
    model.fit(x, Y_TRUE, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    if loss is smooth_l1_loss:
        assert restored.loss is loss
    else:
        assert restored.loss.get_config() == loss.get_config()
    np.testing.assert_array_equal(
        restored.evaluate(x, Y_TRUE, verbose=0), model.evaluate(x, Y_TRUE, verbose=0)
    )
    np.testing.assert_allclose(
        restored.fit(x, Y_TRUE, verbose=0).history["loss"],
        model.fit(x, Y_TRUE, verbose=0).history["loss"],
        rtol=1e-6,
    )

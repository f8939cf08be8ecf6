"""What an untrusted model can do through this package: see SECURITY.md."""

import json
import re
import sys
import zipfile

import keras
import pytest

from keras_smoothl1 import SmoothL1Error, SmoothL1Loss

# Values in a config from which Keras would make a function, a lambda or a layer.
FUNCTION = {"module": "os", "class_name": "function", "config": "system"}
LAMBDA = {"class_name": "__lambda__", "config": {"code": "4wAAAAA=", "defaults": None}}
LAYER = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 1}}
OBJECTS = pytest.mark.parametrize("payload", [FUNCTION, LAMBDA, LAYER, [FUNCTION]])
WATCHED = ("compile", "ctypes", "exec", "import", "marshal", "open", "os", "pickle")
WATCHED += ("shutil", "socket", "subprocess", "urllib")

collected = None  # the audit events, while they are collected


def collect(event, arguments):
    if collected is not None and event.split(".")[0] in WATCHED:
        collected.append((event, arguments))


sys.addaudithook(collect)  # an audit hook cannot be removed


def events_of(action):
    global collected
    collected = []
    try:
        action()
    finally:
        events, collected = collected, None
    return events


def make(cls, config, safe_mode=True):
    """Makes an object from a config, as loading a model does."""
    return keras.saving.deserialize_keras_object(
        {
            "module": cls.__module__,
            "class_name": cls.__name__,
            "config": config,
            "registered_name": f"keras_smoothl1>{cls.__name__}",
        },
        safe_mode=safe_mode,
    )


SETTINGS = [
    (cls, setting)
    for cls in (SmoothL1Loss, SmoothL1Error)
    for setting in cls().get_config()
]


@pytest.mark.parametrize("safe_mode", [True, False])
@pytest.mark.parametrize(("cls", "setting"), SETTINGS)
@OBJECTS
def test_no_setting_is_deserialized_to_an_object(cls, setting, payload, safe_mode):
    def load():
        # The value from the config: it was rejected before anything was made from it.
        received = re.escape(f"{setting}={payload!r}")
        with pytest.raises((TypeError, ValueError), match=received):
            make(cls, {**cls().get_config(), setting: payload}, safe_mode)

    assert events_of(load) == []


@OBJECTS
def test_an_unknown_setting_is_rejected(payload):
    def load():
        with pytest.raises(TypeError, match="activation"):
            make(SmoothL1Loss, {**SmoothL1Loss().get_config(), "activation": payload})

    assert events_of(load) == []


@pytest.mark.parametrize("cls", [SmoothL1Loss, SmoothL1Error])
def test_from_config_runs_no_code_opens_no_file_and_imports_nothing(cls):
    config = cls(beta=[0.1, 0.2]).get_config()
    make(cls, config)  # the first call may import modules, for any config
    assert events_of(lambda: make(cls, config)) == []
    assert events_of(lambda: open(__file__).close())  # the audit hook works


def test_a_tampered_file_is_rejected(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", SmoothL1Loss(beta=0.123))
    model.save(tmp_path / "good.keras")
    with (
        zipfile.ZipFile(tmp_path / "good.keras") as good,
        zipfile.ZipFile(tmp_path / "bad.keras", "w") as bad,
    ):
        for name in good.namelist():
            text = good.read(name)
            if name == "config.json":
                assert text.count(b"0.123") == 1
                text = text.replace(b"0.123", json.dumps(FUNCTION).encode())
            bad.writestr(name, text)
    with pytest.raises(TypeError, match="beta must be a positive number"):
        keras.models.load_model(tmp_path / "bad.keras")


def test_lambda_layers_are_rejected_with_the_package_imported(tmp_path):
    layers = [keras.Input((2,)), keras.layers.Lambda(lambda x: x, output_shape=(2,))]
    keras.Sequential(layers).save(tmp_path / "lambda.keras")
    with pytest.raises(ValueError, match="arbitrary code"):
        keras.models.load_model(tmp_path / "lambda.keras")


def test_a_config_can_use_three_registered_names_of_the_package():
    registered = keras.saving.get_custom_objects()
    ours = {name for name in registered if "smooth" in name.lower()}
    assert ours == {
        f"keras_smoothl1>{name}"
        for name in ("SmoothL1Loss", "SmoothL1Error", "smooth_l1_loss")
    }


@pytest.mark.parametrize(
    ("module", "name"),
    [("keras_smoothl1.__main__", "main"), ("keras_smoothl1.self_check", "check")],
)
def test_a_config_can_use_no_other_function_of_the_package(module, name):
    config = {"module": module, "class_name": "function", "config": name}
    with pytest.raises((TypeError, ValueError), match=name):
        keras.saving.deserialize_keras_object({**config, "registered_name": name})

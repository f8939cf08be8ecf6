"""Keras's own tests, as they lie in the installed wheel, of this package's loss.

Only how the loss is made and called is adapted. A test that never runs a method of the
loss says nothing about it, and is shown as skipped.
"""

import importlib

import adapters
import keras
import pytest
from keras.src.testing import TestCase

FILES = {
    "losses_test": "keras.src.losses",
    "loss_test": "keras.src.losses",
    "compile_utils_test": "keras.src.trainers",
    "trainer_test": "keras.src.trainers",
    "saving_lib_test": "keras.src.saving",
    "regression_metrics_test": "keras.src.metrics",
}
# Of the files that test other losses and metrics, too.
CLASSES = {
    "losses_test": {"MeanSquaredErrorTest", "MeanAbsoluteErrorTest", "HuberLossTest"},
    "regression_metrics_test": {"MeanSquaredErrorTest", "MeanAbsoluteErrorTest"},
}


def import_files():
    # The loss is there before, since a file derives a class from what it tests.
    with pytest.MonkeyPatch.context() as patch:
        adapters.replace_in_keras(patch)
        return {
            file: importlib.import_module(f"{package}.{file}")
            for file, package in FILES.items()
        }


def chosen_classes():
    """Their classes, by names that pytest shows, such as loss_test_LossTest."""
    for file, module in MODULES.items():
        for name, value in vars(module).items():
            chosen = name in CLASSES.get(file, {name})
            if chosen and isinstance(value, type) and issubclass(value, TestCase):
                yield f"{file}_{name}", value


MODULES = import_files()
globals().update(chosen_classes())
# As saving_lib_test.py does with the loss that it defines.
keras.saving.register_keras_serializable("my_custom_package")(
    adapters.my_mean_squared_error
)


@pytest.fixture(autouse=True)
def _our_loss(monkeypatch):
    adapters.replace_in_keras(monkeypatch)
    # Losses that the files define themselves.
    monkeypatch.setattr(MODULES["loss_test"], "ExampleLoss", adapters.SquaredError)
    monkeypatch.setattr(
        MODULES["saving_lib_test"],
        "my_mean_squared_error",
        adapters.my_mean_squared_error,
    )


# On each backend: a file that no longer reaches the loss would only be skipped. Keras
# itself skips what it tests of steps_per_execution on torch.
LEAST = {
    "losses_test_MeanSquaredErrorTest": 12,
    "losses_test_MeanAbsoluteErrorTest": 11,
    "losses_test_HuberLossTest": 9,
    "loss_test_LossTest": 11,
    "compile_utils_test_TestCompileMetrics": 10,
    "compile_utils_test_TestCompileLoss": 16,
    "trainer_test_TestTrainer": 79,
    "saving_lib_test_SavingTest": 10,
    "regression_metrics_test_MeanSquaredErrorTest": 2,
    "regression_metrics_test_MeanAbsoluteErrorTest": 2,
}


def test_so_many_tests_of_keras_ran_the_loss(ran):
    tests = {name: ran[name]["tests"] for name in LEAST}
    assert all(tests[name] >= least for name, least in LEAST.items()), tests
    replaced = {ours.__name__ for ours in adapters.REPLACED.values()}
    assert replaced <= {call.partition(".")[0] for call in adapters.calls}

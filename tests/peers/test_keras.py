"""Keras's own tests, from the installed wheel, run with this package's loss.

Only the construction and the calls of the loss are adapted. A test that never runs the
loss proves nothing about it, and is reported as skipped.
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
# The classes to run from files that also test other losses and metrics.
CLASSES = {
    "losses_test": {"MeanSquaredErrorTest", "MeanAbsoluteErrorTest", "HuberLossTest"},
    "regression_metrics_test": {"MeanSquaredErrorTest", "MeanAbsoluteErrorTest"},
}


def import_files():
    # The loss is replaced before the import, since a file subclasses what it tests.
    with pytest.MonkeyPatch.context() as patch:
        adapters.replace_in_keras(patch)
        return {
            file: importlib.import_module(f"{package}.{file}")
            for file, package in FILES.items()
        }


def selected_classes():
    """Yields the test classes and their names in pytest, such as loss_test_LossTest."""
    for file, module in MODULES.items():
        for name, value in vars(module).items():
            selected = name in CLASSES.get(file, {name})
            if selected and isinstance(value, type) and issubclass(value, TestCase):
                yield f"{file}_{name}", value


MODULES = import_files()
globals().update(selected_classes())
# saving_lib_test.py does the same with the loss that it defines.
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


# The minimum on every backend. Without it, a file that no longer runs the loss would be
# skipped silently. Keras itself skips its tests of steps_per_execution on torch.
MIN_TESTS = {
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


def test_enough_tests_of_keras_ran_the_loss(loss_runs):
    tests = {name: loss_runs[name]["tests"] for name in MIN_TESTS}
    assert all(tests[name] >= minimum for name, minimum in MIN_TESTS.items()), tests
    replaced = {ours.__name__ for ours in adapters.REPLACED.values()}
    assert replaced <= {call.partition(".")[0] for call in adapters.calls}

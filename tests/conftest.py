"""The same tests run on each backend; KERAS_BACKEND chooses it."""

import keras
import pytest


@pytest.fixture(autouse=True)
def _fixed_seed():
    keras.utils.set_random_seed(0)


def pytest_configure():
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Two replicas need two devices, which must be asked for before any is used.
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )

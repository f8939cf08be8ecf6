"""The same tests run on every backend. KERAS_BACKEND selects it."""

import os
import pathlib
import re
import runpy
import sys

import keras
import pytest
from hypothesis import HealthCheck, settings

# It requires torch and Triton. test_triton.py imports it if both are installed.
collect_ignore = ["helpers/machine_code.py"]

settings.register_profile(
    "default",
    max_examples=60,
    deadline=None,  # the first example of each shape compiles
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("fuzz", settings.get_profile("default"), max_examples=600)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _fixed_seed():
    keras.utils.set_random_seed(0)


def pytest_configure():
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_num_cpu_devices", 4)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Two replicas need two devices. They must be configured before any is used.
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )


@pytest.fixture
def examples():
    return pathlib.Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(examples, monkeypatch, tmp_path, capfd):
    """A function that runs an example, checks its figure and returns its output."""
    import matplotlib.pyplot as plt

    def run(name, *options):
        command = [f"{name}.py", "--out", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(examples / f"{name}.py"), run_name="__main__")
        plt.close("all")
        output = capfd.readouterr().out
        figure = re.search(r"Figure: (.+\.png)", output.replace("\n", " "))
        assert pathlib.Path(figure[1]).stat().st_size > 10_000
        return output

    return run

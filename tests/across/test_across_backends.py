"""A model trained and saved on one backend goes on training on each other one.

Needs all three backends in one environment: `tox run -e cross`.
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("train_and_save.py")
BACKENDS = ("jax", "tensorflow", "torch")


def run(backend, action, folder):
    process = subprocess.run(
        [sys.executable, SCRIPT, action, folder],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert result.pop("backend") == backend
    return result


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    models = {}
    for backend in BACKENDS:
        folder = tmp_path_factory.mktemp(backend)
        models[backend] = folder, run(backend, "save", folder)
    return models


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.product(BACKENDS, repeat=2))
)
def test_a_model_saved_on_the_first_goes_on_training_on_the_second(
    saved, first, second
):
    folder, expected = saved[first]
    result = run(second, "check", folder)
    assert result["config"] == expected["config"]
    assert np.isfinite(expected["evaluation"]).all()
    np.testing.assert_allclose(result["evaluation"], expected["evaluation"], rtol=1e-5)
    np.testing.assert_allclose(result["training"], expected["training"], rtol=1e-5)

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


def run(backend, action, *folders):
    """The results of train_and_save.py on a backend, one for each folder."""
    process = subprocess.run(
        [sys.executable, SCRIPT, action, *folders],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    printed = json.loads(process.stdout.splitlines()[-1])
    assert printed["backend"] == backend
    return printed["results"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {backend: tmp_path_factory.mktemp(backend) for backend in BACKENDS}


@pytest.fixture(scope="module")
def saved(folders):
    """What training on gives on the backend that a model was saved on."""
    return {backend: run(backend, "save", folders[backend])[0] for backend in BACKENDS}


@pytest.fixture(scope="module")
def loaded(folders, saved):
    """What training on gives on the second backend, by the first and the second."""
    return {
        (first, second): result
        for second in BACKENDS
        for first, result in zip(
            BACKENDS, run(second, "check", *folders.values()), strict=True
        )
    }


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.product(BACKENDS, repeat=2))
)
def test_a_model_saved_on_the_first_goes_on_training_on_the_second(
    saved, loaded, first, second
):
    result, expected = loaded[first, second], saved[first]
    assert result["config"] == expected["config"]
    assert np.isfinite(expected["evaluation"]).all()
    np.testing.assert_allclose(result["evaluation"], expected["evaluation"], rtol=1e-5)
    np.testing.assert_allclose(result["training"], expected["training"], rtol=1e-5)

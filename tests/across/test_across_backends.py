"""A model that was saved on one backend continues training on the others.

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
PAIRS = list(itertools.product(BACKENDS, repeat=2))


def run(backend, action, *folders, first_on_path=None):
    """The results of train_and_save.py on a backend, one for each folder."""
    path = [first_on_path, os.environ.get("PYTHONPATH")]
    process = subprocess.run(
        [sys.executable, SCRIPT, action, *folders],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": os.pathsep.join(str(folder) for folder in path if folder),
        },
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
def hiding(tmp_path_factory):
    """For each backend, a folder of modules that hide the two other backends."""
    folders = {backend: tmp_path_factory.mktemp("hiding") for backend in BACKENDS}
    for backend, folder in folders.items():
        for name in set(BACKENDS) - {backend}:
            error = f"ModuleNotFoundError('{name} is hidden', name='{name}')"
            (folder / f"{name}.py").write_text(f"raise {error}\n")
    return folders


@pytest.fixture(scope="module")
def saved(folders):
    """The results of continued training on the backend that saved the model."""
    return {backend: run(backend, "save", folders[backend])[0] for backend in BACKENDS}


@pytest.fixture(scope="module")
def loaded(folders, saved, hiding):
    """The results of continued training on the second backend, for each pair.

    Only the second backend can be imported there.
    """
    return {
        (first, second): result
        for second in BACKENDS
        for first, result in zip(
            BACKENDS,
            run(second, "check", *folders.values(), first_on_path=hiding[second]),
            strict=True,
        )
    }


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_training_continues_on_the_second_backend(saved, loaded, first, second):
    result, expected = loaded[first, second], saved[first]
    assert result["config"] == expected["config"]
    assert np.isfinite(expected["evaluation"]).all()
    np.testing.assert_allclose(result["evaluation"], expected["evaluation"], rtol=1e-6)
    np.testing.assert_allclose(result["training"], expected["training"], rtol=5e-7)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_adam_keeps_its_state_if_the_first_backend_is_not_installed(
    saved, loaded, first, second
):
    iterations, learning_rate, *moments = loaded[first, second]["optimizer"]
    assert iterations == 4
    assert learning_rate == np.float32(0.01)
    assert len(moments) == 8
    assert all(np.any(moment) for moment in moments)
    assert [iterations, learning_rate, *moments] == saved[first]["optimizer"]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_custom_objects_are_needed_only_for_adam_saved_by_a_missing_torch(
    loaded, first, second
):
    error = loaded[first, second]["error without custom_objects"]
    if first == "torch" != second:
        assert "module keras.src.backend.torch.optimizers.torch_adam cannot" in error
    else:
        assert not error

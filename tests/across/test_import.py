"""Importing the package imports no backend other than that of Keras.

Needs all three backends in one environment: `tox run -e cross`.
"""

import json
import os
import subprocess
import sys

import pytest

BACKENDS = ("jax", "tensorflow", "torch")
SCRIPT = """
import json, sys
import keras
before = set(sys.modules)
import keras_smoothl1
print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_importing_the_package_imports_no_other_backend(backend):
    output = subprocess.check_output(
        [sys.executable, "-c", SCRIPT], env={**os.environ, "KERAS_BACKEND": backend}
    )
    before, added = json.loads(output.splitlines()[-1])
    assert backend in before
    assert f"keras_smoothl1.backends.{backend}" in added
    others = [name for name in BACKENDS if name != backend]
    assert not [name for name in added if name.split(".")[0] in others]
    assert not [name for name in added if name.split(".")[-1] in others]

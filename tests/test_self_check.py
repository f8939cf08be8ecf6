"""`python -m keras_smoothl1` reports what is installed, and whether it is accurate."""

import csv
import importlib.machinery
import importlib.util
import io
import pathlib
import shutil
import subprocess
import sys
from fractions import Fraction

import keras
import numpy as np
import pytest
import store_exact
from helpers.autodiff import BACKEND

import keras_smoothl1
from keras_smoothl1 import __main__ as command
from keras_smoothl1 import self_check

PACKAGE = pathlib.Path(keras_smoothl1.__file__).parent
# The number of checks on each backend: execution modes times dtypes.
CHECKS = {"jax": 2 * 2, "tensorflow": 3 * 2, "torch": 1 * 2}
INSTALLED = [name for name in CHECKS if importlib.util.find_spec(name)]


@pytest.fixture
def run_command(monkeypatch):
    """A function that runs the command as if no other backend were installed.

    It checks the package in a folder, and returns the exit status and the output.
    """

    def run(folder, encoding="utf-8"):
        output = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "argv", ["keras_smoothl1"])
        monkeypatch.setattr(command, "_is_installed", lambda name: name == BACKEND)
        monkeypatch.chdir(folder)
        status = command.main()
        output.seek(0)
        return status, output.read()

    return run


@pytest.fixture
def copy_folder(tmp_path):
    """A folder with a copy of the package that a test can break."""
    shutil.copytree(PACKAGE, tmp_path / "keras_smoothl1")
    return tmp_path


def step_in(dtype):
    """A step for self_check that computes a loss of 1.5 and a slope of 1."""
    results = keras.ops.full((1,), 1.5, dtype), keras.ops.ones((1,), dtype)
    return lambda loss, error: results


def table(output):
    """The rows of the table by backend, without the header and the line below it."""
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in output.splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == list(command.HEADERS)
    return {name: [row for row in rows[2:] if row[0] == name] for name in CHECKS}


def test_installed_backends_pass_and_the_exit_status_is_0():
    process = subprocess.run(
        [sys.executable, "-m", "keras_smoothl1"],
        cwd=PACKAGE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    output = process.stdout
    assert process.returncode == 0, output
    rows = table(output)
    for backend, number in CHECKS.items():
        assert len(rows[backend]) == (number if backend in INSTALLED else 0)
    for _, version, device, _, _, value, slope, result in rows[BACKEND]:
        assert version == importlib.import_module(BACKEND).__version__
        assert device
        assert 0.4 < float(slope) <= 0.5 < float(value) <= 1.5
        assert result == "ok"
    assert output.endswith(f"`import keras` selects the backend {BACKEND}.\n")
    for version in (keras.__version__, np.__version__, keras_smoothl1.__version__):
        assert f" {version}" in output
    for name in set(CHECKS) - set(INSTALLED):
        assert name in output.split("Not installed: ")[1]


def test_an_unimportable_keras_is_reported_and_the_exit_status_is_0(
    run_command, monkeypatch
):
    monkeypatch.setenv("KERAS_BACKEND", "nowhere")
    status, output = run_command(PACKAGE.parent)
    assert status == 0, output
    assert "`import keras` fails here, with KERAS_BACKEND=nowhere: " in output
    assert output.endswith("Set KERAS_BACKEND to a backend that is installed.\n")


def test_a_difference_is_reported_and_the_exit_status_is_1(run_command, copy_folder):
    file = copy_folder / "keras_smoothl1" / "exact_results.csv"
    right, wrong = "float32,1.0,-2.5,2.0,-1.0", "float32,1.0,-2.5,2.0000005,-1.0"
    text = file.read_text()
    assert right in text
    file.write_text(text.replace(right, wrong))
    status, output = run_command(copy_folder)
    assert status == 1
    assert "beta 1.0: the value is 2.0, expected 2.0000005" in output
    results = {(row[4], row[-1]) for row in table(output)[BACKEND]}
    assert results == {("float32", "differs"), ("float64", "ok")}


def test_a_failing_backend_is_reported_and_the_exit_status_is_1(
    run_command, copy_folder
):
    broken = "raise RuntimeError('a broken [backend] \N{BLACK STAR}')"
    (copy_folder / f"{BACKEND}.py").write_text(broken, encoding="utf-8")
    status, output = run_command(copy_folder, encoding="cp1252")
    assert status == 1
    assert table(output)[BACKEND] == [[BACKEND, *[""] * 6, "failed"]]
    assert f"{BACKEND}: RuntimeError: a broken [backend] \\u2605" in output


def test_without_a_backend_the_exit_status_is_1(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["keras_smoothl1"])
    empty_folder = importlib.machinery.ModuleSpec("jax", None, is_package=True)
    specs = {"jax": empty_folder}
    monkeypatch.setattr(importlib.util, "find_spec", specs.get)
    assert command.main() == 1
    output = capsys.readouterr().out
    assert "|" not in output
    assert "Not installed: jax, tensorflow, torch." in output
    assert "No backend is installed" in output


def test_another_module_run_by_python_m_can_import_from_the_package(copy_folder):
    (copy_folder / "mine").mkdir()
    (copy_folder / "mine/__init__.py").write_text(
        "from keras_smoothl1 import SmoothL1Loss"
    )
    (copy_folder / "mine/__main__.py").write_text(
        "import mine; print(mine.SmoothL1Loss())"
    )
    command = [sys.executable, "-m", "mine", "--package", "keras_smoothl1"]
    output = subprocess.check_output(command, cwd=copy_folder, encoding="utf-8")
    assert output.startswith("SmoothL1Loss(beta=1.0")


def test_an_equal_result_in_another_dtype_differs():
    row = {"dtype": "float32", "beta": "1.0", "error": "2.0"}
    row |= {"value": "1.5", "slope": "1.0"}
    assert not self_check.compare("eager", step_in("float32"), "float32", [row])[
        "differences"
    ]
    result = self_check.compare("eager", step_in("float16"), "float32", [row])
    assert [x["of"] for x in result["differences"]] == ["value", "slope"]


def test_missing_stored_results_raise_an_error():
    with pytest.raises(ValueError, match="no results in float32"):
        self_check.check([])


def equal_to_24_digits(stored, exact):
    # The rounding of the 25th digit depends on the version of mpmath.
    if stored == exact:
        return True
    difference = abs(Fraction(stored) - Fraction(exact))
    return difference <= Fraction(1, 10**24) * abs(Fraction(exact))


def test_the_stored_results_are_exact():
    computed = csv.DictReader(store_exact.table().splitlines())
    for stored, exact in zip(self_check.exact_results(), computed, strict=True):
        assert stored.keys() == exact.keys()
        for name in stored:
            assert equal_to_24_digits(stored[name], exact[name])
    assert len(self_check.exact_results()) > 100


@pytest.mark.parametrize(
    ("result", "exact", "distance"),
    [
        (1.0, "1.0", 0),
        (1.0000001, "1.0", 1),
        (1.0, "1.00000005960464477539", 0.5),
        (np.nan, "nan", 0),
        (0.0, "nan", np.inf),
        (np.nan, "0.0", np.inf),
        (-np.inf, "inf", np.inf),
        (np.inf, "inf", 0),
    ],
)
def test_distances_are_in_units_in_the_last_place(result, exact, distance):
    actual = self_check.distance(np.float32(result), exact)
    assert actual == pytest.approx(distance, rel=1e-6)


@pytest.mark.parametrize(
    ("device", "dtypes"),
    [("cpu", ["float32", "float64"]), ("mps:0", ["float32"])],
)
def test_the_checked_dtypes_are_those_of_the_device(device, dtypes):
    assert self_check.dtypes_of(device) == dtypes

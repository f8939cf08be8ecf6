"""`python -m keras_smoothl1` says what is installed, and whether it is exact."""

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
# Run, dtype: what is checked on each backend.
CHECKS = {"jax": 2 * 2, "tensorflow": 3 * 2, "torch": 1 * 2}
INSTALLED = [name for name in CHECKS if importlib.util.find_spec(name)]


@pytest.fixture
def check_here(monkeypatch):
    """Runs the command as if no other backend were installed, from a folder.

    It checks the package in that folder. Returns exit status and output.
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
def copy(tmp_path):
    """The package in a folder of its own, to be spoiled."""
    shutil.copytree(PACKAGE, tmp_path / "keras_smoothl1")
    return tmp_path


def computed_in(dtype):
    """A step as self_check has them, which finds a loss of 1.5 and a slope of 1."""
    results = keras.ops.full((1,), 1.5, dtype), keras.ops.ones((1,), dtype)
    return lambda loss, error: results


def table(printed):
    """The rows of the table, by backend, without the header and the rule below it."""
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in printed.splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == list(command.HEADERS)
    return {name: [row for row in rows[2:] if row[0] == name] for name in CHECKS}


def test_each_installed_backend_is_exact_and_the_exit_status_is_0():
    process = subprocess.run(
        [sys.executable, "-m", "keras_smoothl1"],
        cwd=PACKAGE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    printed = process.stdout
    assert process.returncode == 0, printed
    rows = table(printed)
    for backend, number in CHECKS.items():
        assert len(rows[backend]) == (number if backend in INSTALLED else 0)
    for _, version, device, _, _, value, slope, result in rows[BACKEND]:
        assert version == importlib.import_module(BACKEND).__version__
        assert device
        assert 0.4 < float(slope) <= 0.5 < float(value) <= 1.5
        assert result == "ok"
    assert printed.endswith(f"Here `import keras` takes {BACKEND}.\n")
    for version in (keras.__version__, np.__version__, keras_smoothl1.__version__):
        assert f" {version}" in printed
    for name in set(CHECKS) - set(INSTALLED):
        assert name in printed.split("Not installed: ")[1]


def test_keras_need_not_be_importable_with_the_backend_it_looks_for(
    check_here, monkeypatch
):
    monkeypatch.setenv("KERAS_BACKEND", "nowhere")
    status, printed = check_here(PACKAGE.parent)
    assert status == 0, printed
    assert "But here `import keras` fails, with KERAS_BACKEND nowhere: " in printed
    assert printed.endswith("Set KERAS_BACKEND to a backend that is ok.\n")


def test_a_difference_is_reported_and_the_exit_status_is_1(check_here, copy):
    file = copy / "keras_smoothl1" / "exact_results.csv"
    right, wrong = "float32,1.0,-2.5,2.0,-1.0", "float32,1.0,-2.5,2.0000005,-1.0"
    text = file.read_text()
    assert right in text
    file.write_text(text.replace(right, wrong))
    status, printed = check_here(copy)
    assert status == 1
    assert "error -2.5, beta 1.0: value 2.0, not 2.0000005" in printed
    results = {(row[4], row[-1]) for row in table(printed)[BACKEND]}
    assert results == {("float32", "differs"), ("float64", "ok")}


def test_a_backend_that_fails_is_reported_and_the_exit_status_is_1(check_here, copy):
    broken = "raise RuntimeError('a broken [backend] \N{BLACK STAR}')"
    (copy / f"{BACKEND}.py").write_text(broken, encoding="utf-8")
    status, printed = check_here(copy, encoding="cp1252")
    assert status == 1
    assert table(printed)[BACKEND] == [[BACKEND, *[""] * 6, "failed"]]
    assert f"{BACKEND}: RuntimeError: a broken [backend] \\u2605" in printed


def test_without_a_backend_the_exit_status_is_1(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["keras_smoothl1"])
    empty_folder = importlib.machinery.ModuleSpec("jax", None, is_package=True)
    found = {"jax": empty_folder}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    assert command.main() == 1
    printed = capsys.readouterr().out
    assert "|" not in printed
    assert "Not installed: jax, tensorflow, torch." in printed
    assert "no backend to check" in printed


def test_a_module_of_the_users_that_imports_the_package_gets_its_names(copy):
    (copy / "mine").mkdir()
    (copy / "mine/__init__.py").write_text("from keras_smoothl1 import SmoothL1Loss")
    (copy / "mine/__main__.py").write_text("import mine; print(mine.SmoothL1Loss())")
    command = [sys.executable, "-m", "mine", "--package", "keras_smoothl1"]
    printed = subprocess.check_output(command, cwd=copy, encoding="utf-8")
    assert printed.startswith("SmoothL1Loss(beta=1.0")


def test_a_result_in_another_dtype_differs_however_close_it_is():
    row = {"dtype": "float32", "beta": "1.0", "error": "2.0"}
    row |= {"value": "1.5", "slope": "1.0"}
    assert not self_check.compare("eager", computed_in("float32"), "float32", [row])[
        "differences"
    ]
    found = self_check.compare("eager", computed_in("float16"), "float32", [row])
    assert [x["of"] for x in found["differences"]] == ["value", "slope"]


def test_without_stored_results_nothing_is_exact():
    with pytest.raises(ValueError, match="no results in float32"):
        self_check.check([])


def equal_to_24_digits(stored, exact):
    # How the 25th is rounded depends on the version of mpmath.
    if stored == exact:
        return True
    difference = abs(Fraction(stored) - Fraction(exact))
    return difference <= Fraction(1, 10**24) * abs(Fraction(exact))


def test_the_stored_results_are_exact():
    made = csv.DictReader(store_exact.table().splitlines())
    for stored, exact in zip(self_check.exact_results(), made, strict=True):
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
def test_a_distance_is_in_units_in_the_last_place(result, exact, distance):
    found = self_check.distance(np.float32(result), exact)
    assert found == pytest.approx(distance, rel=1e-6)


@pytest.mark.parametrize(
    ("device", "dtypes"),
    [("cpu", ["float32", "float64"]), ("mps:0", ["float32"])],
)
def test_the_dtypes_checked_are_those_that_the_device_has(device, dtypes):
    assert self_check.dtypes_of(device) == dtypes

"""backend_swap.py says whether backends agree, and goes on where one fails.

Needs all three backends in one environment: `tox run -e cross`.
"""

import importlib.util
import json
import pathlib
import sys

import backend_swap
import compare_weights
import numpy as np
import pytest

EXPERIMENTS = pathlib.Path(__file__).with_name("experiments.py")


@pytest.fixture
def swap(monkeypatch, tmp_path, capsys):
    def run(function, *options):
        record = tmp_path / "numbers" / "swap.json"
        where = f"--experiment {EXPERIMENTS}:{function} --out {tmp_path}".split()
        command = ["backend_swap.py", *where, "--json", str(record), *options]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            backend_swap.main()
        return ended.value.code, json.loads(record.read_text()), capsys.readouterr().out

    return run


def test_an_experiment_is_the_same_on_three_backends(swap, tmp_path):
    status, record, shown = swap("small", "--tolerance", "1e-5")
    assert status == 0
    assert list(record["results"]) == ["jax", "tensorflow", "torch"]
    assert record["losses part by"] < 1e-5
    assert len(record["final weights part by"]) == 3
    assert max(record["final weights part by"].values()) < 1e-5
    for result in record["results"].values():
        assert len(result["history"]["loss"]) == 3
        assert len(result["history"]["val_loss"]) == 3
        assert result["ms per step"] > 0
    assert "The losses agree" in shown
    assert (tmp_path / "swap.png").stat().st_size > 10_000
    assert (tmp_path / "start.keras").exists()


def test_curves_that_part_are_told_by_the_exit_status(swap):
    status, record, shown = swap("random", "--backends", "torch", "jax")
    assert status == 1
    assert list(record["results"]) == ["torch", "jax"]
    assert record["losses part by"] > 1e-3
    assert "The losses part" in shown


def test_a_backend_that_fails_is_reported_while_the_others_finish(swap):
    status, record, shown = swap(
        "not_on_tensorflow", "--epochs", "1", "--backends", "jax", "tensorflow"
    )
    assert status == 1
    assert list(record["results"]) == ["jax"]
    assert len(record["results"]["jax"]["history"]["loss"]) == 1
    assert "does not train on TensorFlow" in record["failed"]["tensorflow"]
    assert "tensorflow failed: " in shown


def test_a_backend_that_is_not_installed_is_named_and_left_out(swap, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *more: (
            None if name in ("tensorflow", "torch") else find(name, *more)
        ),
    )
    status, record, shown = swap("small")
    assert status == 1
    assert list(record["results"]) == ["jax"]
    assert record["not installed"] == ["tensorflow", "torch"]
    assert "torch is left out" in shown
    assert "pip install torch" in shown
    assert "nothing was compared" in shown


def test_a_process_that_is_killed_is_reported(swap):
    status, record, _ = swap("killed", "--backends", "jax")
    assert status == 1
    assert "ended by SIGKILL" in record["failed"]["jax"]


def test_a_mistake_is_told_once_for_all_backends(swap, tmp_path):
    status, record, shown = swap("not_built", "--backends", "jax", "tensorflow")
    assert status == 1
    assert shown.count("give it an Input") == 1
    assert "jax, tensorflow failed: " in shown
    assert f"{tmp_path}/jax.log" in shown.replace("\n", "")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("shuffled", "shuffle is decided here"),
        ("swapped", "must return a model and a dict"),
        ("nowhere", "has no function nowhere"),
    ],
)
def test_what_is_wrong_with_an_experiment_is_said(function, message):
    with pytest.raises((AttributeError, TypeError, ValueError), match=message):
        backend_swap.call(EXPERIMENTS, function)


def test_what_cannot_be_carried_to_another_backend_is_refused():
    with pytest.raises(TypeError, match="x must be arrays or plain values"):
        backend_swap.carried("x", (batch for batch in [1]))


def test_a_file_with_the_name_of_another_module_is_refused(tmp_path):
    file = tmp_path / "display.py"
    file.write_text("def experiment(): pass")
    with pytest.raises(ImportError, match="rename it"):
        backend_swap.call(file, "experiment")


def test_weights_that_are_nan_are_not_taken_for_equal():
    ones, nan = np.ones(2), np.full(2, np.nan)
    assert np.isnan(compare_weights.largest_difference([ones, nan], [ones, ones]))


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        ("nowhere.py:f", "there is no file nowhere.py"),
        ("f", "must be FILE.py:FUNCTION"),
    ],
)
def test_an_experiment_that_is_nowhere_is_refused(
    monkeypatch, capsys, experiment, message
):
    monkeypatch.setattr(sys, "argv", ["backend_swap.py", "--experiment", experiment])
    with pytest.raises(SystemExit):
        backend_swap.main()
    assert message in capsys.readouterr().err

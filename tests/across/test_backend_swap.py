"""backend_swap.py reports whether backends agree, and continues if one fails.

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
        arguments = f"--experiment {EXPERIMENTS}:{function} --out {tmp_path}".split()
        command = ["backend_swap.py", *arguments, "--json", str(record), *options]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as exit_info:
            backend_swap.main()
        return (
            exit_info.value.code,
            json.loads(record.read_text()),
            capsys.readouterr().out,
        )

    return run


def test_an_experiment_agrees_on_all_backends(swap, tmp_path):
    status, record, output = swap("small", "--tolerance", "1e-5")
    assert status == 0
    assert list(record["results"]) == ["jax", "tensorflow", "torch"]
    assert record["largest relative loss difference"] < 1e-5
    assert len(record["largest weight difference"]) == 3
    assert max(record["largest weight difference"].values()) < 1e-5
    for result in record["results"].values():
        assert len(result["history"]["loss"]) == 3
        assert len(result["history"]["val_loss"]) == 3
        assert result["ms per step"] > 0
    assert "The losses agree" in output
    assert (tmp_path / "swap.png").stat().st_size > 10_000
    assert (tmp_path / "start.keras").exists()


def test_diverging_losses_set_the_exit_status(swap):
    status, record, output = swap("random", "--backends", "torch", "jax")
    assert status == 1
    assert list(record["results"]) == ["torch", "jax"]
    assert record["largest relative loss difference"] > 1e-3
    assert "The losses differ" in output


def test_a_failing_backend_is_reported_and_the_others_finish(swap):
    status, record, output = swap(
        "not_on_tensorflow", "--epochs", "1", "--backends", "jax", "tensorflow"
    )
    assert status == 1
    assert list(record["results"]) == ["jax"]
    assert len(record["results"]["jax"]["history"]["loss"]) == 1
    assert "does not train on TensorFlow" in record["failed"]["tensorflow"]
    assert "tensorflow failed: " in output


def test_missing_backends_are_reported_and_skipped(swap, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *more: (
            None if name in ("tensorflow", "torch") else find(name, *more)
        ),
    )
    status, record, output = swap("small")
    assert status == 1
    assert list(record["results"]) == ["jax"]
    assert record["not installed"] == ["tensorflow", "torch"]
    assert "Skipped: torch is not installed" in output
    assert "pip install torch" in output
    assert "nothing was compared" in output


def test_a_killed_process_is_reported(swap):
    status, record, _ = swap("killed", "--backends", "jax")
    assert status == 1
    assert "was killed by SIGKILL" in record["failed"]["jax"]


def test_an_error_common_to_all_backends_is_printed_once(swap, tmp_path):
    status, record, output = swap("not_built", "--backends", "jax", "tensorflow")
    assert status == 1
    assert output.count("add a keras.Input") == 1
    assert "jax, tensorflow failed: " in output
    assert f"{tmp_path}/jax.log" in output.replace("\n", "")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("shuffled", "shuffle is set by this script"),
        ("swapped", "must return a model and a dict"),
        ("nowhere", "has no function nowhere"),
    ],
)
def test_a_faulty_experiment_raises_an_error(function, message):
    with pytest.raises((AttributeError, TypeError, ValueError), match=message):
        backend_swap.call(EXPERIMENTS, function)


def test_values_that_cannot_be_serialized_are_rejected():
    with pytest.raises(TypeError, match="x must contain only arrays"):
        backend_swap.portable("x", (batch for batch in [1]))


def test_a_file_named_like_another_module_is_rejected(tmp_path):
    file = tmp_path / "display.py"
    file.write_text("def experiment(): pass")
    with pytest.raises(ImportError, match="rename it"):
        backend_swap.call(file, "experiment")


def test_nan_weights_are_not_considered_equal():
    ones, nan = np.ones(2), np.full(2, np.nan)
    assert np.isnan(compare_weights.largest_difference([ones, nan], [ones, ones]))


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        ("nowhere.py:f", "there is no file nowhere.py"),
        ("f", "must be FILE.py:FUNCTION"),
    ],
)
def test_an_invalid_experiment_option_is_rejected(
    monkeypatch, capsys, experiment, message
):
    monkeypatch.setattr(sys, "argv", ["backend_swap.py", "--experiment", experiment])
    with pytest.raises(SystemExit):
        backend_swap.main()
    assert message in capsys.readouterr().err

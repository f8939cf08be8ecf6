"""Each example runs on this backend, and prints results that support its text."""

import json
import os
import re
import subprocess
import sys

import keras
import pytest
from packaging import version

BACKEND = keras.backend.backend()


def numbers(pattern, text):
    """The groups of the first match of a pattern, as numbers."""
    found = re.search(pattern, text)
    assert found, text
    return [float(group) for group in found.groups()]


def test_wrong_targets_bias_the_squared_error_more_than_smooth_l1(example):
    printed = example("five_losses", "--short")
    (squared,) = numbers(r"MSE .*± .* \+(\d\.\d+) *\n", printed)
    (smooth,) = numbers(r"Smooth L1 .*± .* \+(\d\.\d+) *\n", printed)
    assert smooth < squared / 2


def test_boxes_fit_better_after_smooth_l1_than_after_the_squared_error(example):
    printed = example("boxes", "--short")
    (squared,) = numbers(r"squared error +(0\.\d+) ", printed)
    (smooth,) = numbers(r"beta per offset +(0\.\d+) ", printed)
    assert 0 < squared < smooth < 1


def test_scheduled_and_learned_betas_adapt_to_the_errors(example):
    printed = example("changing_beta", "--short")
    (constant,) = numbers(r"constant 1/9 +(0\.\d+) ", printed)
    (dynamic,) = numbers(r"Dynamic R-CNN +(0\.\d+) ", printed)
    smallest, largest = numbers(r"learned +(0\.\d+) to (0\.\d+)", printed)
    assert dynamic < constant == 0.111
    assert smallest < largest


def test_images_finds_most_of_the_mismatched_pairs(example):
    number, detected = numbers(
        r"Of (\d+) mismatched pairs, (\d+)", example("images", "--short")
    )
    assert number == 16
    assert detected > number / 2


def test_missing_targets_are_ignored_and_padding_has_no_effect(example):
    printed = example("missing_targets", "--short")
    assert "Without weights the loss is nan" in printed
    (short,) = numbers(r"\n +20 +(\d+\.\d+)", printed)
    (long,) = numbers(r"\n +40 +(\d+\.\d+)", printed)
    assert short == pytest.approx(long, rel=1e-6)
    evaluated, expected = numbers(r"evaluate\(\): (.+)\nMean .* delays: (.+)", printed)
    assert evaluated == pytest.approx(expected, rel=1e-6)


def test_custom_loops_give_the_weights_of_fit(example):
    printed = example("custom_loops", "--short")
    (difference,) = numbers(
        r"Largest difference between the final weights: (.+)", printed
    )
    assert difference < 1e-6


def test_flight_delays_compares_losses_and_reloads_the_model(example):
    printed = example("flight_delays", "--rows", "4000", "--epochs", "1")
    assert "Smooth L1, beta 50" in printed
    assert "Largest difference of predictions: 0.00e+00" in printed


@pytest.mark.skipif(
    BACKEND == "tensorflow"
    or (BACKEND == "torch" and version.parse(keras.__version__).release < (3, 16)),
    reason="keras.distribution supports JAX, and torch from Keras 3.16 on",
)
def test_keras_distribution_gives_the_weights_of_one_device(examples, tmp_path):
    subprocess.run(
        [sys.executable, "distributed_keras.py", "--out", tmp_path],
        cwd=examples,
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        check=True,
        timeout=300,
    )
    record = tmp_path / f"distributed_keras_{BACKEND}.json"
    results = json.loads(record.read_text())
    assert len(results) == 2 * 5 * 4
    assert {result["strategy"] for result in results} == {
        "DataParallel",
        "ModelParallel",
    }
    assert max(result["apart"] for result in results) < 1e-5


COMMANDS = {
    "jax": [
        ("distributed_jax_1", 8, ["distributed_jax.py"]),
        ("distributed_jax_2", 8, ["distributed_jax.py", "--processes", "2"]),
    ],
    "tensorflow": [("distributed_tensorflow", 2, ["distributed_tensorflow.py"])],
    "torch": [
        (
            "distributed_torch",
            2,
            ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
            + ["distributed_torch.py"],
        )
    ],
}


@pytest.mark.parametrize(("record", "devices", "command"), COMMANDS[BACKEND])
def test_many_devices_give_the_weights_of_one_process(
    examples, tmp_path, record, devices, command
):
    subprocess.run(
        [sys.executable, *command, "--out", tmp_path],
        cwd=examples,
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        check=True,
        timeout=300,
    )
    results = json.loads((tmp_path / f"{record}.json").read_text())
    cases = [(result["reduction"], result["weights"]) for result in results]
    assert cases == [
        (reduction, weights)
        for reduction in ("mean", "sum", "mean_with_sample_weight")
        for weights in ("none", "(B,)")
    ]
    for result in results:
        assert result["devices"] == devices
        assert result["moved"] > 0.1
        assert result["apart"] < 1e-5

"""Each example runs on this backend, says what it shows, and draws a figure."""

import json
import os
import subprocess
import sys

import keras
import pytest

BACKEND = keras.backend.backend()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("boxes", "Smooth L1, one beta each"),
        ("images", "misfiled images"),
        ("missing_targets", "Without weights the loss is nan"),
        ("custom_loops", "Largest difference of a weight at the end: 0.0e+00"),
    ],
)
def test_the_example_says_what_it_shows_and_draws_it(run_example, tmp_path, name, says):
    assert says in run_example(name, "--short")
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_flight_delays_compares_losses_and_reloads_the_model(run_example, tmp_path):
    printed = run_example("flight_delays", "--rows", "4000", "--epochs", "1")
    assert "Smooth L1, beta 50" in printed
    assert "Largest difference of a prediction: 0.00e+00" in printed
    assert (tmp_path / f"errors_{BACKEND}.png").stat().st_size > 10_000


ENGINES = {
    "jax": [
        ("distributed_jax_1", ["distributed_jax.py"]),
        ("distributed_jax_2", ["distributed_jax.py", "--processes", "2"]),
    ],
    "tensorflow": [("distributed_tensorflow", ["distributed_tensorflow.py"])],
    "torch": [
        (
            "distributed_torch",
            ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
            + ["distributed_torch.py"],
        )
    ],
}


@pytest.mark.parametrize(("record", "command"), ENGINES[BACKEND])
def test_five_steps_on_many_devices_are_those_of_one_process(
    examples, tmp_path, record, command
):
    subprocess.run(
        [sys.executable, *command, "--out", tmp_path],
        cwd=examples,
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        check=True,
    )
    results = json.loads((tmp_path / f"{record}.json").read_text())
    cases = [(result["reduction"], result["weights"]) for result in results]
    assert cases == [
        (reduction, weights)
        for reduction in ("mean", "sum", "mean_with_sample_weight")
        for weights in ("none", "(B,)")
    ]
    for result in results:
        assert result["moved"] > 0.1
        assert result["apart"] < 1e-5

"""Values and slopes on Keras's backend, beside stored exact results.

`python -m keras_smoothl1` runs this for each backend, in a process of its own. It
prints one line of JSON.
"""

import csv
import functools
import importlib
import importlib.resources
import itertools
import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import keras
import numpy as np

from keras_smoothl1.losses import smooth_l1_loss

BOUND = 1.5  # units in the last place
Row = dict[str, str]
Tensor = Any  # of the backend that is checked
Step = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]


def exact_results() -> list[Row]:
    """Rows of dtype, beta, error, value and slope, made by tools/store_exact.py.

    Error and beta are given as the dtype holds them, value and slope to 25 digits.
    """
    table = importlib.resources.files("keras_smoothl1") / "exact_results.csv"
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def check(rows: list[Row]) -> dict[str, Any]:
    """What the backend is, and how far its values and slopes are from those in rows."""
    backend = keras.backend.backend()
    version = importlib.import_module(backend).__version__
    device = _device_of(keras.ops.zeros(1))
    checks = [
        compare(run, step, dtype, [row for row in rows if row["dtype"] == dtype])
        for run, step in STEPS[backend]().items()
        for dtype in dtypes_of(device)
    ]
    return {"version": version, "device": device, "checks": checks}


def _device_of(x: Tensor) -> str:
    """A name such as cpu, cpu:0 or cuda:0."""
    device = next(iter(x.devices())).platform if hasattr(x, "devices") else x.device
    return str(device).lower().rpartition("device:")[-1]


def dtypes_of(device: str) -> list[str]:
    """Those with stored results that the device computes in: Apple's has no float64."""
    return ["float32"] if device.startswith("mps") else ["float32", "float64"]


def compare(run: str, step: Step, dtype: str, rows: list[Row]) -> dict[str, Any]:
    if not rows:
        raise ValueError(f"exact_results.csv has no results in {dtype}.")
    worst, differences = {"value": 0.0, "slope": 0.0}, []
    for beta, group in itertools.groupby(rows, lambda row: row["beta"]):
        same_beta = list(group)
        errors = np.array([row["error"] for row in same_beta]).astype(dtype)
        loss = functools.partial(_loss, beta=float(beta))
        value_and_slope = step(loss, keras.ops.convert_to_tensor(errors))
        for name, results in zip(worst, value_and_slope, strict=True):
            for row, result in zip(
                same_beta, keras.ops.convert_to_numpy(results), strict=True
            ):
                off = distance(result, row[name]) if result.dtype == dtype else np.inf
                worst[name] = max(worst[name], off)
                if off > BOUND or (name == "slope" and abs(result) > 1):
                    differences.append({**row, "of": name, "result": str(result)})
    return {"run": run, "dtype": dtype, **worst, "differences": differences}


def _loss(error: Tensor, beta: float) -> Tensor:
    return smooth_l1_loss(keras.ops.zeros_like(error), error, beta)


def distance(result: Any, exact: str) -> float:
    """How many units in the last place, as result's dtype has them at exact."""
    expected = result.dtype.type(exact)
    if not (np.isfinite(expected) and np.isfinite(result)):
        return 0.0 if np.array_equal(result, expected, equal_nan=True) else np.inf
    off = abs(Fraction(float(result)) - Fraction(exact))
    return float(off / Fraction(float(np.spacing(abs(expected)))))


def _jax() -> dict[str, Step]:
    import jax

    def step(loss: Any, error: Tensor) -> tuple[Tensor, Tensor]:
        value, pull_back = jax.vjp(loss, error)
        return value, pull_back(jax.numpy.ones_like(value))[0]

    return {"eager": step, "jit": jax.jit(step, static_argnums=0)}


def _tensorflow() -> dict[str, Step]:
    import tensorflow as tf

    def step(loss: Any, error: Tensor) -> tuple[Tensor, Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(error)
            value = loss(error)
        return value, tape.gradient(value, error)

    return {
        "eager": step,
        "graph": tf.function(step, autograph=False),
        "jit": tf.function(step, autograph=False, jit_compile=True),
    }


def _torch() -> dict[str, Step]:
    def step(loss: Any, error: Tensor) -> tuple[Tensor, Tensor]:
        value = loss(error.requires_grad_())
        value.sum().backward()
        return value.detach(), error.grad

    return {"eager": step}


STEPS = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}

if __name__ == "__main__":
    print(json.dumps(check(exact_results())))

"""The kernel where there is no autodiff: NumPy, and any backend without its own kernel.

It is `reference.value` as it stands, in NumPy's functions on NumPy, to keep float64.
"""

from typing import Any

import keras
import numpy

from keras_smoothl1.kernels import reference
from keras_smoothl1.validation import Tensor

xp: Any = numpy if keras.backend.backend() == "numpy" else keras.ops


def smooth_l1(error: Tensor, beta: Any) -> Tensor:
    beta = keras.ops.convert_to_tensor(beta, dtype=error.dtype)
    return reference.value(error, beta, xp)


def total(x: Tensor, axes: tuple[int, ...] | None) -> Tensor:
    return keras.ops.sum(x, axis=axes, keepdims=axes is not None)


def known_value(x: Tensor) -> float | None:
    return float(x)

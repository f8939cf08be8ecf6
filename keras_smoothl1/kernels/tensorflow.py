"""TensorFlow: `reference`, with the closed-form slope as its derivative, and sums.

Autodiff of the value's spelling is wrong on the threshold and NaN far from it. The
slope is differentiated by a rule of its own, for second derivatives. Both must match
`reference.value`, `reference.slope` and `reference.bend`.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow as xp

from keras_smoothl1.kernels import reference
from keras_smoothl1.kernels.reference import Tensor

__all__ = ["smooth_l1", "total", "xp"]

Rule = Callable[[Tensor], tuple[Tensor, Tensor]]


def smooth_l1(error: Tensor, beta: Any) -> Tensor:
    return _value(error, tf.convert_to_tensor(beta, dtype=error.dtype))


def total(x: Tensor, axes: tuple[int, ...] | None) -> Tensor:
    # In float32, 2^24 times 0.1 comes out 2.4e-6 wrong, 6e-2 over an outer axis, and
    # 1e-1 under jit_compile.
    wide = tf.cast(x, tf.float64)
    return tf.cast(tf.reduce_sum(wide, axes, keepdims=axes is not None), x.dtype)


@tf.custom_gradient
def _value(error: Tensor, beta: Tensor) -> tuple[Tensor, Rule]:
    def rule(upstream: Tensor) -> tuple[Tensor, Tensor]:
        slope = _slope(error, beta)
        return upstream * slope, tf.reduce_sum(upstream * slope * slope * -0.5)

    return reference.value(error, beta, xp), rule


@tf.custom_gradient
def _slope(error: Tensor, beta: Tensor) -> tuple[Tensor, Rule]:
    def rule(upstream: Tensor) -> tuple[Tensor, Tensor]:
        by_error = upstream * reference.bend(error, beta, xp)
        return by_error, tf.reduce_sum(-by_error * _slope(error, beta))

    return reference.slope(error, beta, xp), rule

"""TensorFlow: `reference`, with the closed-form slope as its derivative, and sums.

Autodiff of the value's spelling is wrong on the threshold and NaN far from it. The
slope is differentiated by a rule of its own, for second derivatives. They must match
`reference.value`, `reference.slope` and `reference.bend`.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow as xp

from keras_smoothl1.kernels import reference
from keras_smoothl1.validation import Tensor

__all__ = ["known_value", "smooth_l1", "total", "xp"]

Rule = Callable[[Tensor], Any]


def total(x: Tensor, axes: tuple[int, ...] | None) -> Tensor:
    # In float32, 2^24 times 0.1 comes out 2.4e-6 wrong, 6e-2 over an outer axis, and
    # 1e-1 under jit_compile.
    wide = tf.cast(x, tf.float64)
    return tf.cast(tf.reduce_sum(wide, axes, keepdims=axes is not None), x.dtype)


def known_value(x: Tensor) -> float | None:
    return float(x) if tf.executing_eagerly() else None


def smooth_l1(error: Tensor, beta: Any) -> Tensor:
    if tf.is_tensor(beta):
        return _by_error_and_beta(error, beta)
    return _by_error(error, tf.constant(beta, error.dtype))


def _by_error(error: Tensor, beta: Tensor) -> Tensor:
    """With the derivative by error alone, which is kept from the way forward."""

    @tf.custom_gradient
    def apply(error: Tensor) -> tuple[Tensor, Rule]:
        loss, slope = reference.value_and_slope(error, beta, xp)

        @tf.custom_gradient
        def differentiable_slope(error: Tensor) -> tuple[Tensor, Rule]:
            return tf.identity(slope), lambda g: g * reference.bend(error, beta, xp)

        return loss, lambda upstream: upstream * differentiable_slope(error)

    return apply(error)


@tf.custom_gradient
def _by_error_and_beta(error: Tensor, beta: Tensor) -> tuple[Tensor, Rule]:
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

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


def total(x: Tensor, axes: tuple[int, ...] | None) -> Tensor:
    # In float32, 2^24 times 0.1 comes out 2.4e-6 wrong, 6e-2 over an outer axis, and
    # 1e-1 under jit_compile.
    wide = tf.cast(x, tf.float64)
    return tf.cast(tf.reduce_sum(wide, axes, keepdims=axes is not None), x.dtype)


def known_value(x: Tensor) -> float | None:
    return float(x) if tf.executing_eagerly() else None


def _differentiable(
    function: Callable[..., Tensor],
    by_error: Callable[..., Tensor],
    by_beta: Callable[..., Tensor],
) -> Callable[[Tensor, Any], Tensor]:
    """function(error, beta), with its derivatives by error and by a tensor beta.

    A beta of numbers has no derivative, and eager TensorFlow would compute one.
    """

    def differentiable(error: Tensor, beta: Any) -> Tensor:
        constant = not tf.is_tensor(beta)

        @tf.custom_gradient
        def apply(error: Tensor, *tensor_beta: Tensor) -> tuple[Tensor, Any]:
            b = tf.constant(beta, error.dtype) if constant else tensor_beta[0]

            def rule(upstream: Tensor) -> Any:
                gradient = upstream * by_error(error, beta if constant else b)
                if constant:
                    return gradient
                return gradient, tf.reduce_sum(upstream * by_beta(error, b))

            return function(error, b, xp), rule

        return apply(error) if constant else apply(error, beta)

    return differentiable


def _bend(error: Tensor, beta: Any) -> Tensor:
    return reference.bend(error, tf.convert_to_tensor(beta, error.dtype), xp)


_slope: Callable[[Tensor, Any], Tensor] = _differentiable(
    reference.slope, by_error=_bend, by_beta=lambda d, b: -_slope(d, b) * _bend(d, b)
)
smooth_l1 = _differentiable(
    reference.value, by_error=_slope, by_beta=lambda d, b: -0.5 * _slope(d, b) ** 2
)

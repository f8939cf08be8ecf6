"""The closed-form slope through `custom_gradient`, in reverse mode.

For a constant beta, the slope is saved in the forward pass, and has its own custom
gradient for second derivatives. The weighted sum saves the weighted slope, so that the
backward pass is one multiplication. For large eager tensors, the forward pass runs as a
graph, which is traced once for each rank and not for each size. The results must match
the reference in `Backend`, and the derivatives those in `formula`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_smoothl1 import formula
from keras_smoothl1.backends.tensorflow import internals, sums
from keras_smoothl1.typing import Axes, Beta

Gradient = Callable[[tf.Tensor], Any]


def supports(*tensors: tf.Tensor | None) -> bool:
    """Whether no ForwardAccumulator watches the tensors.

    One that was started outside a tf.function is not visible inside. TensorFlow then
    computes tangents by differentiating the gradient functions of this module.
    """
    return not internals.have_tangents([x for x in tensors if x is not None])


def value(error: tf.Tensor, beta: Beta) -> tf.Tensor:
    return _value(_constant_beta(beta, error), error)


def _constant_beta(beta: Beta, error: tf.Tensor) -> tf.Tensor:
    """Returns beta as a constant that is cheap to broadcast.

    A number becomes a scalar. Several betas are repeated over inner dimensions, up to a
    limited size, because broadcasting a short last axis takes twice as long.
    """
    sizes = error.shape[1:] if isinstance(beta, tuple) and error.shape.rank else ()
    inner: list[int] = []
    for size in reversed(sizes):
        if size is None or size * math.prod(inner) > sums.SMALL:
            break
        inner.insert(0, size)
    if not inner or sums.is_small(error):
        return tf.constant(beta, error.dtype)
    return tf.constant(np.broadcast_to(beta, inner), error.dtype)


def weighted_sum(
    error: tf.Tensor,
    beta: Beta,
    weight: tf.Tensor | None,
    axes: Axes | None,
    divisor: int,
) -> tf.Tensor:
    """The sum of the weighted losses, divided by divisor.

    An element with weight 0 adds 0, even if it is NaN.
    """
    inputs = (tf.constant(divisor, error.dtype), _constant_beta(beta, error), error)
    if weight is None:
        return _sum_over(axes)(*inputs)
    total = _sum_over(axes)(*inputs, weight)

    @tf.custom_gradient
    def zero(weight: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        # Adds the gradient with respect to the weight, which is computed on demand. In
        # eager mode, a single custom_gradient would always compute both gradients.
        def gradient(grad_output: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(weight)
                losses = formula.value(
                    _zero_where_unweighted(error, weight), inputs[1], xp=tf
                )
                recomputed = sums.sum_(weight * losses, axes) / divisor
            return tape.gradient(recomputed, weight, grad_output)

        return tf.zeros_like(total), gradient

    return total + zero(weight)


def weighted_sum_no_grad(
    y_true: tf.Tensor, y_pred: tf.Tensor, beta: Beta, weight: tf.Tensor | None
) -> tf.Tensor:
    """The sum of all weighted losses, without a gradient."""
    inputs = (_constant_beta(beta, y_pred), y_pred, y_true, weight)
    return _run(_losses, None, *(x for x in inputs if x is not None))


# `_value` and `_sum_over` return None as the gradient of constants, and of the weight,
# whose gradient `weighted_sum` adds. They are wrapped once, because wrapping a function
# in tf.custom_gradient is slow.


@tf.custom_gradient
def _value(beta: tf.Tensor, error: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    losses, slopes = _forward((), beta, error)

    def gradient(grad_output: tf.Tensor) -> tuple[None, tf.Tensor]:
        return None, tf.multiply(grad_output, _slopes(slopes, grad_output, beta, error))

    return losses, gradient


@functools.cache
def _sum_over(axes: Axes | None) -> Any:
    @tf.custom_gradient
    def function(
        divisor: tf.Tensor, beta: tf.Tensor, error: tf.Tensor, *weight: tf.Tensor
    ) -> tuple[tf.Tensor, Gradient]:
        total, slopes = _forward(axes, beta, error, *weight)

        def gradient(grad_output: tf.Tensor) -> Any:
            scaled_grad = tf.realdiv(grad_output, divisor)
            by_error = tf.multiply(
                scaled_grad, _slopes(slopes, grad_output, beta, error, *weight)
            )
            return None, None, by_error, *(None for _ in weight)

        return tf.realdiv(total, divisor), gradient

    return function


def _slopes(
    slopes: tf.Tensor, grad_output: tf.Tensor, beta: tf.Tensor, *inputs: tf.Tensor
) -> tf.Tensor:
    """The weighted slopes, differentiable with respect to the inputs."""
    if not tf.executing_eagerly() and grad_output.graph is not slopes.graph:
        # This is a different graph from that of the forward pass. For a second
        # derivative, the saved slopes would be out of scope.
        return _recomputed_slopes(beta, *inputs)
    return _saved_slopes(slopes, beta, *inputs)


@tf.custom_gradient
def _saved_slopes(
    slopes: tf.Tensor, beta: tf.Tensor, *inputs: tf.Tensor
) -> tuple[tf.Tensor, Gradient]:
    def gradient(grad_output: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            recomputed = _recomputed_slopes(beta, *inputs)
        return None, None, *tape.gradient(recomputed, inputs, grad_output)

    return slopes, gradient


def _recomputed_slopes(
    beta: tf.Tensor, error: tf.Tensor, weight: tf.Tensor | None = None
) -> tf.Tensor:
    slopes = formula.slope(_zero_where_unweighted(error, weight), beta, xp=tf)
    return slopes if weight is None else slopes * weight


def _zero_where_unweighted(error: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
    """The errors, replaced by 0 where the weight is 0, since they may be NaN there."""
    return (
        error if weight is None else tf.where(weight != 0, error, tf.zeros_like(error))
    )


def _forward(axes: Axes | None, *inputs: tf.Tensor) -> Any:
    return _run(_losses_and_slopes, axes, *inputs)


def _run(function: Callable[..., Any], axes: Axes | None, *inputs: tf.Tensor) -> Any:
    """Calls a function of beta and other tensors, as a graph if they are large."""
    beta, x, *_ = inputs
    run: Any = functools.partial(function, sums.sum_, axes)
    if tf.executing_eagerly() and not sums.is_small(x):
        run = _graph(function, axes, *((x.dtype, x.shape.rank) for x in inputs))
    # stop_gradient keeps an outer tape from recording these operations as well.
    return run(beta, *map(tf.stop_gradient, inputs[1:]))


@functools.cache
def _graph(
    function: Callable[..., Any], axes: Axes | None, *kinds: tuple[Any, int]
) -> Any:
    # Executed one by one, the operations take twice as long for large tensors.
    return tf.function(
        functools.partial(function, sums.float64_sum, axes),
        input_signature=[tf.TensorSpec([None] * rank, dtype) for dtype, rank in kinds],
        autograph=False,
    )


def _losses(
    sum_: Callable[[tf.Tensor, Axes | None], tf.Tensor],
    axes: Axes | None,
    beta: tf.Tensor,
    y_pred: tf.Tensor,
    y_true: tf.Tensor,
    *weight: tf.Tensor,
) -> tf.Tensor:
    return _losses_and_slopes(sum_, axes, beta, y_pred - y_true, *weight)[0]


def _losses_and_slopes(
    sum_: Callable[[tf.Tensor, Axes | None], tf.Tensor],
    axes: Axes | None,
    beta: tf.Tensor,
    error: tf.Tensor,
    weight: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The weighted losses, summed over axes unless axes is (), and weighted slopes."""
    losses, slopes = formula.value_and_slope(error, beta, xp=tf)
    losses, slopes = _apply_weight(losses, weight), _apply_weight(slopes, weight)
    return losses if axes == () else sum_(losses, axes), slopes


def _apply_weight(x: tf.Tensor, weight: tf.Tensor | None = None) -> tf.Tensor:
    return x if weight is None else tf.math.multiply_no_nan(x, weight)


@tf.custom_gradient
def value_of_tensor_beta(
    error: tf.Tensor, beta: tf.Tensor
) -> tuple[tf.Tensor, Gradient]:
    def gradient(grad_output: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        slope = formula.slope(error, beta, xp=tf)
        by_beta = grad_output * formula.value_grad_beta(slope)
        return grad_output * slope, _sum_to(beta, by_beta)

    # Not formula.value_and_slope: beta may be NaN, which tf.minimum may ignore.
    return formula.value(error, beta, xp=tf), gradient


def _sum_to(beta: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Sums x over the dimensions in which beta was broadcast.

    beta is a scalar or has x's rank.
    """
    shape = beta.shape
    if shape.rank == 0:
        return sums.sum_(x, None)
    if shape.rank is not None:
        x = sums.sum_(x, tuple(axis for axis, n in enumerate(shape) if n == 1))
        if shape.is_fully_defined():
            return x
    axes, _ = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(beta), s1=tf.shape(x))
    wide_sum = tf.reduce_sum(tf.cast(x, tf.float64), axes)
    return tf.reshape(tf.cast(wide_sum, x.dtype), tf.shape(beta))

"""TensorFlow: `reference`, with the closed-form slope as its derivative, and sums.

Autodiff of the value's spelling is wrong on the threshold and NaN far from it. The
slope is kept from the way forward, and differentiated by a rule of its own, for second
derivatives. `weighted_total` also keeps the weights in it, so that the way back is one
multiplication; eagerly both run as a graph, which is traced once for each rank. They
must match `reference.value`, `reference.slope` and `reference.bend`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow as xp

from keras_smoothl1.kernels import reference
from keras_smoothl1.validation import Tensor

__all__ = ["known_value", "smooth_l1", "total", "weighted_total", "xp"]

Axes = tuple[int, ...] | None
Rule = Callable[[Tensor], Any]
ROW = 32  # numbers that are added in float32 before the sum goes on in float64


def known_value(x: Tensor) -> float | None:
    return float(x) if tf.executing_eagerly() else None


def total(x: Tensor, axes: Axes) -> Tensor:
    # All in float32, 2^24 times 0.1 comes out 2.4e-6 wrong, 6e-2 over an outer axis,
    # and 1e-1 under jit_compile. All in float64 takes three times as long.
    if axes is None:
        flat = tf.reshape(x, [-1])
        in_rows = tf.size(flat, out_type=tf.int64) // ROW * ROW
        rows = tf.reduce_sum(tf.reshape(flat[:in_rows], [-1, ROW]), 1)
        wide = _wide_sum(rows, 0, False) + _wide_sum(flat[in_rows:], 0, False)
    elif _ends_in_rows(x.shape, axes):
        kept = tf.shape(x)[: -len(axes)]
        rows = tf.reduce_sum(tf.reshape(x, tf.concat([kept, [-1, ROW]], 0)), -1)
        shape = tf.concat([kept, [1] * len(axes)], 0)
        wide = tf.reshape(_wide_sum(rows, -1, False), shape)
    else:
        wide = _wide_sum(x, axes, True)
    return tf.cast(wide, x.dtype)


def _wide_sum(x: Tensor, axes: Any, keepdims: bool) -> Tensor:
    return tf.reduce_sum(tf.cast(x, tf.float64), axes, keepdims=keepdims)


def _ends_in_rows(shape: Any, axes: tuple[int, ...]) -> bool:
    """Whether axes are the last ones, and have whole rows."""
    last = tuple(range(len(shape) - len(axes), len(shape)))
    sizes = [shape[axis] for axis in axes]
    return axes == last and None not in sizes and math.prod(sizes) % ROW == 0


def smooth_l1(error: Tensor, beta: Any) -> Tensor:
    if tf.is_tensor(beta):
        return _by_error_and_beta(error, beta)
    return _kept(error, tf.constant(beta, error.dtype), None, ())


def weighted_total(
    error: Tensor, beta: Any, weight: Tensor | None, axes: Axes
) -> Tensor:
    """total(weight · smooth_l1(error, beta), axes); 0 where the weight is, even of NaN.

    beta is a number or a tuple of them.
    """
    beta = tf.constant(beta, error.dtype)
    sums = _kept(error, beta, weight, axes)
    if weight is None:
        return sums

    @tf.custom_gradient
    def nothing(weight: Tensor) -> tuple[Tensor, Rule]:
        # Stands for the weight in the derivative, and is not asked where nobody wants
        # that: eagerly, a rule for both would compute both.
        def rule(upstream: Tensor) -> Tensor:
            known = tf.where(weight != 0, error, tf.zeros_like(error))
            with tf.GradientTape() as tape:
                tape.watch(weight)
                again = total(weight * _kept(known, beta, None, ()), axes)
            return tape.gradient(again, weight, upstream)

        return tf.zeros_like(sums), rule

    return sums + nothing(weight)


def _kept(error: Tensor, beta: Tensor, weight: Tensor | None, axes: Axes) -> Tensor:
    """The weighted losses, summed over axes unless they are ()."""
    inputs = (error,) if weight is None else (error, weight)
    run: Any = functools.partial(_losses_and_slopes, axes)
    if tf.executing_eagerly():
        run = _graph(axes, *((x.dtype, x.shape.rank) for x in (beta, *inputs)))

    @tf.custom_gradient
    def apply(error: Tensor) -> tuple[Tensor, Rule]:
        # Else an eager tape would record what runs here, too.
        losses, slopes = run(beta, *map(tf.stop_gradient, inputs))

        @tf.custom_gradient
        def differentiable_slopes(*inputs: Tensor) -> tuple[Tensor, Rule]:
            def rule(upstream: Tensor) -> Any:
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    again = _weigh(_slope(inputs[0], beta), *inputs[1:])
                return tape.gradient(again, inputs, upstream)

            return tf.identity(slopes), rule

        return losses, lambda upstream: upstream * differentiable_slopes(*inputs)

    return apply(error)


@functools.cache
def _graph(axes: Axes, *kinds: tuple[Any, int]) -> Any:
    # Run one by one, the operations take two to eight times as long.
    return tf.function(
        functools.partial(_losses_and_slopes, axes),
        input_signature=[tf.TensorSpec([None] * rank, dtype) for dtype, rank in kinds],
        autograph=False,
    )


def _losses_and_slopes(
    axes: Axes, beta: Tensor, error: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    losses, slopes = reference.value_and_slope(error, beta, xp)
    losses, slopes = _weigh(losses, weight), _weigh(slopes, weight)
    return losses if axes == () else total(losses, axes), slopes


def _weigh(x: Tensor, weight: Tensor | None = None) -> Tensor:
    return x if weight is None else tf.math.multiply_no_nan(x, weight)


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

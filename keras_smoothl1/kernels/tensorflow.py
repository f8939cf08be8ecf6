"""TensorFlow: `reference`, with the closed-form slope as its derivative, and sums.

Autodiff of the value's spelling is wrong on the threshold and NaN far from it. The
slope is kept from the way forward, and differentiated by a rule of its own, for second
derivatives. `weighted_total` also keeps the weights in it, so that the way back is one
multiplication. On large eager tensors the way forward runs as a graph, traced once for
each rank. They must match `reference.value`, `reference.slope` and `reference.bend`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow as xp

from keras_smoothl1.kernels import reference
from keras_smoothl1.validation import Tensor

__all__ = ["known_value", "quotient", "smooth_l1", "total", "weighted_total", "xp"]

Axes = tuple[int, ...] | None
Rule = Callable[[Tensor], Any]
SMALL = 2**16  # elements up to which the calls take longer than the work
ROW = 32  # numbers that are added in float32 before the sum goes on in float64


def known_value(x: Tensor) -> float | None:
    return float(x) if tf.executing_eagerly() else None


def quotient(x: Tensor, y: Tensor) -> Tensor:
    return tf.math.divide_no_nan(x, y)


def total(x: Tensor, axes: Axes) -> Tensor:
    # All in float32, 2^24 times 0.1 comes out 2.4e-6 wrong, 6e-2 over an outer axis,
    # and 1e-1 under jit_compile. All in float64 takes four times as long.
    if _is_small(x):
        every = tuple(range(len(x.shape)))
        wide = _wide_sum(x, every if axes is None else axes, axes is not None)
    elif axes is None:
        flat = tf.reshape(x, [-1])
        in_rows = tf.size(flat, out_type=tf.int64) // ROW * ROW
        rows = tf.reduce_sum(tf.reshape(flat[:in_rows], [-1, ROW]), 1)
        wide = _wide_sum(rows, (0,), False) + _wide_sum(flat[in_rows:], (0,), False)
    elif _ends_in_rows(x.shape, axes):
        kept = tf.shape(x)[: -len(axes)]
        rows = tf.reduce_sum(tf.reshape(x, tf.concat([kept, [-1, ROW]], 0)), -1)
        shape = tf.concat([kept, [1] * len(axes)], 0)
        wide = tf.reshape(_wide_sum(rows, (-1,), False), shape)
    else:
        wide = _wide_sum(x, axes, True)
    return tf.raw_ops.Cast(x=wide, DstT=x.dtype)


def _is_small(x: Tensor) -> bool:
    """Whether an operation costs more than what it does."""
    size = x.shape.num_elements()
    return size is not None and size <= SMALL


def _wide_sum(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    # By tf.cast and tf.reduce_sum a small eager sum takes three times as long.
    wide = tf.raw_ops.Cast(x=x, DstT=tf.float64)
    axis = tf.constant(axes, tf.int32, [len(axes)])
    return tf.raw_ops.Sum(input=wide, axis=axis, keep_dims=keepdims)


def _ends_in_rows(shape: Any, axes: tuple[int, ...]) -> bool:
    """Whether axes are the last ones, and have whole rows."""
    last = tuple(range(len(shape) - len(axes), len(shape)))
    sizes = [shape[axis] for axis in axes]
    return axes == last and None not in sizes and math.prod(sizes) % ROW == 0


def smooth_l1(error: Tensor, beta: Any) -> Tensor:
    if tf.is_tensor(beta):
        # Of a variable its value: tf.custom_gradient takes no variables.
        return _by_error_and_beta(error, tf.convert_to_tensor(beta))
    return _elementwise(_as_tensor(beta, error), error)


def weighted_total(
    error: Tensor, beta: Any, weight: Tensor | None, axes: Axes, divisor: int
) -> Tensor:
    """total(weight · smooth_l1(error, beta), axes) / divisor.

    beta is a number or a tuple of them. What weighs 0 adds nothing, even if it is NaN.
    """
    given = (tf.constant(divisor, error.dtype), _as_tensor(beta, error), error)
    if weight is None:
        return _summed_over(axes)(*given)
    sums = _summed_over(axes)(*given, weight)

    @tf.custom_gradient
    def nothing(weight: Tensor) -> tuple[Tensor, Rule]:
        # Stands for the weight in the derivative, and is not asked where nobody wants
        # that: eagerly, a rule for both would compute both.
        def rule(upstream: Tensor) -> Tensor:
            known = tf.where(weight != 0, error, tf.zeros_like(error))
            with tf.GradientTape() as tape:
                tape.watch(weight)
                again = total(weight * smooth_l1(known, beta), axes) / divisor
            return tape.gradient(again, weight, upstream)

        return tf.zeros_like(sums), rule

    return sums + nothing(weight)


def _as_tensor(beta: float | tuple[float, ...], error: Tensor) -> Tensor:
    """A number as a scalar; one for each output spread over the other dimensions.

    Not over the first, and not over many. To repeat a few numbers along the last axis
    takes twice as long.
    """
    sizes = error.shape[1:] if isinstance(beta, tuple) and error.shape.rank else ()
    inner: list[int] = []
    for size in reversed(sizes):
        if size is None or size * math.prod(inner) > SMALL:
            break
        inner.insert(0, size)
    if not inner or _is_small(error):
        return tf.constant(beta, error.dtype)
    return tf.constant(np.broadcast_to(beta, inner), error.dtype)


# The rules return None for what has no derivative, or has it from elsewhere. They are
# made once, since tf.custom_gradient takes long to make one.


@tf.custom_gradient
def _elementwise(beta: Tensor, error: Tensor) -> tuple[Tensor, Rule]:
    losses, slopes = _run((), beta, error)

    def rule(upstream: Tensor) -> tuple[None, Tensor]:
        return None, tf.multiply(upstream, _differentiable(slopes, beta, error))

    return losses, rule


@functools.cache
def _summed_over(axes: Axes) -> Any:
    @tf.custom_gradient
    def function(
        divisor: Tensor, beta: Tensor, error: Tensor, *weight: Tensor
    ) -> tuple[Tensor, Rule]:
        sums, slopes = _run(axes, beta, error, *weight)

        def rule(upstream: Tensor) -> Any:
            share = tf.realdiv(upstream, divisor)
            by_error = tf.multiply(share, _differentiable(slopes, beta, error, *weight))
            return None, None, by_error, *(None for _ in weight)

        return tf.realdiv(sums, divisor), rule

    return function


@tf.custom_gradient
def _differentiable(
    slopes: Tensor, beta: Tensor, *inputs: Tensor
) -> tuple[Tensor, Rule]:
    """The weighted slopes from the way forward, which `inputs` would give again."""

    def rule(upstream: Tensor) -> Any:
        error, *weight = inputs
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            for w in weight:
                error = tf.where(w != 0, error, tf.zeros_like(error))
            again = _weigh(_slope(error, beta), *weight)
        return None, None, *tape.gradient(again, inputs, upstream)

    return slopes, rule


def _run(axes: Axes, beta: Tensor, *inputs: Tensor) -> Any:
    run: Any = functools.partial(_losses_and_slopes, axes)
    if tf.executing_eagerly() and not _is_small(inputs[0]):
        run = _graph(axes, *((x.dtype, x.shape.rank) for x in (beta, *inputs)))
    # stop_gradient: an eager tape would record what runs here, too.
    return run(beta, *map(tf.stop_gradient, inputs))


@functools.cache
def _graph(axes: Axes, *kinds: tuple[Any, int]) -> Any:
    # Run one by one, the operations on large tensors take twice as long.
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

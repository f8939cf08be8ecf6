"""TensorFlow: the closed-form slope by `custom_gradient`, sums in rows, one graph.

Autodiff of the value's spelling is wrong on the threshold and NaN far from it. The
slope is kept from the forward pass, and differentiated by a rule of its own, for second
derivatives. The weighted sum also keeps the weights in it, so that the backward pass is
one multiplication. On large eager tensors the forward pass runs as a graph, traced once
for each rank. All of it must match the reference in `Backend`, with the derivatives in
`formula`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_smoothl1 import formula
from keras_smoothl1.backends.base import Backend
from keras_smoothl1.typing import Axes, Beta, Shape, Size, Tensor

Gradient = Callable[[tf.Tensor], Any]
SMALL = 2**16  # elements up to which the calls take longer than the work
ROW = 32  # numbers that are added in float32 before the sum goes on in float64


class TensorFlowBackend(Backend):
    xp: Any = tf

    def _smooth_l1(self, error: Tensor, beta: Beta | Tensor) -> tf.Tensor:
        if isinstance(beta, float | tuple):
            return _value(_constant_beta(beta, error), error)
        # Of a variable its value: tf.custom_gradient takes no variables.
        return _value_of_tensor_beta(error, tf.convert_to_tensor(beta))

    def weighted_sum(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        beta: Beta | Tensor,
        weight: Tensor | None = None,
        *,
        axes: Axes | None = None,
        divisor: Size = 1,
    ) -> tf.Tensor:
        error = y_pred - y_true
        if not (isinstance(beta, float | tuple) and _supports(beta, error.dtype)):
            return super().weighted_sum(
                y_true, y_pred, beta, weight, axes=axes, divisor=divisor
            )
        if weight is not None:
            weight = tf.cast(weight, error.dtype)
        if isinstance(divisor, int):
            return _weighted_sum(error, beta, weight, axes, max(divisor, 1))
        sums = _weighted_sum(error, beta, weight, axes, 1)
        return self.divide_no_nan(sums, divisor)

    def sum(self, x: Tensor, axes: Axes | None = None) -> tf.Tensor:
        return _sum(x, axes)

    def divide_no_nan(self, x: Tensor, y: Size) -> tf.Tensor:
        if isinstance(y, int):
            return super().divide_no_nan(x, y)
        return tf.math.divide_no_nan(x, tf.cast(y, x.dtype))

    def static_shape(self, x: Tensor) -> Shape | None:
        return None if x.shape.rank is None else tuple(x.shape)

    def static_value(self, x: Tensor) -> float | None:
        return super().static_value(x) if tf.executing_eagerly() else None

    def size(self, x: Tensor, axes: Axes | None = None) -> Size:
        if x.shape.rank is None and axes is None:
            return tf.cast(tf.size(x, out_type=tf.int64), x.dtype)
        return super().size(x, axes)

    def reshape_like(self, x: Tensor, y: Tensor) -> tf.Tensor:
        # Checks the number of elements when it runs.
        return tf.reshape(x, tf.shape(y))

    def expand_rank_like(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape.rank is not None and y.shape.rank is not None:
            return super().expand_rank_like(x, y)
        ones = tf.ones([tf.rank(y) - tf.rank(x)], tf.int32)
        return tf.reshape(x, tf.concat([tf.shape(x), ones], axis=0))


def _supports(beta: Beta, dtype: tf.DType) -> bool:
    """Whether `_weighted_sum` takes this beta: its half must not be flushed to 0."""
    return not formula.half_underflows(beta, dtype.name)


def _sum(x: tf.Tensor, axes: Axes | None) -> tf.Tensor:
    # All in float32, 2^24 times 0.1 comes out 2.4e-6 wrong, 6e-2 over an outer axis,
    # and 1e-1 under jit_compile. All in float64 takes four times as long.
    if _is_small(x):
        all_axes = tuple(range(len(x.shape)))
        wide = _float64_sum(x, all_axes if axes is None else axes, axes is not None)
    elif axes is None:
        flat = tf.reshape(x, [-1])
        in_rows = tf.size(flat, out_type=tf.int64) // ROW * ROW
        rows = tf.reduce_sum(tf.reshape(flat[:in_rows], [-1, ROW]), 1)
        wide = _float64_sum(rows, (0,), False) + _float64_sum(
            flat[in_rows:], (0,), False
        )
    elif _ends_in_rows(x.shape, axes):
        outer = tf.shape(x)[: -len(axes)]
        rows = tf.reduce_sum(tf.reshape(x, tf.concat([outer, [-1, ROW]], 0)), -1)
        shape = tf.concat([outer, [1] * len(axes)], 0)
        wide = tf.reshape(_float64_sum(rows, (-1,), False), shape)
    else:
        wide = _float64_sum(x, axes, True)
    return tf.raw_ops.Cast(x=wide, DstT=x.dtype)


def _is_small(x: tf.Tensor) -> bool:
    """Whether an operation costs more than what it does."""
    size = x.shape.num_elements()
    return size is not None and size <= SMALL


def _float64_sum(x: tf.Tensor, axes: Axes, keepdims: bool) -> tf.Tensor:
    # By tf.cast and tf.reduce_sum a small eager sum takes three times as long.
    wide = tf.raw_ops.Cast(x=x, DstT=tf.float64)
    axis = tf.constant(axes, tf.int32, [len(axes)])
    return tf.raw_ops.Sum(input=wide, axis=axis, keep_dims=keepdims)


def _ends_in_rows(shape: Any, axes: Axes) -> bool:
    """Whether axes are the last ones, and have whole rows."""
    last = tuple(range(len(shape) - len(axes), len(shape)))
    sizes = [shape[axis] for axis in axes]
    return axes == last and None not in sizes and math.prod(sizes) % ROW == 0


def _constant_beta(beta: Beta, error: tf.Tensor) -> tf.Tensor:
    """A number as a scalar; one for each output broadcast over the other dimensions.

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


def _weighted_sum(
    error: tf.Tensor,
    beta: Beta,
    weight: tf.Tensor | None,
    axes: Axes | None,
    divisor: int,
) -> tf.Tensor:
    """The sum of the weighted losses over a number. Weight 0 adds 0, even for NaN."""
    inputs = (tf.constant(divisor, error.dtype), _constant_beta(beta, error), error)
    if weight is None:
        return _sum_over(axes)(*inputs)
    sums = _sum_over(axes)(*inputs, weight)

    @tf.custom_gradient
    def zero(weight: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        # Adds the gradient with respect to the weight, computed only when it is asked
        # for: eagerly, one custom_gradient for both would compute both.
        def gradient(grad_output: tf.Tensor) -> tf.Tensor:
            known = tf.where(weight != 0, error, tf.zeros_like(error))
            with tf.GradientTape() as tape:
                tape.watch(weight)
                losses = _value(_constant_beta(beta, known), known)
                again = _sum(weight * losses, axes) / divisor
            return tape.gradient(again, weight, grad_output)

        return tf.zeros_like(sums), gradient

    return sums + zero(weight)


# The gradients return None for what has no derivative, or has it from elsewhere. The
# functions are made once, since tf.custom_gradient takes long to make one.


@tf.custom_gradient
def _value(beta: tf.Tensor, error: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    losses, slopes = _forward((), beta, error)

    def gradient(grad_output: tf.Tensor) -> tuple[None, tf.Tensor]:
        return None, tf.multiply(grad_output, _slopes(slopes, beta, error))

    return losses, gradient


@functools.cache
def _sum_over(axes: Axes | None) -> Any:
    @tf.custom_gradient
    def function(
        divisor: tf.Tensor, beta: tf.Tensor, error: tf.Tensor, *weight: tf.Tensor
    ) -> tuple[tf.Tensor, Gradient]:
        sums, slopes = _forward(axes, beta, error, *weight)

        def gradient(grad_output: tf.Tensor) -> Any:
            share = tf.realdiv(grad_output, divisor)
            grad_error = tf.multiply(share, _slopes(slopes, beta, error, *weight))
            return None, None, grad_error, *(None for _ in weight)

        return tf.realdiv(sums, divisor), gradient

    return function


@tf.custom_gradient
def _slopes(
    slopes: tf.Tensor, beta: tf.Tensor, *inputs: tf.Tensor
) -> tuple[tf.Tensor, Gradient]:
    """The weighted slopes from the forward pass, differentiable by the inputs."""

    def gradient(grad_output: tf.Tensor) -> Any:
        error, *weight = inputs
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            for w in weight:
                error = tf.where(w != 0, error, tf.zeros_like(error))
            again = _weigh(_slope(error, beta), *weight)
        return None, None, *tape.gradient(again, inputs, grad_output)

    return slopes, gradient


def _forward(axes: Axes | None, beta: tf.Tensor, *inputs: tf.Tensor) -> Any:
    run: Any = functools.partial(_losses_and_slopes, axes)
    if tf.executing_eagerly() and not _is_small(inputs[0]):
        run = _graph(axes, *((x.dtype, x.shape.rank) for x in (beta, *inputs)))
    # stop_gradient: an eager tape would record what runs here, too.
    return run(beta, *map(tf.stop_gradient, inputs))


@functools.cache
def _graph(axes: Axes | None, *kinds: tuple[Any, int]) -> Any:
    # Run one by one, the operations on large tensors take twice as long.
    return tf.function(
        functools.partial(_losses_and_slopes, axes),
        input_signature=[tf.TensorSpec([None] * rank, dtype) for dtype, rank in kinds],
        autograph=False,
    )


def _losses_and_slopes(
    axes: Axes | None,
    beta: tf.Tensor,
    error: tf.Tensor,
    weight: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The weighted losses, summed over axes unless these are empty, and the slopes."""
    losses, slopes = formula.value_and_slope(error, beta, xp=tf)
    losses, slopes = _weigh(losses, weight), _weigh(slopes, weight)
    return losses if axes == () else _sum(losses, axes), slopes


def _weigh(x: tf.Tensor, weight: tf.Tensor | None = None) -> tf.Tensor:
    return x if weight is None else tf.math.multiply_no_nan(x, weight)


@tf.custom_gradient
def _value_of_tensor_beta(
    error: tf.Tensor, beta: tf.Tensor
) -> tuple[tf.Tensor, Gradient]:
    def gradient(grad_output: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        slope = _slope(error, beta)
        grad_beta = grad_output * formula.value_by_beta(slope)
        return grad_output * slope, tf.reduce_sum(grad_beta)

    return formula.value(error, beta, xp=tf), gradient


@tf.custom_gradient
def _slope(error: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    def gradient(grad_output: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        slope = _slope(error, beta)
        curvature = formula.curvature(slope, beta, xp=tf)
        grad_beta = grad_output * formula.slope_by_beta(slope, curvature)
        return grad_output * curvature, tf.reduce_sum(grad_beta)

    return formula.slope(error, beta, xp=tf), gradient

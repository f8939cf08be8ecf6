"""Sums of 2^24 positive float32 numbers with a relative error of at most 2e-6.

With `tf.reduce_sum` in float32, the sum of 2^24 elements equal to 0.1 has a relative
error of 2.4e-6. It is 6e-2 over an outer axis, and 1e-2 under jit_compile. Eager sums
of a large tensor to a scalar add short rows in float32, and their sums in float64.
Other eager sums use float64. A graph may be compiled by XLA, which knows sizes that
depend on data only as upper bounds, or be converted to TFLite, which cannot sum float64
numbers. So graphs sum short rows, then rows of these sums, and so on, all in float32.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from keras_smoothl1.typing import Axes, Shape

SMALL = 2**16  # up to this many elements, call overhead exceeds computation
ROW = 32  # elements that are added one by one
LEVELS = 4  # levels of rows for unknown sizes: 32^4 elements are reduced to 1


def is_small(x: tf.Tensor) -> bool:
    """Whether the call overhead of an operation on x exceeds its computation."""
    size = x.shape.num_elements()
    return size is not None and size <= SMALL


def sum_(x: tf.Tensor, axes: Axes | None) -> tf.Tensor:
    """Sums over axes, keeping them with size 1; None sums x to a scalar."""
    if axes == ():
        return x
    if tf.executing_eagerly():
        return float64_sum(x, axes)
    if x.dtype != tf.float32:
        return tf.reduce_sum(x, axes, keepdims=axes is not None)
    return _float32_sum(x, axes)


def float64_sum(x: tf.Tensor, axes: Axes | None) -> tf.Tensor:
    if is_small(x):
        all_axes = tuple(range(len(x.shape)))
        wide = _wide_sum(x, all_axes if axes is None else axes, axes is not None)
    elif axes is None:
        # Converting the whole tensor to float64 would take four times as long.
        flat = tf.reshape(x, [-1])
        in_rows = tf.size(flat, out_type=tf.int64) // ROW * ROW
        rows = tf.reduce_sum(tf.reshape(flat[:in_rows], [-1, ROW]), 1)
        wide = _wide_sum(rows, (0,), False) + _wide_sum(flat[in_rows:], (0,), False)
    else:
        wide = _wide_sum(x, axes, True)
    return tf.raw_ops.Cast(x=wide, DstT=x.dtype)


def _wide_sum(x: tf.Tensor, axes: Axes, keepdims: bool) -> tf.Tensor:
    # With tf.cast and tf.reduce_sum, a small eager sum takes three times as long.
    wide = tf.raw_ops.Cast(x=x, DstT=tf.float64)
    axis = tf.constant(axes, tf.int32, [len(axes)])
    return tf.raw_ops.Sum(input=wide, axis=axis, keep_dims=keepdims)


def _float32_sum(x: tf.Tensor, axes: Axes | None) -> tf.Tensor:
    shape: Shape = (None,) if x.shape.rank is None else tuple(x.shape)
    if 0 in shape:
        return tf.reduce_sum(x, axes, keepdims=axes is not None)
    if axes is None:
        return tf.reshape(_sums_of_rest(x, shape, 0), [])
    outer = tuple(axis for axis in range(len(shape)) if axis not in axes)
    order = outer + axes
    x_last = x if order == tuple(sorted(order)) else tf.transpose(x, order)
    sums = _sums_of_rest(x_last, tuple(shape[axis] for axis in order), len(outer))
    kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
    return tf.reshape(sums, _fill(kept, lambda: tf.unstack(tf.shape(x), len(kept))))


def _sums_of_rest(x: tf.Tensor, shape: Shape, outer: int) -> tf.Tensor:
    """Sums over all axes except the first `outer` ones, which are flattened."""
    known = 1
    for size in reversed(shape[outer:]):
        if size is None:
            break
        known *= size
    row = next(n for n in range(ROW, 0, -1) if known % n == 0)
    rows = tf.reduce_sum(tf.reshape(x, [-1, row]), -1)
    sizes = _fill(
        [_product(shape[:outer]), _product(shape[outer:], row)],
        lambda: [
            tf.reduce_prod(tf.shape(x)[:outer]),
            tf.reduce_prod(tf.shape(x)[outer:]) // row,
        ],
    )
    return _sums_of_rows(tf.reshape(rows, sizes), sizes[1])


def _product(shape: Shape, divisor: int = 1) -> int | None:
    known = [size for size in shape if size is not None]
    return math.prod(known) // divisor if len(known) == len(shape) else None


def _fill(
    sizes: list[int | None], found: Callable[[], list[tf.Tensor]]
) -> list[int | tf.Tensor]:
    """Replaces None with run-time sizes.

    A single None is left to tf.reshape, because XLA may know only an upper bound.
    """
    if sizes.count(None) == 1:
        return [-1 if size is None else size for size in sizes]
    if None not in sizes:
        return sizes
    return [b if a is None else a for a, b in zip(sizes, found(), strict=True)]


def _sums_of_rows(x: tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
    """Sums over the last of two axes. A negative size or a tensor means unknown."""
    if not isinstance(size, int) or size < 0:
        return _sums_of_windows(x)
    while size > ROW:
        x = tf.pad(x, [[0, 0], [0, -size % ROW]])
        size = -(-size // ROW)
        x = tf.reduce_sum(tf.reshape(_keep_separate(x), [-1, size, ROW]), -1)
    return tf.reduce_sum(_keep_separate(x), -1)


def _keep_separate(x: tf.Tensor) -> tf.Tensor:
    """Returns x, in a form that keeps XLA from merging two sums.

    XLA merges a sum of sums into one sum, even through a negation or a factor.
    """
    return tf.where(tf.math.is_nan(x), float("nan"), x)


def _sums_of_windows(x: tf.Tensor) -> tf.Tensor:
    """Sums over the last of two axes without knowing its size.

    The average over a window of ROW elements, times ROW, is the sum of the window.
    """
    x = x[:, :, tf.newaxis, tf.newaxis]
    for _ in range(LEVELS):
        x = tf.pad(x, [[0, 0], [0, ROW - 1], [0, 0], [0, 0]])
        x = ROW * tf.nn.avg_pool2d(x, [ROW, 1], [ROW, 1], "VALID")
    return tf.reduce_sum(x, [1, 2, 3])

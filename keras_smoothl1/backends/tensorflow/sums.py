"""Sums of float32 numbers that are right to 2e-6, relative, for 2^24 of them.

All in float32, 2^24 times 0.1 comes out 2.4e-6 wrong, 6e-2 over an outer axis, and 1e-2
under jit_compile. Eagerly the sum goes on in float64 after a row. A graph may be
compiled by XLA, which knows sizes that depend on data only as bounds, or be converted
to TFLite, which has no sum of float64 numbers. So it adds rows of rows, all in float32.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from keras_smoothl1.typing import Axes, Shape

SMALL = 2**16  # elements up to which the calls take longer than the work
ROW = 32  # numbers that are added one by one
LEVELS = 4  # times that rows are added where the size is not known: 32^4 numbers to 1


def is_small(x: tf.Tensor) -> bool:
    """Whether an operation costs more than what it does."""
    size = x.shape.num_elements()
    return size is not None and size <= SMALL


def sum_(x: tf.Tensor, axes: Axes | None) -> tf.Tensor:
    """Sums over axes, which stay as size 1, or over all of them to a scalar."""
    if axes == ():
        return x
    if tf.executing_eagerly():
        return float64_sum(x, axes)
    if x.dtype != tf.float32:
        return tf.reduce_sum(x, axes, keepdims=axes is not None)
    return _float32_sum(x, axes)


def float64_sum(x: tf.Tensor, axes: Axes | None) -> tf.Tensor:
    # Rows first: to make all of a large tensor float64 takes four times as long.
    if is_small(x):
        all_axes = tuple(range(len(x.shape)))
        wide = _wide_sum(x, all_axes if axes is None else axes, axes is not None)
    elif axes is None:
        flat = tf.reshape(x, [-1])
        in_rows = tf.size(flat, out_type=tf.int64) // ROW * ROW
        rows = tf.reduce_sum(tf.reshape(flat[:in_rows], [-1, ROW]), 1)
        wide = _wide_sum(rows, (0,), False) + _wide_sum(flat[in_rows:], (0,), False)
    else:
        wide = _wide_sum(x, axes, True)
    return tf.raw_ops.Cast(x=wide, DstT=x.dtype)


def _wide_sum(x: tf.Tensor, axes: Axes, keepdims: bool) -> tf.Tensor:
    # By tf.cast and tf.reduce_sum a small eager sum takes three times as long.
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
    """Sums over all axes but the first `outer`, which become one."""
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
    """Replaces None by what the step finds.

    A single one is left to tf.reshape: XLA may know only a bound of it.
    """
    if sizes.count(None) == 1:
        return [-1 if size is None else size for size in sizes]
    if None not in sizes:
        return sizes
    return [b if a is None else a for a, b in zip(sizes, found(), strict=True)]


def _sums_of_rows(x: tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
    """Sums over the last of two axes, of this size if it is a positive number."""
    if not isinstance(size, int) or size < 0:
        return _sums_of_windows(x)
    while size > ROW:
        x = tf.pad(x, [[0, 0], [0, -size % ROW]])
        size = -(-size // ROW)
        x = tf.reduce_sum(tf.reshape(_apart(x), [-1, size, ROW]), -1)
    return tf.reduce_sum(_apart(x), -1)


def _apart(x: tf.Tensor) -> tf.Tensor:
    """The same numbers, in a spelling that keeps XLA from adding all of x's terms.

    Of a sum of sums it makes one sum, and moves a sign or a factor out of the way.
    """
    return tf.where(tf.math.is_nan(x), float("nan"), x)


def _sums_of_windows(x: tf.Tensor) -> tf.Tensor:
    """Sums over the last of two axes, by operations that need no sizes of it."""
    x = x[:, :, tf.newaxis, tf.newaxis]
    for _ in range(LEVELS):
        x = tf.pad(x, [[0, 0], [0, ROW - 1], [0, 0], [0, 0]])
        x = ROW * tf.nn.avg_pool2d(x, [ROW, 1], [ROW, 1], "VALID")
    return tf.reduce_sum(x, [1, 2, 3])

"""Sums of 2^24 positive float32 numbers with a relative error of at most 2e-6.

With `tf.reduce_sum` in float32, the sum of 2^24 elements equal to 0.1 has a relative
error of 2.4e-6. It is 6e-2 over an outer axis, and 1e-2 under jit_compile. A sum in
float64 is accurate but slow. So rows of up to 32 numbers are added in float32, and
their sums in float64. Where all sizes are known, the sums are added in float32, too, as
rows of sums, because TFLite cannot add float64 numbers.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator

import tensorflow as tf

from keras_smoothl1.typing import Axes

ROW = 32  # elements that are added one by one
_sizes_are_concrete = contextvars.ContextVar("sizes_are_concrete", default=False)


@contextlib.contextmanager
def sizes_are_concrete() -> Iterator[None]:
    """Traces a graph that TensorFlow executes.

    XLA knows sizes that depend on data, as those of `tf.boolean_mask`, only as upper
    bounds, and cannot split such an axis.
    """
    token = _sizes_are_concrete.set(True)
    try:
        yield
    finally:
        _sizes_are_concrete.reset(token)


def sum_(x: tf.Tensor, axes: Axes | None) -> tf.Tensor:
    """Sums over axes, keeping them with size 1; None sums x to a scalar."""
    if axes == ():
        return x
    if x.dtype == tf.float32 and x.shape.is_fully_defined():
        return _float32_sum(x, axes)
    if axes is None:
        x = _sums_of_rows(x)
    total = tf.reduce_sum(tf.cast(x, tf.float64), axes, keepdims=axes is not None)
    return tf.cast(total, x.dtype)


def sum_to(beta: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Sums x over the dimensions in which beta was broadcast to the shape of x."""
    shape = tf.shape(beta)
    axes, _ = tf.raw_ops.BroadcastGradientArgs(s0=shape, s1=tf.shape(x))
    total = tf.reduce_sum(tf.cast(x, tf.float64), axes)
    return tf.reshape(tf.cast(total, x.dtype), shape)


def _sums_of_rows(x: tf.Tensor) -> tf.Tensor:
    """Returns fewer numbers with the same sum, if rows can be told from the shape."""
    if _sizes_are_concrete.get():
        size = tf.size(x, out_type=tf.int64)
        # The largest power of two that divides the size.
        row = tf.clip_by_value(tf.bitwise.bitwise_and(size, -size), 1, ROW)
        return tf.reduce_sum(tf.reshape(x, [-1, row]), 1)
    known = 1
    for size in reversed(x.shape if x.shape.rank else []):
        if not size:
            break
        known *= size
    return tf.reduce_sum(tf.reshape(x, [-1, _row(known, 1)]), 1)


def _row(size: int, smallest: int) -> int:
    """The largest length of rows into which size elements can be divided."""
    lengths = range(ROW, smallest - 1, -1)
    return next((length for length in lengths if size % length == 0), 0)


def _float32_sum(x: tf.Tensor, axes: Axes | None) -> tf.Tensor:
    shape = tuple(x.shape)
    summed = tuple(range(len(shape))) if axes is None else axes
    kept = tuple(axis for axis in range(len(shape)) if axis not in summed)
    if kept + summed != tuple(sorted(kept + summed)):
        x = tf.transpose(x, kept + summed)
    outer = math.prod(shape[axis] for axis in kept)
    size = math.prod(shape[axis] for axis in summed)
    x = tf.reshape(x, [outer, size])
    while size > ROW:
        row = _row(size, ROW // 2)
        if not row:
            row = ROW
            x = tf.pad(x, [[0, 0], [0, -size % ROW]])
        size = -(-size // row)
        sums = tf.reduce_sum(tf.reshape(x, [outer, size, row]), -1)
        # XLA would merge this sum and the next one, even with a factor between them.
        # Twice NaN is NaN.
        x = tf.where(tf.math.is_nan(sums), 2 * sums, sums)
    ones = [1 if axis in summed else n for axis, n in enumerate(shape)]
    return tf.reshape(tf.reduce_sum(x, -1), [] if axes is None else ones)

"""Checks of shapes that are known only at run time.

If TensorFlow executes the graph, a check is an assertion that reports the shapes. XLA
and TFLite drop assertions. Under XLA, the check is an operation that only compiles for
matching shapes. XLA knows some sizes only as upper bounds, such as the number of rows
that a boolean mask selects, and cannot compare them at compile time. If two such sizes
differ at run time, the result is NaN.
"""

from typing import Any

import tensorflow as tf

INVALID_SIZE = -2  # a size that tf.reshape rejects, in XLA and in TensorFlow


def ensure_same_shape(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Returns y_true, and fails at run time unless it has y_pred's shape."""
    shape, pred_shape = tf.shape(y_true), tf.shape(y_pred)
    fits = tf.reduce_all(shape == pred_shape)
    name = "y_true_and_y_pred_must_have_the_same_shape"
    with tf.control_dependencies(
        [
            _assert(fits, name, y_true=shape, y_pred=pred_shape),
            _compiles_for_same_shape(_empty(y_true), _empty(y_pred), name),
        ]
    ):
        y_true = tf.reshape(y_true, pred_shape)
    return y_true + _nan_unless(fits, y_true.dtype)


def ensure_broadcastable(x: tf.Tensor, y_pred: tf.Tensor, name: str) -> tf.Tensor:
    """Returns x, and fails at run time unless each size is that of y_pred or 1."""
    shape, pred_shape = tf.shape(x), tf.shape(y_pred)
    fits = tf.reduce_all((shape == 1) | (shape == pred_shape))
    argument, name = name, f"{name}_must_be_broadcastable_to_y_pred_from_the_left"
    empty = _empty(y_pred)
    broadcast = tf.add(tf.cast(_empty(x), y_pred.dtype), empty, name=name)
    with tf.control_dependencies(
        [
            _assert(fits, name, **{argument: shape, "y_pred": pred_shape}),
            _compiles_for_same_shape(broadcast, empty, name),
        ]
    ):
        x = tf.identity(x)
    return x if x.dtype == tf.bool else x + _nan_unless(fits, x.dtype)


def ensure_last_axis(y_pred: tf.Tensor, size: int) -> tf.Tensor:
    """Returns y_pred, and fails at run time unless its last axis has this size."""
    shape = tf.shape(y_pred)
    fits = tf.reduce_all(shape[-1:] == size) & (tf.size(shape) > 0)
    name = "beta_must_have_one_number_for_each_entry_of_the_last_axis_of_y_pred"
    with tf.control_dependencies([_assert(fits, name, beta=size, y_pred=shape)]):
        return tf.reshape(y_pred, tf.concat([shape[:-1], [size]], 0), name=name)


def ensure_same_rows(
    values: tf.Tensor, splits: tf.Tensor, pred_splits: tf.Tensor, name: str
) -> tf.Tensor:
    """Returns the values, and fails at run time unless the row splits are equal."""
    fits = tf.reduce_all(splits == pred_splits)
    name = f"{name}_must_have_rows_as_long_as_those_of_y_pred"
    with tf.control_dependencies(
        [
            _assert(fits, name, row_splits=splits, y_pred_row_splits=pred_splits),
            _compiles_for_same_shape(splits, pred_splits, name),
        ]
    ):
        values = tf.identity(values)
    return (
        values + _nan_unless(fits, values.dtype) if values.dtype.is_floating else values
    )


def reshape_like(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Like `ensure_same_shape`, for any rank. A trailing 1 may be missing on either."""
    shape, pred_shape = tf.shape(y_true), tf.shape(y_pred)
    missing = tf.size(pred_shape) - tf.size(shape)
    fits = (tf.abs(missing) <= 1) & tf.reduce_all(
        _append_ones(shape, missing) == _append_ones(pred_shape, -missing)
    )
    name = "y_true_and_y_pred_must_have_the_same_shape"
    with tf.control_dependencies(
        [_assert(fits, name, y_true=shape, y_pred=pred_shape)]
    ):
        return tf.reshape(y_true, tf.where(fits, pred_shape, INVALID_SIZE), name=name)


def expand_rank_like(x: tf.Tensor, y_pred: tf.Tensor, name: str) -> tf.Tensor:
    """Like `ensure_broadcastable`, for any rank.

    Dimensions of size 1 are appended up to the rank of y_pred. One extra trailing
    dimension of size 1 is removed.
    """
    shape, pred_shape = tf.shape(x), tf.shape(y_pred)
    missing = tf.size(pred_shape) - tf.size(shape)
    padded, rank = _append_ones(shape, missing), tf.size(pred_shape)
    fits = (
        (missing >= -1)
        & tf.reduce_all((padded[:rank] == 1) | (padded[:rank] == pred_shape))
        & tf.reduce_all(padded[rank:] == 1)
    )
    argument, name = name, f"{name}_must_be_broadcastable_to_y_pred_from_the_left"
    with tf.control_dependencies(
        [_assert(fits, name, **{argument: shape, "y_pred": pred_shape})]
    ):
        return tf.reshape(x, tf.where(fits, padded[:rank], INVALID_SIZE), name=name)


def _assert(fits: tf.Tensor, name: str, **shapes: tf.Tensor) -> tf.Operation:
    data: list[Any] = [f"{name.replace('_', ' ')}. Received:"]
    for argument, shape in shapes.items():
        data += [argument, shape]
    return tf.debugging.Assert(fits, data)


def _compiles_for_same_shape(x: tf.Tensor, y: tf.Tensor, name: str) -> tf.Tensor:
    # XLA's error messages contain the name of the operation. Select does not broadcast.
    return tf.raw_ops.Select(condition=tf.constant(True), x=x, y=y, name=name)


def _empty(x: tf.Tensor) -> tf.Tensor:
    """A tensor with the shape of x and an additional last dimension of size 0."""
    return x[..., tf.newaxis][..., :0]


def _nan_unless(fits: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    # A constant NaN would fail tf.debugging.enable_check_numerics().
    return tf.sqrt(tf.cast(fits, dtype) - 1)


def _append_ones(shape: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    return tf.pad(shape, [[0, tf.maximum(count, 0)]], constant_values=1)

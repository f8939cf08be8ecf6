"""Shapes that are known only when the step runs, and the checks that run with it.

Where TensorFlow runs the graph, a check is an assertion, which names the shapes. XLA
drops assertions, and TFLite does. Under XLA the check is an operation that compiles for
nothing else. Sizes that XLA knows only as bounds, such as the number of rows that a
mask picks, it cannot compare before the step runs: where two of them differ, NaN.
"""

from typing import Any

import tensorflow as tf

NO_SIZE = -2  # that tf.reshape, in XLA and in TensorFlow, takes for an error


def ensure_same_shape(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Returns y_true, of y_pred's rank, if it has y_pred's shape."""
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
    """Returns a weight or mask of y_pred's rank, if each size is y_pred's or 1."""
    shape, pred_shape = tf.shape(x), tf.shape(y_pred)
    fits = tf.reduce_all((shape == 1) | (shape == pred_shape))
    name = f"{name}_must_be_broadcastable_to_y_pred_from_the_left"
    empty = _empty(y_pred)
    broadcast = tf.add(tf.cast(_empty(x), y_pred.dtype), empty, name=name)
    with tf.control_dependencies(
        [
            _assert(fits, name, x=shape, y_pred=pred_shape),
            _compiles_for_same_shape(broadcast, empty, name),
        ]
    ):
        x = tf.identity(x)
    return x if x.dtype == tf.bool else x + _nan_unless(fits, x.dtype)


def ensure_same_rows(
    values: tf.Tensor, splits: tf.Tensor, pred_splits: tf.Tensor, name: str
) -> tf.Tensor:
    """Returns the values of a ragged tensor, if its row splits are those of y_pred."""
    fits = tf.reduce_all(splits == pred_splits)
    name = f"{name}_must_have_rows_as_long_as_those_of_y_pred"
    with tf.control_dependencies(
        [
            _assert(fits, name, row_splits=splits, of_y_pred=pred_splits),
            _compiles_for_same_shape(splits, pred_splits, name),
        ]
    ):
        values = tf.identity(values)
    return (
        values + _nan_unless(fits, values.dtype) if values.dtype.is_floating else values
    )


def reshape_like(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Like `ensure_same_shape` for any rank; a trailing 1 may be on one side alone."""
    shape, pred_shape = tf.shape(y_true), tf.shape(y_pred)
    missing = tf.size(pred_shape) - tf.size(shape)
    fits = (tf.abs(missing) <= 1) & tf.reduce_all(
        _append_ones(shape, missing) == _append_ones(pred_shape, -missing)
    )
    name = "y_true_and_y_pred_must_have_the_same_shape"
    with tf.control_dependencies(
        [_assert(fits, name, y_true=shape, y_pred=pred_shape)]
    ):
        return tf.reshape(y_true, tf.where(fits, pred_shape, NO_SIZE), name=name)


def expand_rank_like(x: tf.Tensor, y_pred: tf.Tensor, name: str) -> tf.Tensor:
    """Like `ensure_broadcastable` for any rank, up to one dimension more than y_pred's.

    That one must be 1. Dimensions of 1 are appended up to the rank of y_pred.
    """
    shape, pred_shape = tf.shape(x), tf.shape(y_pred)
    missing = tf.size(pred_shape) - tf.size(shape)
    padded, rank = _append_ones(shape, missing), tf.size(pred_shape)
    fits = (
        (missing >= -1)
        & tf.reduce_all((padded[:rank] == 1) | (padded[:rank] == pred_shape))
        & tf.reduce_all(padded[rank:] == 1)
    )
    name = f"{name}_must_be_broadcastable_to_y_pred_from_the_left"
    with tf.control_dependencies([_assert(fits, name, x=shape, y_pred=pred_shape)]):
        return tf.reshape(x, tf.where(fits, padded[:rank], NO_SIZE), name=name)


def _assert(fits: tf.Tensor, name: str, **shapes: tf.Tensor) -> tf.Operation:
    data: list[Any] = [f"{name.replace('_', ' ')}. Received shapes:"]
    for argument, shape in shapes.items():
        data += [argument, shape]
    return tf.debugging.Assert(fits, data)


def _compiles_for_same_shape(x: tf.Tensor, y: tf.Tensor, name: str) -> tf.Tensor:
    # Errors of XLA name the operation. This one, of old, does not broadcast.
    return tf.raw_ops.Select(condition=tf.constant(True), x=x, y=y, name=name)


def _empty(x: tf.Tensor) -> tf.Tensor:
    """A tensor with the sizes of x, followed by 0."""
    return x[..., tf.newaxis][..., :0]


def _nan_unless(fits: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.where(fits, tf.zeros([], dtype), tf.constant(float("nan"), dtype))


def _append_ones(shape: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    return tf.pad(shape, [[0, tf.maximum(count, 0)]], constant_values=1)

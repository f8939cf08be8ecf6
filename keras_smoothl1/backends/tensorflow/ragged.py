"""The values of ragged tensors, after a check that rows are as long as y_pred's."""

from typing import Any

import tensorflow as tf

from keras_smoothl1.backends.tensorflow import shapes


def values(
    x: Any, y_pred: tf.RaggedTensor, name: str, *, per_row: bool = False
) -> tf.Tensor:
    """Returns one value of x for each value of y_pred.

    The rows of x must be as long as those of y_pred. With `per_row`, x may also be a
    number, or have one entry per row.
    """
    if per_row and not isinstance(x, tf.RaggedTensor):
        return _values_of_rows(tf.convert_to_tensor(x), y_pred, name)
    if not isinstance(x, tf.RaggedTensor) or x.ragged_rank != y_pred.ragged_rank:
        raise TypeError(
            f"{name} must be a tf.RaggedTensor with rows as long as those of y_pred. "
            f"Received: {name}={x!r}, y_pred={y_pred!r}"
        )
    splits, pred_splits = (
        tf.concat([tf.cast(s, tf.int64) for s in ragged.nested_row_splits], 0)
        for ragged in (x, y_pred)
    )
    if not tf.executing_eagerly():
        return shapes.ensure_same_rows(x.flat_values, splits, pred_splits, name)
    if splits.numpy().tolist() != pred_splits.numpy().tolist():
        raise TypeError(
            f"{name} must have rows as long as those of y_pred. Received: {name} with "
            f"row splits {splits.numpy()}, y_pred with {pred_splits.numpy()}"
        )
    return x.flat_values


def _values_of_rows(x: tf.Tensor, y_pred: tf.RaggedTensor, name: str) -> tf.Tensor:
    if x.shape.num_elements() == 1:
        return tf.reshape(x, [])
    if x.shape.rank != 1 or not x.shape.is_compatible_with(y_pred.shape[:1]):
        raise TypeError(
            f"{name} must be a number or have one entry per row of y_pred, if it is "
            f"not ragged. Received: {name} of shape {tuple(x.shape)}, y_pred of shape "
            f"{tuple(y_pred.shape)}"
        )
    for splits in y_pred.nested_row_splits:
        x = tf.repeat(x, splits[1:] - splits[:-1])
    return x


def with_rows_of(y_pred: tf.RaggedTensor, losses: tf.Tensor) -> tf.RaggedTensor:
    """Returns the losses as a ragged tensor with the rows of y_pred."""
    return y_pred.with_flat_values(tf.reshape(losses, tf.shape(y_pred.flat_values)))

"""TensorFlow: selects the implementation for a call, and handles unknown shapes."""

from typing import Any

import tensorflow as tf

from keras_smoothl1 import formula
from keras_smoothl1.backends.base import Backend
from keras_smoothl1.backends.tensorflow import gradients, ragged, shapes, sums
from keras_smoothl1.typing import Axes, Beta, Shape, Size, Tensor


class TensorFlowBackend(Backend):
    xp: Any = tf

    def _smooth_l1(self, error: Tensor, beta: Beta | Tensor) -> tf.Tensor:
        if isinstance(beta, float | tuple):
            if gradients.supports(error):
                return gradients.value(error, beta)
            return super()._smooth_l1(error, beta)
        # Reads beta if it is a variable: tf.custom_gradient does not accept variables.
        beta = tf.convert_to_tensor(beta)
        if gradients.supports(error, beta):
            return gradients.value_of_tensor_beta(error, beta)
        return super()._smooth_l1(error, beta)

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
        if not (
            isinstance(beta, float | tuple)
            and not formula.half_underflows(beta, error.dtype.name)
            and gradients.supports(error, weight)
        ):
            return super().weighted_sum(
                y_true, y_pred, beta, weight, axes=axes, divisor=divisor
            )
        if weight is not None:
            weight = tf.cast(weight, error.dtype)
        if isinstance(divisor, int):
            return gradients.weighted_sum(error, beta, weight, axes, max(divisor, 1))
        total = gradients.weighted_sum(error, beta, weight, axes, 1)
        return self.divide_no_nan(total, divisor)

    def weighted_sum_no_grad(
        self, y_true: Tensor, y_pred: Tensor, beta: Beta, weight: Tensor | None = None
    ) -> tf.Tensor:
        if formula.half_underflows(beta, y_pred.dtype.name):
            return super().weighted_sum_no_grad(y_true, y_pred, beta, weight)
        if weight is not None:
            weight = tf.cast(weight, y_pred.dtype)
        return gradients.weighted_sum_no_grad(y_true, y_pred, beta, weight)

    def sum(self, x: Tensor, axes: Axes | None = None) -> tf.Tensor:
        return sums.sum_(x, axes)

    def divide_no_nan(self, x: Tensor, y: Size) -> tf.Tensor:
        if isinstance(y, int):
            return super().divide_no_nan(x, y)
        return tf.math.divide_no_nan(x, tf.cast(y, x.dtype))

    def static_shape(self, x: Tensor) -> Shape | None:
        return None if x.shape.rank is None else tuple(x.shape)

    def static_range(self, x: Tensor) -> tuple[float, float] | None:
        numbers = tf.get_static_value(tf.convert_to_tensor(x))
        return None if numbers is None else super().static_range(numbers)

    def size(self, x: Tensor, axes: Axes | None = None) -> Size:
        if x.shape.rank is None and axes is None:
            return tf.cast(tf.size(x, out_type=tf.int64), x.dtype)
        return super().size(x, axes)

    def ensure_same_shape(self, y_true: Tensor, y_pred: Tensor) -> tf.Tensor:
        return shapes.ensure_same_shape(y_true, y_pred)

    def ensure_broadcastable(self, x: Tensor, y_pred: Tensor, name: str) -> tf.Tensor:
        return shapes.ensure_broadcastable(x, y_pred, name)

    def reshape_like(self, y_true: Tensor, y_pred: Tensor) -> tf.Tensor:
        return shapes.reshape_like(y_true, y_pred)

    def expand_rank_like(self, x: Tensor, y_pred: Tensor, name: str) -> Tensor:
        if x.shape.rank is not None and y_pred.shape.rank is not None:
            return super().expand_rank_like(x, y_pred, name)
        return shapes.expand_rank_like(x, y_pred, name)

    def to_dense(self, x: Any) -> Any:
        if isinstance(x, tf.SparseTensor):
            return tf.sparse.to_dense(tf.sparse.reorder(x))
        return x

    def is_ragged(self, x: Any) -> bool:
        return isinstance(x, tf.RaggedTensor)

    def ragged_values(
        self, x: Any, y_pred: Any, name: str, *, per_row: bool = False
    ) -> tf.Tensor:
        return ragged.values(x, y_pred, name, per_row=per_row)

    def with_rows_of(self, y_pred: Any, losses: Tensor) -> tf.RaggedTensor:
        return ragged.with_rows_of(y_pred, losses)

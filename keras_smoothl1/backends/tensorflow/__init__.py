"""TensorFlow: the loss of each element with its closed-form slope, and unknown shapes.

Weights, sums and second derivatives are left to automatic differentiation. So is every
derivative where TensorFlow loses custom gradients, as in `tf.vectorized_map` and in
saved graphs: the operations of the loss have the same derivatives.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_smoothl1 import formula
from keras_smoothl1.backends.base import Backend, Function
from keras_smoothl1.backends.tensorflow import internals, ragged, shapes, sums
from keras_smoothl1.typing import Axes, Beta, Shape, Size, Tensor

Gradient = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor | None]]


class TensorFlowBackend(Backend):
    xp: Any = tf

    def smooth_l1(self, error: Tensor, beta: Beta | Tensor) -> tf.Tensor:
        is_constant = isinstance(beta, float | tuple)
        if isinstance(beta, tuple) and len(beta) == 1:
            (beta,) = beta  # the rank of error may be 0
        # Reads beta if it is a variable: custom gradients do not accept variables.
        tensor = tf.convert_to_tensor(beta, error.dtype)
        return (_loss if is_constant else _loss_of_tensor_beta)(error, tensor)

    def sum(self, x: Tensor, axes: Axes | None = None) -> tf.Tensor:
        return sums.sum_(x, axes)

    def zero_where_missing(self, error: Tensor, weight: Tensor) -> tf.Tensor:
        return _zero_where_missing(error, weight)

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

    def ensure_last_axis(self, y_pred: Tensor, size: int) -> tf.Tensor:
        return shapes.ensure_last_axis(y_pred, size)

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

    def jit(self, function: Function, *, static_argnames: Sequence[str]) -> Any:
        # Executed one by one, the operations take twice as long. The graph is traced
        # once for each rank, and not for each size or number.
        graph = functools.cache(functools.partial(_graph, function))

        @functools.wraps(function)
        def call(
            y_true: Any, y_pred: Any, beta: Any, *rest: Any, **settings: Any
        ) -> Any:
            # Reads variables: a tape watches the tensor that it has read.
            tensors = [
                x
                if x is None or isinstance(x, float | tuple)
                else tf.convert_to_tensor(x)
                for x in (y_true, y_pred, beta, *rest)
            ]
            # TensorFlow cannot differentiate the tangent of a tf.function.
            if not tf.executing_eagerly() or internals.have_tangents(tensors):
                return function(y_true, y_pred, beta, *rest, **settings)
            number_of_betas = None
            if isinstance(beta, float | tuple):
                numbers = (beta,) if isinstance(beta, float) else beta
                tensors[2] = tf.constant(numbers, y_pred.dtype)
                number_of_betas = len(numbers)
            kinds = tuple(x if x is None else _Kind.of(x) for x in tensors)
            run = graph(kinds, number_of_betas, tuple(settings.items()))
            return run(*(x for x in tensors if x is not None))

        return call


class _Kind(NamedTuple):
    """What the graph of an eager call depends on, for each of its tensors."""

    dtype: tf.DType
    rank: int
    is_watched: bool

    @classmethod
    def of(cls, x: tf.Tensor) -> "_Kind":
        return cls(x.dtype, x.shape.rank, internals.is_watched(x))


def _graph(
    function: Function,
    kinds: tuple[_Kind | None, ...],
    number_of_betas: int | None,
    settings: tuple[tuple[str, Any], ...],
) -> Any:
    """Returns a tf.function of those arguments that are not None.

    Those that are not watched are constants. TensorFlow would compute the gradients
    with respect to all of them otherwise.
    """

    def run(*tensors: tf.Tensor) -> Any:
        given = iter(tensors)
        arguments: list[Any] = []
        for kind in kinds:
            x = None if kind is None else next(given)
            is_constant = kind is not None and not kind.is_watched
            arguments.append(tf.stop_gradient(x) if is_constant else x)
        if number_of_betas is not None:
            # smooth_l1 takes a tuple as constants, and a tensor as differentiable.
            arguments[2] = tuple(tf.unstack(arguments[2], number_of_betas))
        with sums.sizes_are_concrete():
            return function(*arguments, **dict(settings))

    signature = [
        tf.TensorSpec([None] * kind.rank, kind.dtype)
        for kind in kinds
        if kind is not None
    ]
    return tf.function(run, input_signature=signature, autograph=False)


@internals.custom_gradient
def _loss(error: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    losses, slopes = formula.value_and_slope(error, beta, xp=tf)
    return losses, lambda grad_output: (grad_output * slopes, None)


@internals.custom_gradient
def _zero_where_missing(
    error: tf.Tensor, weight: tf.Tensor
) -> tuple[tf.Tensor, Gradient]:
    is_used = (weight != 0) | tf.math.is_finite(error)
    # tf.where would also have to fill a tensor with zeros. The gradient needs no
    # condition: it is multiplied by the weight, which is 0 where an error is replaced.
    errors = tf.math.multiply_no_nan(error, tf.cast(is_used, error.dtype))
    return errors, lambda grad_output: (grad_output, None)


@internals.custom_gradient
def _loss_of_tensor_beta(
    error: tf.Tensor, beta: tf.Tensor
) -> tuple[tf.Tensor, Gradient]:
    def gradient(grad_output: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        slopes = formula.slope(error, beta, xp=tf)
        by_beta = grad_output * formula.value_grad_beta(slopes)
        return grad_output * slopes, sums.sum_to(beta, by_beta)

    # The derivative of formula.value_and_slope by beta is a difference of two numbers
    # as large as the error.
    return formula.value(error, beta, xp=tf), gradient

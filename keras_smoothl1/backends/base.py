"""The interface of a backend, and the reference implementation of each method.

The methods are written with `keras.ops` and run on any backend of Keras. A subclass
overrides methods for its backend. Each fast path has a `supports` function, which is
true only for inputs that the path can handle; all others are passed to `super()`.

Every `weight` is aligned: it has y_pred's rank, with size 1 for broadcast dimensions.
It is boolean if it is only a mask.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import keras
import numpy as np
from keras import ops

from keras_smoothl1 import formula
from keras_smoothl1.typing import Axes, Beta, Shape, Size, Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


class Backend:
    """The operations that differ between backends: losses, sums, properties of tensors.

    `xp` is the array module in which the formula is computed.
    """

    xp: Any = ops

    def smooth_l1(self, error: Tensor, beta: Beta | Tensor) -> Tensor:
        """Returns the loss of each error, differentiable with respect to the error.

        `beta` is a number, a tuple with one number for each entry of the last axis, or
        a tensor. A tensor is a scalar, or has error's rank with size 1 for broadcast
        dimensions; the loss is differentiable with respect to it.

        The reference leaves the slope to automatic differentiation, in any mode.
        """
        return formula.value(error, self.beta_tensor(beta, error), xp=self.xp)

    def beta_tensor(self, beta: Beta | Tensor, error: Tensor) -> Tensor:
        """Returns beta in error's dtype, and a sequence in error's rank, if known."""
        tensor = ops.convert_to_tensor(beta, dtype=error.dtype)
        shape = self.static_shape(error)
        if shape is None or len(tensor.shape) != 1:
            return tensor
        return ops.reshape(tensor, (*(1,) * (len(shape) - 1), *tensor.shape))

    def weighted_losses(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        beta: Beta | Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Returns the loss of each element times its weight.

        An error that is masked, or not finite with weight 0, is replaced by 0 before
        the loss is computed: 0 times NaN is NaN, in the loss and in its gradient. Other
        errors of weight 0 are kept, because the derivative by a weight is the loss.
        """
        error = y_pred - y_true
        if weight is None:
            return self.smooth_l1(error, beta)
        if keras.backend.standardize_dtype(weight.dtype) == "bool":
            return self.smooth_l1(self.where_or_zero(weight, error), beta)
        error = self.zero_where_missing(error, weight)
        return self.smooth_l1(error, beta) * weight

    def weighted_sum(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        beta: Beta | Tensor,
        weight: Tensor | None = None,
        *,
        axes: Axes | None = None,
        divisor: Size = 1,
    ) -> Tensor:
        """Returns the sum of the weighted losses over axes, divided by the divisor.

        If axes is None, all losses are summed. The result is 0 where the divisor is 0.
        The divisor is a scalar, or has the shape of the sum, with axes of size 1.
        """
        losses = self.weighted_losses(y_true, y_pred, beta, weight)
        return self.divide_no_nan(self.sum(losses, axes), divisor)

    def sum(self, x: Tensor, axes: Axes | None = None) -> Tensor:
        """Sums over axes, keeping them with size 1; None sums x to a scalar.

        Overrides must sum 2^24 positive float32 numbers with a relative error of at
        most 2e-6.
        """
        return ops.sum(x, axis=axes, keepdims=axes is not None)

    def where_or_zero(self, condition: Tensor, x: Tensor) -> Tensor:
        """Returns x where the condition is true and 0 elsewhere, even if x is NaN."""
        return self.xp.where(condition, x, self.xp.zeros_like(x))

    def zero_where_missing(self, error: Tensor, weight: Tensor) -> Tensor:
        """Returns the errors, and 0 for those that are not finite and have weight 0."""
        return self.where_or_zero((weight != 0) | ops.isfinite(error), error)

    def divide_no_nan(self, x: Tensor, y: Size) -> Tensor:
        """Returns x / y, and 0 where y is 0. If y is an int, it is a size."""
        if isinstance(y, int):
            # A sum of no elements is 0 already. A float, because JAX's default ints end
            # at 2^31 - 1.
            return x / float(max(y, 1))
        y = ops.cast(y, x.dtype)
        is_zero = y == 0
        quotient = x / self.xp.where(is_zero, self.xp.ones_like(y), y)
        return self.xp.where(is_zero, self.xp.zeros_like(quotient), quotient)

    def static_shape(self, x: Tensor) -> Shape | None:
        """Returns the shape, with None for unknown sizes; None for an unknown rank."""
        return tuple(x.shape)

    def static_range(self, x: Tensor) -> tuple[float, float] | None:
        """Returns the minimum and maximum of x.

        Both are NaN if x contains NaN. None if x is empty or its values are not known.
        """
        numbers = np.asarray(x)
        return (float(numbers.min()), float(numbers.max())) if numbers.size else None

    def compiles_as_constant(self, variable: keras.Variable) -> bool:
        """Whether the function being compiled would treat a variable as a constant."""
        return False

    def as_number(self, x: Tensor) -> Tensor | float:
        """Converts a scalar constant to a number, if this makes the call faster."""
        return x

    def size(self, x: Tensor, axes: Axes | None = None) -> Size:
        """Returns the number of elements of x along axes, or in total.

        If sizes are not known, it is a scalar tensor. It has x's dtype, because
        TensorFlow's int32 sizes could overflow.
        """
        if axes == ():
            return 1
        sizes: Sequence[Any] = ops.shape(x) if None in x.shape else x.shape
        sizes = sizes if axes is None else [sizes[axis] for axis in axes]
        # A list, because torch.compile cannot trace math.prod of a generator.
        return math.prod(
            [n if isinstance(n, int) else ops.cast(n, x.dtype) for n in sizes]
        )

    def ensure_same_shape(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns y_true, and compares unknown sizes with y_pred's at run time."""
        return y_true

    def ensure_broadcastable(self, x: Tensor, y_pred: Tensor, name: str) -> Tensor:
        """Returns x, and checks at run time that unknown sizes are y_pred's or 1.

        x is a weight, mask or beta of y_pred's rank, and `name` is its name in errors.
        """
        return x

    def ensure_last_axis(self, y_pred: Tensor, size: int) -> Tensor:
        """Returns y_pred, and checks at run time that its last axis has this size."""
        return y_pred

    def reshape_like(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Reshapes y_true to the shape of y_pred. Called if either rank is not known.

        A trailing dimension of 1 may be missing on either.
        """
        return ops.reshape(y_true, ops.shape(y_pred))

    def expand_rank_like(self, x: Tensor, y_pred: Tensor, name: str) -> Tensor:
        """Appends dimensions of size 1 to x, up to the rank of y_pred.

        `name` is the name of x in errors at run time.
        """
        missing = len(y_pred.shape) - len(x.shape)
        return x[(..., *(None,) * missing)]

    def to_dense(self, x: Any) -> Any:
        """Converts a sparse tensor to a dense one, and returns anything else as is."""
        return x

    def is_ragged(self, x: Any) -> bool:
        """Whether x is a ragged tensor."""
        return False

    def ragged_values(
        self, x: Any, y_pred: Any, name: str, *, per_row: bool = False
    ) -> Tensor:
        """Returns one value of x for each value of the ragged tensor y_pred.

        Raises a TypeError with `name` if the rows of x and y_pred differ in length.
        With `per_row`, x may also be a number, or have one entry per row.
        """
        raise NotImplementedError("This backend has no ragged tensors.")

    def with_rows_of(self, y_pred: Any, losses: Tensor) -> Any:
        """Returns the losses as a ragged tensor with the rows of y_pred."""
        raise NotImplementedError("This backend has no ragged tensors.")

    def input_dtype(self, x: Any, dtype: str) -> str:
        """Returns the dtype to which x is converted for a computation in dtype."""
        return dtype

    def needs_no_conversion(self, x: Any, dtype: str) -> bool:
        """Whether Keras's conversion of x to dtype would return x itself."""
        return False

    def same_dtype_and_device(self, x: Any, y: Tensor) -> bool:
        """Whether x can be combined with y without a conversion."""
        return False

    def jit(self, function: Function, *, static_argnames: Sequence[str]) -> Function:
        """Compiles the function, if this makes eager calls faster."""
        return function

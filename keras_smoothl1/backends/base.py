"""The interface of a backend, and the reference for each of its methods.

The methods are written in `keras.ops` and run on whatever backend Keras has. A subclass
overrides what its backend can do better, by one rule: a fast path asks a `supports`
function, which lists exactly what the path takes, and leaves all else to `super()`.

Once aligned, a `weight` has y_pred's rank, with 1 for any dimension that it is to be
broadcast over. It is boolean where it stands for a mask alone.
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
    """Losses with their slopes, sums, and what is known of a tensor.

    `xp` is the array module that the formula runs in.
    """

    xp: Any = ops

    def smooth_l1(self, error: Tensor, beta: Beta | Tensor) -> Tensor:
        """Returns the loss of each error, with its closed-form slope for autodiff.

        `beta` is a number, one number for each entry of the last axis, or a tensor, by
        which the loss is differentiable, too: a scalar, or of error's rank, with 1 for
        any dimension that it is broadcast over.
        """
        if isinstance(beta, float | tuple):
            dtype = keras.backend.standardize_dtype(error.dtype)
            if formula.half_underflows(beta, dtype):
                return self._smooth_l1_by_scaling(error, beta, dtype)
        return self._smooth_l1(error, beta)

    def _smooth_l1_by_scaling(self, error: Tensor, beta: Beta, dtype: str) -> Tensor:
        """Like `smooth_l1`, where half of a beta underflows.

        The loss of k times the error with k times beta is k times the loss. From an
        error of 1 on such a beta is far below the last digit of |d| - beta / 2.
        """
        xp, single = self.xp, isinstance(beta, float)
        numbers = beta if isinstance(beta, tuple) else (beta,)
        scales = tuple(
            2.0**60 if formula.half_underflows(n, dtype) else 1.0 for n in numbers
        )
        scaled = tuple(n * k for n, k in zip(numbers, scales, strict=True))
        scale = self.beta_tensor(scales[0] if single else scales, error)
        far = (xp.abs(error) >= 1) & (scale > 1)
        near = self.where_or_zero(~far, error) * scale
        losses = self._smooth_l1(near, scaled[0] if single else scaled)
        return xp.where(far, xp.abs(error), losses / scale)

    def _smooth_l1(self, error: Tensor, beta: Beta | Tensor) -> Tensor:
        """Like `smooth_l1`, for a beta whose half does not underflow.

        This one leaves the slope to autodiff, which can do so in any mode.
        """
        return formula.value(error, self.beta_tensor(beta, error), xp=self.xp)

    def beta_tensor(self, beta: Beta | Tensor, error: Tensor) -> Tensor:
        """Returns beta in error's dtype, and in its rank unless it is a scalar."""
        tensor = ops.convert_to_tensor(beta, dtype=error.dtype)
        shape = self.static_shape(error)
        if not isinstance(beta, tuple) or shape is None:
            return tensor
        return ops.reshape(tensor, (*(1,) * (len(shape) - 1), len(beta)))

    def weighted_losses(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        beta: Beta | Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Returns the loss of each element times its weight.

        An element of weight 0 is taken out before the loss sees it, not multiplied away
        after: 0 times NaN is NaN, in the loss as in its gradient.
        """
        error = y_pred - y_true
        if weight is None:
            return self.smooth_l1(error, beta)
        if keras.backend.standardize_dtype(weight.dtype) == "bool":
            return self.smooth_l1(self.where_or_zero(weight, error), beta)
        losses = self.smooth_l1(self.where_or_zero(weight != 0, error), beta)
        return losses * weight

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
        """Returns the weighted losses summed over axes, or all, over the divisor.

        It is 0 where the divisor is. The divisor is a scalar, or has the shape of the
        sum, with axes of size 1.
        """
        losses = self.weighted_losses(y_true, y_pred, beta, weight)
        return self.divide_no_nan(self.sum(losses, axes), divisor)

    def weighted_sum_no_grad(
        self, y_true: Tensor, y_pred: Tensor, beta: Beta, weight: Tensor | None = None
    ) -> Tensor:
        """Returns the sum of all weighted losses, which nothing differentiates."""
        return self.weighted_sum(y_true, ops.stop_gradient(y_pred), beta, weight)

    def sum(self, x: Tensor, axes: Axes | None = None) -> Tensor:
        """Sums over axes, which stay as size 1, or over all of them to a scalar.

        The sum of 2^24 float32 numbers is right to 2e-6, relative.
        """
        return ops.sum(x, axis=axes, keepdims=axes is not None)

    def where_or_zero(self, condition: Tensor, x: Tensor) -> Tensor:
        """Returns x where the condition holds, and 0 elsewhere, even for NaN."""
        return self.xp.where(condition, x, self.xp.zeros_like(x))

    def divide_no_nan(self, x: Tensor, y: Size) -> Tensor:
        """Returns x / y, and 0 where y is 0. An int is a number of elements."""
        if isinstance(y, int):
            # A sum of nothing is 0 itself. JAX has no ints beyond 2^31.
            return x / float(max(y, 1))
        y = ops.cast(y, x.dtype)
        is_zero = y == 0
        quotient = x / self.xp.where(is_zero, self.xp.ones_like(y), y)
        return self.xp.where(is_zero, self.xp.zeros_like(quotient), quotient)

    def static_shape(self, x: Tensor) -> Shape | None:
        """Returns the shape, with None for unknown sizes; None for an unknown rank."""
        return tuple(x.shape)

    def static_range(self, x: Tensor) -> tuple[float, float] | None:
        """Returns the smallest and the largest number in x, NaN if there is one.

        None where they are not known yet.
        """
        numbers = np.asarray(x)
        return (float(numbers.min()), float(numbers.max())) if numbers.size else None

    def keeps_value_of(self, variable: keras.Variable) -> bool:
        """Whether what is compiled now would keep the value that a variable has."""
        return False

    def as_number(self, x: Tensor) -> Tensor | float:
        """Returns a scalar constant as a number, where that makes a call faster."""
        return x

    def size(self, x: Tensor, axes: Axes | None = None) -> Size:
        """Returns how many entries x has over axes, or in all.

        Where sizes are not known it is a scalar tensor of x's dtype: int32, in which
        TensorFlow counts, would overflow.
        """
        if axes == ():
            return 1
        sizes: Sequence[Any] = ops.shape(x) if None in x.shape else x.shape
        sizes = sizes if axes is None else [sizes[axis] for axis in axes]
        # A list: torch.compile knows no products of generators.
        return math.prod(
            [n if isinstance(n, int) else ops.cast(n, x.dtype) for n in sizes]
        )

    def ensure_same_shape(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns y_true; where sizes are not known, if the step finds y_pred's."""
        return y_true

    def ensure_broadcastable(self, x: Tensor, y_pred: Tensor, name: str) -> Tensor:
        """Returns x, a weight or mask of y_pred's rank called name.

        Where sizes are not known, if the step finds y_pred's or 1.
        """
        return x

    def reshape_like(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns y_true in the shape of y_pred, where either rank is not known.

        A trailing dimension of 1 may be missing on either.
        """
        return ops.reshape(y_true, ops.shape(y_pred))

    def expand_rank_like(self, x: Tensor, y_pred: Tensor, name: str) -> Tensor:
        """Appends dimensions of 1 to x, up to the rank of y_pred.

        Where a rank is not known, x is called name in errors of the step.
        """
        missing = len(y_pred.shape) - len(x.shape)
        return x[(..., *(None,) * missing)]

    def to_dense(self, x: Any) -> Any:
        """Returns a sparse tensor as a dense one, and anything else as it is."""
        return x

    def is_ragged(self, x: Any) -> bool:
        """Whether x is a tensor whose rows differ in length."""
        return False

    def ragged_values(
        self, x: Any, y_pred: Any, name: str, *, per_row: bool = False
    ) -> Tensor:
        """Returns one value of x for each of those of y_pred, which is ragged.

        If x has other rows, it is called name in the TypeError. With `per_row` it may
        also be a number, or have one for each row.
        """
        raise NotImplementedError("This backend has no ragged tensors.")

    def with_rows_of(self, y_pred: Any, losses: Tensor) -> Any:
        """Returns one loss for each value of y_pred as a ragged tensor like y_pred."""
        raise NotImplementedError("This backend has no ragged tensors.")

    def input_dtype(self, x: Any, dtype: str) -> str:
        """Returns the dtype in which x is needed to compute in dtype."""
        return dtype

    def needs_no_conversion(self, x: Any, dtype: str) -> bool:
        """Whether x is known to be what Keras would make of it for dtype."""
        return False

    def same_dtype_and_device(self, x: Any, y: Tensor) -> bool:
        """Whether x is known to need no conversion to go with y."""
        return False

    def jit(self, function: Function, *, static_argnames: Sequence[str]) -> Function:
        """Compiles the function, where that makes an eager call faster."""
        return function

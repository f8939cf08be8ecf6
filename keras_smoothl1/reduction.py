"""From elementwise losses to one number: weights, masks, and what a mean divides by.

Weights and masks belong to elements. They line up with y_pred from the left and are
spread over the dimensions that they lack on the right. A masked element never counts;
an element of weight 0 counts, with a loss of 0. Both have slope 0, whatever their
target or prediction is.

Once lined up, `weight` and `mask` are None or have y_pred's rank, with 1 for any
dimension that they are to be spread over. `mask` is boolean, True for what counts.
"""

import functools
import math
from typing import Any

from keras import ops

from keras_smoothl1 import validation
from keras_smoothl1.keras_internals import scale_loss_for_distribution
from keras_smoothl1.kernels import (
    alike,
    compiled,
    fused,
    kept,
    quotient,
    smooth_l1,
    total,
    weighted_total,
    xp,
)
from keras_smoothl1.validation import Tensor


def reduced_loss(
    y_true: Any,
    y_pred: Any,
    beta: Any,
    sample_weight: Any,
    mask: Any,
    reduction: str | None,
    reduce_dims: validation.ReduceDims,
    keepdims: bool,
    dtype: str,
) -> Tensor:
    """The whole way from what a user passes to the loss, rounded to dtype at its end.

    The settings are as `validation` returns them.
    """
    y_true, y_pred, weight, mask = line_up_all(
        y_true, y_pred, sample_weight, mask, validation.computing_dtype(dtype)
    )
    validation.check_beta_for(beta, y_pred)
    axes = validation.standardize_axes(reduce_dims, y_pred)
    numbers, tensor = (beta, None) if isinstance(beta, float | tuple) else (None, beta)
    return _loss(
        y_true,
        y_pred,
        tensor,
        weight,
        mask,
        beta=numbers,
        reduction=None if reduction == "none" else reduction,
        axes=axes,
        keepdims=keepdims,
        dtype=dtype,
    )


@functools.partial(compiled, static=("beta", "reduction", "axes", "keepdims", "dtype"))
def _loss(
    y_true: Tensor,
    y_pred: Tensor,
    tensor_beta: Tensor | None,
    weight: Tensor | None,
    mask: Tensor | None,
    *,
    beta: validation.Beta | None,
    reduction: str | None,
    axes: tuple[int, ...],
    keepdims: bool,
    dtype: str,
) -> Tensor:
    inputs = (y_true, y_pred, tensor_beta if beta is None else beta, weight, mask)
    if reduction is None and not axes:
        losses = weighted_losses(*inputs)
    elif reduction is None or (axes and mask is not None):
        losses = _reduced_by_groups(*inputs, reduction, axes, keepdims)
    else:
        losses = _reduced(*inputs, reduction, axes)
    return ops.cast(losses, dtype)


def line_up_all(
    y_true: Any, y_pred: Any, sample_weight: Any, mask: Any, dtype: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Returns tensors of y_pred's rank; the weight is 0 where the mask is False."""
    y_pred = validation.convert_to_tensor(y_pred, dtype, "y_pred")
    if not alike(y_true, y_pred):
        y_true = validation.convert_to_tensor(y_true, dtype, "y_true")
    y_true = fit_y_true(y_true, y_pred)
    weight = None
    if mask is not None:
        mask = line_up(ops.convert_to_tensor(mask, dtype="bool"), y_pred, "mask")
    if sample_weight is not None:
        weight = validation.convert_to_tensor(sample_weight, dtype, "sample_weight")
        weight = line_up(weight, y_pred, "sample_weight")
        if mask is not None:
            weight = xp.where(mask, weight, xp.zeros_like(weight))
    return y_true, y_pred, weight, mask


def fit_y_true(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Returns y_true in the shape of y_pred.

    Only a trailing dimension of 1 may be missing, or be there in excess.
    """
    of_true, of_pred = validation.static_shape(y_true), validation.static_shape(y_pred)
    if of_true is None or of_pred is None:
        # TensorFlow alone; it checks the number of elements when it runs.
        return xp.reshape(y_true, xp.shape(y_pred))
    if of_true == of_pred or _may_equal(of_true, of_pred):
        return y_true
    if of_true[-1:] == (1,) and _may_equal(of_true[:-1], of_pred):
        return ops.squeeze(y_true, axis=-1)
    if of_pred[-1:] == (1,) and _may_equal(of_true, of_pred[:-1]):
        return ops.expand_dims(y_true, axis=-1)
    raise ValueError(
        "y_true and y_pred must have the same shape; only a trailing dimension of 1 "
        "may be missing on one of them. "
        f"Received: y_true of shape {of_true}, y_pred of shape {of_pred}"
    )


def _may_equal(a: validation.Shape, b: validation.Shape) -> bool:
    return len(a) == len(b) and all(
        x is None or y is None or x == y for x, y in zip(a, b, strict=True)
    )


def line_up(x: Tensor, y_pred: Tensor, name: str) -> Tensor:
    """Gives a weight or mask y_pred's rank, by dimensions of 1 on the right."""
    shape, of_pred = validation.static_shape(x), validation.static_shape(y_pred)
    if shape is None or of_pred is None:  # only TensorFlow has tensors of unknown rank
        ones = xp.ones([xp.rank(y_pred) - xp.rank(x)], "int32")
        return xp.reshape(x, xp.concat([xp.shape(x), ones], axis=0))
    if len(shape) == len(of_pred) + 1 and shape[-1] == 1:
        x, shape = ops.squeeze(x, axis=-1), shape[:-1]
    fits = len(shape) <= len(of_pred) and all(
        size in (1, None) or of in (size, None)
        for size, of in zip(shape, of_pred, strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name} must line up with y_pred from the left: each of its dimensions "
            "must be y_pred's or 1, and only the last ones may be missing. "
            f"Received: {name} of shape {shape}, y_pred of shape {of_pred}"
        )
    return x[(..., *(None,) * (len(of_pred) - len(shape)))]


def weighted_losses(
    y_true: Tensor,
    y_pred: Tensor,
    beta: Any,
    weight: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """Returns the elementwise losses times their weights.

    What is masked or weighs 0 is taken out before the loss sees it, not multiplied away
    after: 0 times NaN is NaN, in the loss as in its gradient.
    """
    if fused is not None:
        factor = _factor(weight, mask, y_pred)
        if fused.covers(y_true, y_pred, beta, factor):
            return fused.weighted_losses(y_true, y_pred, beta, factor)
    error = y_pred - y_true
    counts = mask if weight is None else weight != 0
    if counts is not None:
        error = kept(error, counts)
    losses = smooth_l1(error, beta)
    return losses if weight is None else losses * weight


def weighted_sum(
    y_true: Tensor,
    y_pred: Tensor,
    beta: Any,
    weight: Tensor | None,
    mask: Tensor | None,
    axes: tuple[int, ...] | None = None,
    divisor: Any = 1,
) -> Tensor:
    """Returns the weighted losses summed over axes, or all of them, over the divisor.

    It is 0 where the divisor is.
    """
    factor = _factor(weight, mask, y_pred)
    if (
        fused is not None
        and axes is None
        and fused.covers(y_true, y_pred, beta, factor)
        and divisor != 0  # known, since these are CPU tensors
    ):
        return fused.weighted_sum(y_true, y_pred, beta, factor, float(divisor))
    number = max(divisor, 1) if isinstance(divisor, int) else 1
    sums = weighted_total(y_pred - y_true, beta, factor, axes, number)
    if sums is None:
        losses = weighted_losses(y_true, y_pred, beta, weight, mask)
        return divide(total(losses, axes), divisor)
    return sums if isinstance(divisor, int) else divide(sums, divisor)


def _factor(weight: Tensor | None, mask: Tensor | None, like: Tensor) -> Tensor | None:
    """What to multiply a loss with: the weight, 0 where masked already, or the mask."""
    if weight is None and mask is not None:
        return ops.cast(mask, like.dtype)
    return weight


def _reduced(
    y_true: Tensor,
    y_pred: Tensor,
    beta: Any,
    weight: Tensor | None,
    mask: Tensor | None,
    reduction: str,
    axes: tuple[int, ...],
) -> Tensor:
    """One number, without a look at the groups that axes make.

    Where nothing is masked they have one size, so that the mean of their means is the
    mean of all, and the sum of their means the sum of all over that size.
    """
    if reduction == "sum":
        size = spread_sum(None, y_pred, axes) if axes else 1
        return weighted_sum(y_true, y_pred, beta, weight, mask, divisor=size)
    by_weight = reduction == "mean_with_sample_weight" and weight is not None
    size = spread_sum(weight if by_weight else mask, y_pred)
    return scale_loss_for_distribution(
        weighted_sum(y_true, y_pred, beta, weight, mask, divisor=size)
    )


def _reduced_by_groups(
    y_true: Tensor,
    y_pred: Tensor,
    beta: Any,
    weight: Tensor | None,
    mask: Tensor | None,
    reduction: str | None,
    axes: tuple[int, ...],
    keepdims: bool,
) -> Tensor:
    """The mean of each group, then what the reduction makes of these."""
    size = spread_sum(mask, y_pred, axes)
    losses = weighted_sum(y_true, y_pred, beta, weight, mask, axes, size)
    if reduction is None:
        return losses if keepdims else ops.squeeze(losses, axis=axes)
    if reduction == "sum":
        return total(losses, None)
    counts = size > 0
    if reduction == "mean_with_sample_weight" and weight is not None:
        counts = divide(spread_sum(weight, y_pred, axes), size)
    return scale_loss_for_distribution(
        divide(total(losses, None), spread_sum(counts, losses))
    )


def spread_sum(x: Tensor, like: Tensor, axes: tuple[int, ...] | None = None) -> Any:
    """Sums a weight or mask over axes, as if it were spread to the shape of `like`.

    None stands for ones. With axes the reduced dimensions stay as size 1, without them
    the sum is a scalar.
    """
    size = _size(like, axes, like.dtype)
    if x is None:
        return size
    own_sum = total(ops.cast(x, like.dtype), axes)
    own = _size(x, axes, like.dtype)
    if isinstance(size, int) and isinstance(own, int):
        return own_sum * float(size // max(own, 1))
    own = ops.convert_to_tensor(own, dtype=like.dtype)
    return own_sum * (size / xp.maximum(own, xp.ones_like(own)))


def _size(x: Tensor, axes: tuple[int, ...] | None, dtype: Any) -> Any:
    """How many entries x has over axes: an int, or a scalar tensor of dtype."""
    shape = validation.static_shape(x)
    if shape is None:  # TensorFlow
        return xp.cast(xp.size(x, out_type="int64"), dtype)
    axes = tuple(range(len(shape))) if axes is None else axes
    sizes = shape if None not in shape else ops.shape(x)
    # int32, in which TensorFlow counts, would overflow. torch.compile knows no sums of
    # generators.
    return math.prod(
        [
            n if isinstance(n, int) else ops.cast(n, dtype)
            for n in map(sizes.__getitem__, axes)
        ]
    )


def divide(sums: Tensor, size: Any) -> Tensor:
    """Returns sums / size, and 0 where there is nothing to average."""
    if isinstance(size, int):
        return sums / float(max(size, 1))  # JAX has no ints beyond 2^31
    return quotient(sums, ops.cast(size, sums.dtype))

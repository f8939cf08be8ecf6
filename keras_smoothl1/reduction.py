"""Weights, masks and reductions of the elementwise losses.

Weights and masks apply to elements. They are aligned with y_pred from the left and
broadcast over the missing dimensions on the right. A masked element is not counted in a
mean. An element with weight 0 is counted with a loss of 0, unless the divisor is the
sum of the weights. Both have slope 0, for any target and prediction.

After alignment, `weight` and `mask` are None or have the rank of y_pred, with size 1
for broadcast dimensions. `mask` is boolean; masked elements are False. A weight is 0
where the mask is False. Without a weight, the mask is used as the weight. It stays
boolean, because a step on JAX took 1.75 times as long with a float32 mask.
"""

import functools
from typing import Any

from keras import ops

from keras_smoothl1 import validation
from keras_smoothl1.backends import backend
from keras_smoothl1.keras_internals import scale_loss_for_distribution
from keras_smoothl1.typing import Axes, Beta, ReduceDims, Shape, Size, Tensor

WEIGHT_HINT = "For one entry per output, use the shape (1, ..., outputs). "
MASK_HINT = (
    "If a layer removes a dimension of its input, its compute_mask() must return None "
    "or a mask without that dimension. "
)


def reduced_loss(
    y_true: Any,
    y_pred: Any,
    sample_weight: Any = None,
    mask: Any = None,
    *,
    beta: Beta | Tensor,
    reduction: str | None = None,
    reduce_dims: ReduceDims,
    keepdims: bool,
    dtype: str,
) -> Tensor:
    """Computes the loss from the arguments of a call, rounded once to dtype.

    The keyword arguments must have been standardized by `validation`.
    """
    received = y_pred
    y_true, y_pred, weight, mask = standardize_inputs(
        y_true, y_pred, sample_weight, mask, dtype=validation.compute_dtype(dtype)
    )
    if isinstance(beta, float | tuple):
        y_pred = validation.check_beta_for(beta, y_pred)
    else:
        beta = align_beta(beta, y_pred, received)
    axes = validation.standardize_axes(reduce_dims, y_pred, received)
    reduction = None if reduction == "none" else reduction
    loss = _loss(
        y_true,
        y_pred,
        beta,
        weight,
        mask,
        reduction=reduction,
        axes=axes,
        keepdims=keepdims,
    )
    if reduction not in (None, "sum"):
        loss = scale_loss_for_distribution(loss)
    if validation.compute_dtype(dtype) != dtype:
        loss = ops.cast(loss, dtype)
    if reduction is None and backend.is_ragged(received):
        return backend.with_rows_of(received, loss)
    return loss


@functools.partial(backend.jit, static_argnames=("reduction", "axes", "keepdims"))
def _loss(
    y_true: Tensor,
    y_pred: Tensor,
    beta: Beta | Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    *,
    reduction: str | None,
    axes: Axes,
    keepdims: bool,
) -> Tensor:
    weight = mask if weight is None else weight
    # The weights whose sum is the divisor of a mean.
    counted = weight if reduction == "mean_with_sample_weight" else mask
    inputs = y_true, y_pred, beta, weight
    if reduction is None and not axes:
        loss = backend.weighted_losses(*inputs)
    elif reduction is None:
        size = broadcast_sum(mask, y_pred, axes)
        loss = backend.weighted_sum(*inputs, axes=axes, divisor=size)
        loss = loss if keepdims else ops.squeeze(loss, axis=axes)
    elif axes and mask is not None:
        # With a mask, the groups that are averaged over axes may count different
        # numbers of elements, so the mean of each is computed.
        size = broadcast_sum(mask, y_pred, axes)
        means = backend.weighted_sum(*inputs, axes=axes, divisor=size)
        loss = backend.sum(means)
        if reduction != "sum":
            counts: Any = broadcast_sum(counted, y_pred, axes)
            mean_weights = backend.divide_no_nan(counts, size)
            loss = backend.divide_no_nan(loss, broadcast_sum(mean_weights, means))
    elif reduction == "sum":
        # For groups of equal size, the sum of their means is the total sum divided by
        # that size.
        size = backend.size(y_pred, axes)
        loss = backend.weighted_sum(*inputs, divisor=size)
    else:
        # For groups of equal size, the mean of their means is the mean of all elements.
        size = broadcast_sum(counted, y_pred)
        loss = backend.weighted_sum(*inputs, divisor=size)
    return loss


@functools.partial(backend.jit, static_argnames=())
def add_batch(
    y_true: Tensor, y_pred: Tensor, beta: Beta, weight: Tensor | None, *state: Tensor
) -> tuple[Tensor, ...]:
    """Adds the weighted losses of a batch, and its weights, to the state of a metric.

    The state is a total with its remainder, and a count with its remainder, without
    gradients.
    """
    total, total_remainder, count, count_remainder = state
    y_pred = ops.stop_gradient(y_pred)
    batch_total = backend.weighted_sum(y_true, y_pred, beta, weight)
    batch_count = ops.cast(broadcast_sum(weight, y_pred), count.dtype)
    return (
        *_add_with_remainder(total, total_remainder, batch_total),
        *_add_with_remainder(count, count_remainder, batch_count),
    )


def _add_with_remainder(
    total: Tensor, remainder: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns total + remainder + x, rounded, and what the rounding has cut off.

    A float32 total alone would not count beyond 2^24. See: Knuth, The Art of Computer
    Programming, volume 2, section 4.2.2, theorem B.
    """
    wide = total + x
    x_added = wide - total
    remainder = remainder + (total - (wide - x_added)) + (x - x_added)
    rounded = wide + remainder
    is_finite = ops.isfinite(rounded)
    rounded = backend.xp.where(is_finite, rounded, wide)
    return rounded, backend.where_or_zero(is_finite, remainder - (rounded - wide))


def standardize_inputs(
    y_true: Any, y_pred: Any, sample_weight: Any, mask: Any, *, dtype: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Returns tensors of y_pred's rank; the weight is 0 where the mask is False.

    Sparse tensors are converted to dense ones, and ragged tensors to their values.
    """
    if backend.is_ragged(y_pred):
        y_true, y_pred, sample_weight, mask = _ragged_to_values(
            y_true, y_pred, sample_weight, mask
        )
    if not backend.needs_no_conversion(y_pred, dtype):
        y_pred = validation.convert_to_tensor(
            y_pred, backend.input_dtype(y_pred, dtype), "y_pred"
        )
    y_true = squeeze_or_expand(_to_tensor_like(y_true, y_pred, dtype, "y_true"), y_pred)
    weight = sample_weight
    if mask is not None:
        mask = validation.convert_to_tensor(mask, "bool", "mask")
        mask = align(mask, y_pred, "mask", MASK_HINT)
    if weight is not None:
        weight = _to_tensor_like(weight, y_pred, dtype, "sample_weight")
        weight = align(weight, y_pred, "sample_weight", WEIGHT_HINT)
        if mask is not None:
            weight = backend.xp.where(mask, weight, backend.xp.zeros_like(weight))
    return y_true, y_pred, weight, mask


def _ragged_to_values(
    y_true: Any, y_pred: Any, sample_weight: Any, mask: Any
) -> tuple[Any, Tensor, Any, Any]:
    """Returns the values of ragged tensors. y_pred gets at least two axes."""
    weight, mask = (
        None if x is None else backend.ragged_values(x, y_pred, name, per_row=True)
        for x, name in ((sample_weight, "sample_weight"), (mask, "mask"))
    )
    y_true = backend.ragged_values(y_true, y_pred, "y_true")
    y_pred = backend.ragged_values(y_pred, y_pred, "y_pred")
    # If the axis of all values were the last one, a sequence of betas could match its
    # size by accident.
    y_pred = ops.expand_dims(y_pred, -1) if len(y_pred.shape) == 1 else y_pred
    return y_true, y_pred, weight, mask


def _to_tensor_like(x: Any, y_pred: Tensor, dtype: str, name: str) -> Tensor:
    if backend.same_dtype_and_device(x, y_pred):
        return x
    return validation.convert_to_tensor(x, backend.input_dtype(x, dtype), name)


def squeeze_or_expand(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Returns y_true in the shape of y_pred.

    Only a trailing dimension of 1 is added or removed.
    """
    true_shape, pred_shape = backend.static_shape(y_true), backend.static_shape(y_pred)
    if true_shape is None or pred_shape is None:
        return backend.reshape_like(y_true, y_pred)
    if true_shape == pred_shape and None not in true_shape:
        return y_true
    shape = true_shape
    if len(shape) == len(pred_shape) + 1 and shape[-1] in (1, None):
        y_true, shape = ops.squeeze(y_true, axis=-1), shape[:-1]
    elif len(shape) + 1 == len(pred_shape):
        y_true, shape = ops.expand_dims(y_true, axis=-1), (*shape, 1)
    if not _may_equal(shape, pred_shape):
        raise ValueError(
            "y_true and y_pred must have the same shape, except that a trailing "
            "dimension of 1 may be missing on one of them. They are not broadcast; "
            "reshape y_true first. "
            f"Received: y_true of shape {true_shape}, y_pred of shape {pred_shape}"
        )
    if None in shape or None in pred_shape:
        return backend.ensure_same_shape(y_true, y_pred)
    return y_true


def _may_equal(a: Shape, b: Shape) -> bool:
    return len(a) == len(b) and all(
        x is None or y is None or x == y for x, y in zip(a, b, strict=True)
    )


def align(x: Tensor, y_pred: Tensor, name: str, hint: str) -> Tensor:
    """Aligns weight, mask or beta with y_pred, by adding or removing trailing 1s."""
    shape, pred_shape = backend.static_shape(x), backend.static_shape(y_pred)
    if shape is None or pred_shape is None:
        return backend.expand_rank_like(x, y_pred, name)
    if len(shape) == len(pred_shape) + 1 and shape[-1] in (1, None):
        x, shape = ops.squeeze(x, axis=-1), shape[:-1]
    # Equal sizes first: torch cannot compare a size that depends on data with 1.
    fits = len(shape) <= len(pred_shape) and all(
        pred_size in (size, None) or size in (1, None)
        for size, pred_size in zip(shape, pred_shape, strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name} must be broadcastable to y_pred from the left: each of its "
            "dimensions must equal that of y_pred or 1, and only trailing dimensions "
            "may be missing. "
            f"{hint}Received: {name} of shape {shape}, y_pred of shape {pred_shape}"
        )
    x = backend.expand_rank_like(x, y_pred, name)
    if None in shape or None in pred_shape:
        return backend.ensure_broadcastable(x, y_pred, name)
    return x


def align_beta(beta: Tensor, y_pred: Tensor, received: Any) -> Tensor:
    """Expands a beta to y_pred's rank, unless it is a scalar.

    `received` is y_pred before its conversion to a dense tensor.
    """
    if backend.static_shape(beta) == ():
        return beta
    if backend.is_ragged(received):
        beta = backend.ragged_values(beta, received, "beta", per_row=True)
    hint = (
        "For one beta per output, pass a list of numbers or a tensor of shape "
        "(1, ..., outputs). "
    )
    return align(beta, y_pred, "beta", hint)


def broadcast_sum(x: Tensor | None, y: Tensor, axes: Axes | None = None) -> Size:
    """Sums a weight or mask over axes, as if it were broadcast to the shape of y.

    If x is None, each element counts as 1. The axes keep size 1; if axes is None, the
    sum is a scalar.
    """
    size = backend.size(y, axes)
    if x is None:
        return size
    x = ops.cast(x, validation.compute_dtype_of(y))
    own_sum, own_size = backend.sum(x, axes), backend.size(x, axes)
    if isinstance(size, int) and isinstance(own_size, int):
        return own_sum * float(size // max(own_size, 1))
    own_size = ops.convert_to_tensor(own_size, dtype=x.dtype)
    ones = backend.xp.ones_like(own_size)
    return own_sum * (size / backend.xp.maximum(own_size, ones))

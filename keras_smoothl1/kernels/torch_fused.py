"""Eager PyTorch on a CPU: losses and gradient in one walk over the tensors.

One operation after another sweeps a large tensor through memory a dozen times and
allocates each time, which made the loss ten times as slow as torch's own kernel. Here
the tensors are walked in pieces that stay in the cache, with the operations of
`reference`, and the gradient is written into the one buffer that is handed on.
`weighted_losses` must match `torch.smooth_l1` times the weight, and `weighted_sum` the
`torch.total` of that. Whatever they do not cover is computed by these.
"""

import math
from typing import Any

import torch

from keras_smoothl1.kernels import torch_native
from keras_smoothl1.kernels.torch import Slope
from keras_smoothl1.validation import Beta, Tensor

PIECE = 2**20  # elements: 4 MB, large enough for torch to use its threads


def covers(y_true: Tensor, y_pred: Tensor, beta: Any, weight: Tensor | None) -> bool:
    """Whether the walk can take these."""
    given = (y_true,) if weight is None else (y_true, weight)
    return (
        isinstance(beta, float | tuple)
        and y_pred.device.type == "cpu"
        and y_pred.numel() > 0
        and not any(x.requires_grad or x.device.type != "cpu" for x in given)
        and not torch.compiler.is_compiling()
        # torch.func and torch.vmap cannot go through operations with out=.
        and not torch._C._are_functorch_transforms_active()
        and (weight is None or _weighs_rows(weight, y_pred, beta))
    )


def _weighs_rows(weight: Tensor, y_pred: Tensor, beta: Beta) -> bool:
    """Whether each entry of weight is for one row of neighbours, not much too long."""
    own, shape = tuple(weight.shape), tuple(y_pred.shape)
    rank = len(own)
    while rank and own[rank - 1] == 1:
        rank -= 1
    fits = isinstance(beta, float) or rank < len(own)
    rows = math.prod(own)
    return fits and own[:rank] == shape[:rank] and y_pred.numel() <= rows * PIECE * 16


def weighted_losses(
    y_true: Tensor, y_pred: Tensor, beta: Beta, weight: Tensor | None
) -> Tensor:
    """The elementwise losses times their weights: 0 where these are, even of NaN."""
    return _weighted(y_pred, (y_true, weight, beta, None))


def weighted_sum(
    y_true: Tensor, y_pred: Tensor, beta: Beta, weight: Tensor | None, divisor: float
) -> Tensor:
    """Their sum, divided by divisor."""
    return _weighted(y_pred, (y_true, weight, beta, divisor))


def _weighted(y_pred: Tensor, given: tuple[Any, ...]) -> Tensor:
    if torch.is_grad_enabled() and y_pred.requires_grad:
        result: Tensor = _Weighted.apply(y_pred, given)
        return result
    return _walk(False, y_pred, *given)[0]


class _Weighted(torch.autograd.Function):
    # Two arguments, since each costs a microsecond or two.
    @staticmethod
    def forward(ctx: Any, y_pred: Tensor, given: tuple[Any, ...]) -> Tensor:
        y_true, weight, *ctx.numbers = given
        ctx.save_for_backward(y_pred, y_true, weight)
        result, ctx.gradient = _walk(True, y_pred, *given)
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        # Handed on and not kept: autograd takes a buffer that nobody else holds without
        # a copy. A second backward pass, or one to be differentiated, starts again.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None or torch.is_grad_enabled():
            return upstream * _differentiable(*ctx.saved_tensors, *ctx.numbers), None
        if upstream.dim() == 0 and float(upstream) == 1:
            return gradient, None
        return gradient.mul_(upstream), None


def _differentiable(
    y_pred: Tensor,
    y_true: Tensor,
    weight: Tensor | None,
    beta: Beta,
    divisor: float | None,
) -> Tensor:
    error = y_pred - y_true
    if weight is not None:
        error = torch.where(weight != 0, error, 0)
    slope = Slope.apply(error, error.new_tensor(beta))
    if weight is not None:
        slope = slope * weight
    return slope if divisor is None else slope / divisor


def _walk(
    wanted: bool,
    y_pred: Tensor,
    y_true: Tensor,
    weight: Tensor | None,
    beta: Beta,
    divisor: float | None,
) -> tuple[Tensor, Tensor | None]:
    """The weighted losses, or their sum over divisor; and the gradient, if wanted."""
    y_pred = y_pred.detach()
    if weight is None and divisor is not None and isinstance(beta, float):
        found = torch_native.weighted_sum(y_pred, y_true, beta, divisor, wanted)
        if found is not None:
            return found
    if y_pred.numel() <= PIECE and isinstance(beta, float):
        error = y_pred - y_true
        slope = _to_losses_and_slopes(error, beta, weight)
        if divisor is None:
            return error, slope
        return error.sum().div_(divisor), slope.mul_(1 / divisor) if wanted else None

    y_true, y_pred = y_true.contiguous(), y_pred.contiguous()
    (rows, width), bounds = _in_rows(y_pred, weight, beta)
    step = max(1, PIECE // width)
    # The errors become the losses or, where these are only summed, the gradient.
    kept = (wanted or divisor is None, wanted and divisor is None)
    errors, slopes = (
        y_pred.new_empty(rows if keep else min(rows, step), width) for keep in kept
    )
    total = 0.0
    for start in range(0, rows, step):
        own = slice(start, start + step)
        piece = y_pred.view(rows, width)[own]
        error, slope = (
            x[own] if keep else x[: len(piece)]
            for x, keep in zip((errors, slopes), kept, strict=True)
        )
        torch.sub(piece, y_true.view(rows, width)[own], out=error)
        piece_weight = None if weight is None else weight.reshape(rows, 1)[own]
        _to_losses_and_slopes(error, bounds, piece_weight, slope)
        if divisor is not None:
            total += float(error.sum())
            if wanted:
                torch.mul(slope, 1 / divisor, out=error)
    if divisor is None:
        return errors.view_as(y_pred), slopes.view_as(y_pred) if wanted else None
    loss = y_pred.new_tensor(total / divisor)
    return loss, errors.view_as(y_pred) if wanted else None


def _in_rows(
    y_pred: Tensor, weight: Tensor | None, beta: Beta
) -> tuple[tuple[int, int], Any]:
    """The number and width of the rows to walk in, and beta for each entry of one.

    A row has one weight, and whole sets of betas: by many of them, since to repeat a
    few numbers takes long.
    """
    size = y_pred.numel()
    if weight is not None:
        shape = weight.numel(), size // weight.numel()
    elif isinstance(beta, float):
        shape = size, 1
    else:
        width = len(beta) * math.gcd(size // len(beta), 256)
        shape = size // width, width
    if isinstance(beta, float):
        return shape, beta
    return shape, y_pred.new_tensor(beta).repeat(shape[1] // len(beta))


def _to_losses_and_slopes(
    error: Tensor, beta: Any, weight: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Makes weighted losses of the errors; returns the weighted slopes, in out."""
    if weight is not None:
        error.masked_fill_(weight == 0, 0)
    slope = torch.clamp(error, -beta, beta, out=out)
    error.sub_(slope, alpha=0.5)  # d - c / 2
    slope.div_(beta)
    error.mul_(slope)
    if weight is not None:
        error.mul_(weight)
        slope.mul_(weight)
    return slope

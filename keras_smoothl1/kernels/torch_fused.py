"""Eager PyTorch on a CPU: losses and gradient in one walk over the tensors.

One operation after another sweeps a large tensor through memory a dozen times and
allocates each time, which made the loss ten times as slow as torch's own kernel. Here
the operations of `reference` overwrite their inputs, on pieces of large tensors that
stay in the cache, and the gradient is handed on in the one buffer that is made.
`weighted_losses` must match `torch.smooth_l1` times the weight, and `weighted_sum` the
`torch.total` of that. Whatever they do not cover is computed by these.
"""

import math
from typing import Any

import torch
from torch.autograd import forward_ad

from keras_smoothl1.kernels import torch_native
from keras_smoothl1.kernels.torch import Slope
from keras_smoothl1.validation import Beta, Tensor

PIECE = torch_native.PIECE
_transformed: Any = torch._C._are_functorch_transforms_active


def covers(y_true: Tensor, y_pred: Tensor, beta: Any, weight: Tensor | None) -> bool:
    """Whether the walk can take these."""
    given = (y_true,) if weight is None else (y_true, weight)
    return (
        isinstance(beta, float | tuple)
        and y_pred.device.type == "cpu"
        and y_pred.numel() > 0
        and not any(x.requires_grad or x.device.type != "cpu" for x in given)
        and not torch.compiler.is_compiling()
        # torch.func, torch.vmap and forward mode cannot go through what overwrites.
        and not _transformed()
        and forward_ad._current_level < 0
        and (weight is None or _weighs_rows(weight, y_pred, beta))
    )


def _weighs_rows(weight: Tensor, y_pred: Tensor, beta: Beta) -> bool:
    """Whether each weight is for a row of neighbours, with whole sets of betas."""
    own, shape = tuple(weight.shape), tuple(y_pred.shape)
    rank = len(own)
    while rank and own[rank - 1] == 1:
        rank -= 1
    return own[:rank] == shape[:rank] and (isinstance(beta, float) or rank < len(own))


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
        if gradient is None or torch.is_grad_enabled() or _is_batched(upstream):
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
    return slope if divisor is None else slope * (1 / divisor)


def _is_batched(x: Tensor) -> bool:
    """Whether x is many tensors, under a vmap of the backward pass."""
    return bool(_transformed() or torch._C._functorch.is_legacy_batchedtensor(x))


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
    if isinstance(beta, float):
        if weight is None and divisor is not None:
            found = torch_native.plain_sum(y_pred, y_true, beta, divisor, wanted)
            if found is not None:
                return found
        if y_pred.numel() <= PIECE:
            error = y_pred - y_true
            slope = _to_losses_and_slopes(error, beta, weight)
            if divisor is None:
                return error, slope
            return error.sum().div_(divisor), slope.mul_(1 / divisor)
    y_pred, y_true = y_pred.contiguous(), y_true.contiguous()
    if divisor is None:
        return _losses_in_pieces(wanted, y_pred, y_true, weight, beta)
    return _sum_in_pieces(wanted, y_pred, y_true, weight, beta, divisor)


def _losses_in_pieces(
    wanted: bool, y_pred: Tensor, y_true: Tensor, weight: Tensor | None, beta: Beta
) -> tuple[Tensor, Tensor | None]:
    losses = torch.empty_like(y_pred)
    slopes = torch.empty_like(y_pred) if wanted else None
    given, bounds = _in_pieces((y_pred, y_true, losses, slopes), y_pred, weight, beta)
    for piece, target, loss, slope, piece_weight in given:
        torch.sub(piece, target, out=loss)
        _to_losses_and_slopes(loss, bounds, piece_weight, slope)
    return losses, slopes


def _sum_in_pieces(
    wanted: bool,
    y_pred: Tensor,
    y_true: Tensor,
    weight: Tensor | None,
    beta: Beta,
    divisor: float,
) -> tuple[Tensor, Tensor | None]:
    gradient = torch.empty_like(y_pred) if wanted else None
    given, bounds = _in_pieces((y_pred, y_true, gradient), y_pred, weight, beta)
    scratch = torch.empty_like(given[0][0])
    total = 0.0
    for piece, target, out, piece_weight in given:
        # Where the gradient will stand there is room for the errors and losses.
        error = torch.sub(piece, target, out=out)
        slope = scratch[: len(piece)]
        _to_losses_and_slopes(error, bounds, piece_weight, slope)
        total += float(error.sum())
        if out is not None:
            torch.mul(slope, 1 / divisor, out=out)
    return y_pred.new_tensor(total / divisor), gradient


def _in_pieces(
    tensors: tuple[Tensor | None, ...],
    y_pred: Tensor,
    weight: Tensor | None,
    beta: Beta,
) -> tuple[list[tuple[Any, ...]], Any]:
    """The pieces of tensors and weight, as rows, and beta for each entry of a row.

    A row has one weight, and whole sets of betas: by many of them, since to repeat a
    few numbers takes long.
    """
    size = y_pred.numel()
    bounds: Any = beta
    if weight is not None:
        weight = _spread_until_rows_are_short(weight, y_pred).reshape(-1, 1)
        width = size // len(weight)
    elif isinstance(beta, float):
        width = 1
    else:
        width = len(beta) * math.gcd(size // len(beta), 256)
    if isinstance(beta, tuple):
        bounds = y_pred.new_tensor(beta).repeat(width // len(beta))
    step = max(1, PIECE // width)
    count = -(-size // (width * step))
    split = [
        [None] * count if x is None else x.view(-1, width).split(step) for x in tensors
    ]
    split.append([None] * count if weight is None else weight.split(step))
    return list(zip(*split, strict=True)), bounds


def _spread_until_rows_are_short(weight: Tensor, y_pred: Tensor) -> Tensor:
    shape = list(weight.shape)
    for axis, size in enumerate(y_pred.shape[:-1]):
        if y_pred.numel() <= math.prod(shape) * PIECE:
            break
        shape[axis] = size
    return weight.expand(shape)


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

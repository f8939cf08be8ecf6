"""Eager PyTorch on a CPU: losses and gradient in one pass over the tensors.

Executed one by one, the operations of the loss read and write a large tensor in memory
a dozen times, with an allocation each time. That takes ten times as long as torch's own
kernel. Here the operations work in place, on blocks of large tensors that fit in the
cache. For a sum, the buffer that will hold the gradient also holds errors and losses.
`weighted_losses` and `weighted_sum` must match the reference in `Backend`, which is
used for all inputs that `supports` rejects.
"""

import math
from typing import Any

import torch

from keras_smoothl1.backends.torch import aten, autograd, internals
from keras_smoothl1.typing import Beta

BLOCK_SIZE = aten.BLOCK_SIZE


def supports(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    beta: Beta | torch.Tensor,
    weight: torch.Tensor | None,
) -> bool:
    """Whether these are plain tensors, of which only y_pred may require a gradient.

    Each weight must apply to one contiguous run of elements. With several betas, this
    run must span at least the whole last axis.
    """
    return (
        isinstance(beta, float | tuple)
        and internals.no_mode_is_active()
        and internals.is_plain_cpu_tensor(y_pred)
        and internals.is_plain_cpu_tensor(y_true)
        and y_pred.dtype in aten.LIMITS
        and y_true.dtype is y_pred.dtype
        and not y_true.requires_grad
        and y_pred.numel() > 0
        and (
            weight is None
            or (
                internals.is_plain_cpu_tensor(weight)
                and not weight.requires_grad
                and _has_rows(weight, y_pred, beta)
            )
        )
    )


def _has_rows(weight: torch.Tensor, y_pred: torch.Tensor, beta: Beta) -> bool:
    weight_shape, shape = tuple(weight.shape), tuple(y_pred.shape)
    rank = len(weight_shape)
    while rank and weight_shape[rank - 1] == 1:
        rank -= 1
    whole_sets = isinstance(beta, float) or rank < len(weight_shape)
    return whole_sets and weight_shape[:rank] == shape[:rank]


def weighted_losses(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    *,
    beta: Beta,
    weight: torch.Tensor | None,
) -> torch.Tensor:
    if weight is None and isinstance(beta, float) and aten.supports_losses(beta):
        losses, are_exact = aten.losses(y_true, y_pred, beta=beta)
        if are_exact:
            return losses
    return _weighted(y_pred, (y_true, weight, beta, None))


def weighted_sum(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    *,
    beta: Beta,
    weight: torch.Tensor | None,
    divisor: float,
) -> torch.Tensor:
    if isinstance(beta, float) and aten.supports_one_block(y_pred, beta, weight):
        loss, is_exact = aten.loss_of_one_block(
            y_true, y_pred, weight, beta=beta, divisor=divisor
        )
        if is_exact:
            return loss
    return _weighted(y_pred, (y_true, weight, beta, divisor))


def _weighted(y_pred: torch.Tensor, arguments: tuple[Any, ...]) -> torch.Tensor:
    if torch.is_grad_enabled() and y_pred.requires_grad:
        return _Weighted.apply(y_pred, arguments)
    return _forward(False, y_pred, *arguments)[0]


class _Weighted(torch.autograd.Function):
    # Only two arguments, because each one costs a microsecond or two.
    @staticmethod
    def forward(
        ctx: Any, y_pred: torch.Tensor, arguments: tuple[Any, ...]
    ) -> torch.Tensor:
        y_true, weight, *ctx.numbers = arguments
        ctx.save_for_backward(y_pred, y_true, weight)
        result, ctx.gradient = _forward(True, y_pred, *arguments)
        return result

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        # The reference to the gradient is dropped, because autograd reuses a buffer
        # without a copy only if nothing else refers to it. A second backward pass, or
        # one that is differentiated, computes the gradient again.
        gradient, ctx.gradient = ctx.gradient, None
        if (
            gradient is None
            or torch.is_grad_enabled()
            or not internals.no_mode_is_active()
            or not internals.is_plain_cpu_tensor(grad_output)
        ):
            slope = autograd.weighted_slope(*ctx.saved_tensors, *ctx.numbers)
            return grad_output * slope, None
        if grad_output.dim() == 0 and float(grad_output) == 1:
            return gradient, None
        return gradient.mul_(grad_output), None


def _forward(
    needs_grad: bool,
    y_pred: torch.Tensor,
    y_true: torch.Tensor,
    weight: torch.Tensor | None,
    beta: Beta,
    divisor: float | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns the weighted losses, or their sum / divisor, and the gradient."""
    y_pred = y_pred.detach()
    if isinstance(beta, float):
        if weight is None and divisor is not None and aten.supports_blocks(y_pred):
            total, gradient = aten.loss_sum(
                y_true, y_pred, beta=beta, divisor=divisor, needs_grad=needs_grad
            )
            if aten.is_exact(total, beta, y_pred.numel(), y_pred):
                return y_pred.new_tensor(total / divisor), gradient
        if y_pred.numel() <= BLOCK_SIZE:
            error = y_pred - y_true
            slope = _to_losses_and_slopes(error, beta, weight)
            if divisor is None:
                return error, slope
            gradient = slope.mul_(1 / divisor) if needs_grad else None
            return error.sum().div_(divisor), gradient
    y_pred, y_true = y_pred.contiguous(), y_true.contiguous()
    if divisor is None:
        return _losses_in_blocks(needs_grad, y_pred, y_true, weight, beta)
    return _sum_in_blocks(needs_grad, y_pred, y_true, weight, beta, divisor)


def _losses_in_blocks(
    needs_grad: bool,
    y_pred: torch.Tensor,
    y_true: torch.Tensor,
    weight: torch.Tensor | None,
    beta: Beta,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    losses = torch.empty_like(y_pred)
    slopes = torch.empty_like(y_pred) if needs_grad else None
    blocks, bounds = _blocks((y_pred, y_true, losses, slopes), y_pred, weight, beta)
    for pred_block, true_block, loss, slope, weight_block in blocks:
        torch.sub(pred_block, true_block, out=loss)
        _to_losses_and_slopes(loss, bounds, weight_block, slope)
    return losses, slopes


def _sum_in_blocks(
    needs_grad: bool,
    y_pred: torch.Tensor,
    y_true: torch.Tensor,
    weight: torch.Tensor | None,
    beta: Beta,
    divisor: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    gradient = torch.empty_like(y_pred) if needs_grad else None
    blocks, bounds = _blocks((y_pred, y_true, gradient), y_pred, weight, beta)
    scratch = torch.empty_like(blocks[0][0])
    total = 0.0
    for pred_block, true_block, out, weight_block in blocks:
        # Errors and losses of a block are written to the buffer of its gradient first.
        error = torch.sub(pred_block, true_block, out=out)
        slope = scratch[: len(pred_block)]
        _to_losses_and_slopes(error, bounds, weight_block, slope)
        total += float(error.sum())
        if out is not None:
            torch.mul(slope, 1 / divisor, out=out)
    return y_pred.new_tensor(total / divisor), gradient


def _blocks(
    tensors: tuple[torch.Tensor | None, ...],
    y_pred: torch.Tensor,
    weight: torch.Tensor | None,
    beta: Beta,
) -> tuple[list[tuple[Any, ...]], Any]:
    """Returns the blocks of the tensors and the weight, and beta for a row of a block.

    A block is a matrix. All elements of a row share one weight. With several betas, a
    row has many complete sets of them, because broadcasting a short vector is slow.
    """
    size = y_pred.numel()
    bounds: Any = beta
    if weight is not None:
        weight = _broadcast_to_short_rows(weight, y_pred).reshape(-1, 1)
        width = size // len(weight)
    elif isinstance(beta, float):
        width = 1
    else:
        width = len(beta) * math.gcd(size // len(beta), 256)
    if isinstance(beta, tuple):
        bounds = y_pred.new_tensor(beta).repeat(width // len(beta))
    step = max(1, BLOCK_SIZE // width)
    count = -(-size // (width * step))
    split = [
        [None] * count if x is None else x.view(-1, width).split(step) for x in tensors
    ]
    split.append([None] * count if weight is None else weight.split(step))
    return list(zip(*split, strict=True)), bounds


def _broadcast_to_short_rows(
    weight: torch.Tensor, y_pred: torch.Tensor
) -> torch.Tensor:
    """Broadcasts a weight over the first axes until a row fits into a block."""
    shape = list(weight.shape)
    for axis, size in enumerate(y_pred.shape[:-1]):
        if y_pred.numel() <= math.prod(shape) * BLOCK_SIZE:
            break
        shape[axis] = size
    return weight.expand(shape)


def _to_losses_and_slopes(
    error: torch.Tensor,
    beta: Any,
    weight: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Replaces errors with weighted losses in place; returns the weighted slopes."""
    if weight is not None:
        error.masked_fill_(weight == 0, 0)
    slope = torch.clamp(error, -beta, beta, out=out)
    error.sub_(slope, alpha=0.5)  # d - c / 2
    slope.div_(beta)
    error.mul_(slope)
    # A boolean weight is a mask, and masked elements are 0 already.
    if weight is not None and weight.dtype is not torch.bool:
        error.mul_(weight)
        slope.mul_(weight)
    return slope

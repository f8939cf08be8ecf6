"""Eager PyTorch on a CPU: losses and gradient in one pass over the tensors.

Executed one by one, the operations of the loss read and write a large tensor in memory
a dozen times, with an allocation each time. That takes ten times as long as torch's own
kernel. Here the operations work in place, on blocks of large tensors that fit in the
cache. The results must match the reference in `Backend`, which is used for all inputs
that `supports` rejects.
"""

import math
from typing import Any

import torch

from keras_smoothl1.backends.torch import autograd, internals
from keras_smoothl1.typing import Beta

BLOCK_SIZE = 2**20  # elements: 4 MB, which fit in the cache and keep the threads busy


def supports(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    beta: Beta | torch.Tensor,
    weight: torch.Tensor | None,
    divisor: int | torch.Tensor | None,
) -> bool:
    """Whether these are plain tensors of one dtype, and beta consists of numbers.

    Each weight must apply to one contiguous run of elements. With several betas, this
    run must span at least the whole last axis.
    """
    return (
        isinstance(beta, float | tuple)
        and internals.common_device(y_pred, y_true, weight) == "cpu"
        and y_pred.dtype is y_true.dtype
        and y_pred.dtype in (torch.float32, torch.float64)
        and (weight is None or _has_rows(weight, y_pred, beta))
        and (divisor is None or float(divisor) != 0)
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
    beta: Beta,
    weight: torch.Tensor | None,
    divisor: int | torch.Tensor | None,
) -> torch.Tensor:
    """Returns the losses, or their sum / divisor if there is a divisor."""
    arguments = y_true, weight, beta, None if divisor is None else float(divisor)
    if torch.is_grad_enabled() and y_pred.requires_grad:
        return _Weighted.apply(y_pred, arguments)
    return _losses_and_gradient(False, y_pred, *arguments)[0]


class _Weighted(torch.autograd.Function):
    # Only two arguments, because each one costs a microsecond or two.
    @staticmethod
    def forward(
        ctx: Any, y_pred: torch.Tensor, arguments: tuple[Any, ...]
    ) -> torch.Tensor:
        y_true, weight, *ctx.numbers = arguments
        ctx.save_for_backward(y_pred, y_true, weight)
        ctx.is_weighted = weight is not None and weight.dtype is not torch.bool
        result, ctx.gradient = _losses_and_gradient(True, y_pred, *arguments)
        return result

    @staticmethod
    def backward(
        ctx: Any, grad_output: torch.Tensor
    ) -> tuple[torch.Tensor | None, None]:
        # The reference to the gradient is dropped, because autograd reuses a buffer
        # without a copy only if nothing else refers to it. A second backward pass, or
        # one that is differentiated, computes the gradient again.
        gradient, ctx.gradient = ctx.gradient, None
        beta, divisor = ctx.numbers
        is_first = (
            gradient is not None
            and not torch.is_grad_enabled()
            and internals.no_mode_is_active()
            and internals.plain_device(grad_output) == "cpu"
        )
        # A gradient that has become subnormal would be multiplied inexactly by a number
        # greater than 1.
        if is_first and divisor is not None:
            number = float(grad_output)
            if abs(number) <= 1:
                return gradient if number == 1 else gradient.mul_(number), None
            if math.isfinite(number):
                arguments = *ctx.saved_tensors, beta, divisor / number
                return _losses_and_gradient(True, *arguments)[1], None
        elif is_first and (not ctx.is_weighted or _is_at_most_one(grad_output)):
            return gradient.mul_(grad_output), None
        arguments = *ctx.saved_tensors, beta, divisor
        return autograd.gradient(grad_output, *arguments), None


def _is_at_most_one(x: torch.Tensor) -> bool:
    smallest, largest = torch.aminmax(x)
    return float(smallest) >= -1 and float(largest) <= 1


def _losses_and_gradient(
    needs_grad: bool,
    y_pred: torch.Tensor,
    y_true: torch.Tensor,
    weight: torch.Tensor | None,
    beta: Beta,
    divisor: float | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns the losses, or their sum / divisor, and the gradient if it is needed."""
    y_pred = y_pred.detach()
    if isinstance(beta, float) and y_pred.numel() <= BLOCK_SIZE:
        losses, slopes = _losses_and_slopes(y_pred, y_true, weight, beta)
        result = losses if divisor is None else losses.sum().div_(divisor)
        return result, _to_gradient(slopes, weight, divisor) if needs_grad else None

    y_pred, y_true = y_pred.contiguous(), y_true.contiguous()
    all_losses = torch.empty_like(y_pred) if divisor is None else None
    gradient = torch.empty_like(y_pred) if needs_grad else None
    width, weight, betas = _rows(y_pred, weight, beta)
    step = max(1, BLOCK_SIZE // width)
    tensors = [
        x if x is None else x.view(-1, width)
        for x in (y_pred, y_true, all_losses, gradient)
    ]
    total = 0.0
    for start in range(0, y_pred.numel() // width, step):
        pred_block, true_block, *out, weight_block = (
            x if x is None else x[start : start + step] for x in (*tensors, weight)
        )
        losses, slopes = _losses_and_slopes(
            pred_block, true_block, weight_block, betas, *out
        )
        if divisor is not None:
            total += float(losses.sum())
        if needs_grad:
            _to_gradient(slopes, weight_block, divisor)
    if divisor is not None:
        return y_pred.new_tensor(total / divisor), gradient
    return all_losses, gradient


def _rows(
    y_pred: torch.Tensor, weight: torch.Tensor | None, beta: Beta
) -> tuple[int, torch.Tensor | None, Any]:
    """Returns the length of a row of elements, the weight of each row, and its betas.

    All elements of a row share one weight. With several betas, a row has many complete
    sets of them, because broadcasting a short vector is slow.
    """
    size, width = y_pred.numel(), 1
    if weight is not None:
        weight = _broadcast_to_short_rows(weight, y_pred).reshape(-1, 1)
        width = size // len(weight)
    elif isinstance(beta, tuple):
        width = len(beta) * math.gcd(size // len(beta), 256)
    if isinstance(beta, tuple):
        return width, weight, y_pred.new_tensor(beta).repeat(width // len(beta))
    return width, weight, beta


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


def _losses_and_slopes(
    y_pred: torch.Tensor,
    y_true: torch.Tensor,
    weight: torch.Tensor | None,
    beta: Any,
    losses: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the weighted losses, and the slopes, in the given tensors or new ones."""
    losses = torch.sub(y_pred, y_true, out=losses)
    if weight is not None:
        losses.masked_fill_(weight == 0, 0)
    slopes = torch.clamp(losses, -beta, beta, out=slopes)
    losses.sub_(slopes, alpha=0.5)  # d - c / 2
    slopes.div_(beta)
    losses.mul_(slopes)
    if weight is not None and weight.dtype is not torch.bool:
        losses.mul_(weight)
    return losses, slopes


def _to_gradient(
    slopes: torch.Tensor, weight: torch.Tensor | None, divisor: float | None
) -> torch.Tensor:
    """Multiplies slopes by weight / divisor in place.

    Slopes are at most 1. They are divided by a small divisor first, and by a large one
    last, so that no product is out of range if the result is not.
    """
    divisor = 1.0 if divisor is None else divisor
    divides_first = abs(divisor) < 1
    if divides_first:
        slopes.mul_(1 / divisor)
    # A boolean weight is a mask, and masked slopes are 0 already.
    if weight is not None and weight.dtype is not torch.bool:
        slopes.mul_(weight)
    return slopes if divides_first or divisor == 1 else slopes.div_(divisor)

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
    divisors = divisor if isinstance(divisor, torch.Tensor) else None
    return (
        isinstance(beta, float | tuple)
        and internals.common_device(y_pred, y_true, weight, divisors) == "cpu"
        and y_pred.dtype is y_true.dtype
        and y_pred.dtype in (torch.float32, torch.float64)
        and (weight is None or _has_rows(weight, y_pred, beta))
        and (divisor is None or float(divisor) != 0)
    )


def _has_rows(weight: torch.Tensor, y_pred: torch.Tensor, beta: Beta) -> bool:
    own_axes = [axis for axis, size in enumerate(weight.shape) if size > 1]
    end = own_axes[-1] + 1 if own_axes else 0
    # With several betas, the elements of the last axis must share a weight.
    is_row = isinstance(beta, float) or end < weight.dim()
    return is_row and weight.shape[:end] == y_pred.shape[:end]


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
    return _losses_and_gradient(y_pred, *arguments)[0]


class _Weighted(torch.autograd.Function):
    # Only two arguments, because each one costs a microsecond or two.
    @staticmethod
    def forward(
        ctx: Any, y_pred: torch.Tensor, arguments: tuple[Any, ...]
    ) -> torch.Tensor:
        y_true, weight, *ctx.numbers = arguments
        ctx.save_for_backward(y_pred, y_true, weight)
        inverse = 1.0 if ctx.numbers[1] is None else 1 / ctx.numbers[1]
        # A large gradient is divided in the same pass, and a small one in the backward
        # pass, where it is multiplied by the incoming gradient anyway.
        divides = y_pred.numel() > BLOCK_SIZE and _is_exact(inverse, y_pred, 2.0)
        ctx.scale, ctx.factor = (inverse, 1.0) if divides else (1.0, inverse)
        # The largest incoming gradient for which `_is_exact`. For a mask, it is finite,
        # because the gradient of a masked element must be 0.
        if divides or (weight is not None and weight.dtype is not torch.bool):
            ctx.limit = 2.0
        else:
            ctx.limit = math.inf if weight is None else torch.finfo(y_pred.dtype).max
        result, ctx.gradient = _losses_and_gradient(y_pred, *arguments, scale=ctx.scale)
        return result

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        # The reference to the gradient is dropped, because autograd reuses a buffer
        # without a copy only if nothing else refers to it. A second backward pass
        # computes the gradient again.
        gradient, ctx.gradient = ctx.gradient, None
        beta, divisor = ctx.numbers

        def recomputed(scale: float) -> torch.Tensor:
            inputs = *ctx.saved_tensors, beta, divisor
            return _losses_and_gradient(*inputs, scale=scale, needs_losses=False)[1]

        if (
            not torch.is_grad_enabled()
            and internals.no_mode_is_active()
            and internals.plain_device(grad_output) == "cpu"
        ):
            if gradient is None:
                gradient = recomputed(ctx.scale)
            if divisor is None:
                smallest, largest = (
                    (0, 0) if ctx.limit == math.inf else torch.aminmax(grad_output)
                )
                if -ctx.limit <= float(smallest) and float(largest) <= ctx.limit:
                    return gradient.mul_(grad_output), None
            else:
                number = float(grad_output)
                if number * ctx.factor == 1:
                    return gradient, None
                if _is_exact(number * ctx.factor, gradient, ctx.limit):
                    return gradient.mul_(number * ctx.factor), None
                if _is_exact(number / divisor, gradient, 2.0):
                    del gradient
                    return recomputed(number / divisor), None
        inputs = *ctx.saved_tensors, beta, divisor
        return autograd.gradient(grad_output, *inputs), None


def _is_exact(factor: float, gradient: torch.Tensor, limit: float) -> bool:
    """Whether a gradient may be multiplied by a factor.

    The limit is 2 for a product of several numbers: if it has become subnormal, a
    larger factor would make its rounding error a large one.
    """
    return torch.finfo(gradient.dtype).tiny <= abs(factor) <= limit


def _losses_and_gradient(
    y_pred: torch.Tensor,
    y_true: torch.Tensor,
    weight: torch.Tensor | None,
    beta: Beta,
    divisor: float | None,
    *,
    scale: float | None = None,
    needs_losses: bool = True,
) -> tuple[Any, Any]:
    """Returns the losses, or their sum / divisor, and the gradient times scale.

    Without a scale, the gradient is not needed.
    """
    y_pred = y_pred.detach()
    settings = scale, needs_losses
    if isinstance(beta, float) and y_pred.numel() <= BLOCK_SIZE:
        losses, gradient = _process(y_pred, y_true, weight, beta, *settings)
        return losses if divisor is None else losses.sum().div_(divisor), gradient

    y_pred, y_true = y_pred.contiguous(), y_true.contiguous()
    all_losses = torch.empty_like(y_pred) if divisor is None else None
    gradient = None if scale is None else torch.empty_like(y_pred)
    width, weight, betas = _rows(y_pred, weight, beta)
    rows: list[Any] = [
        x if x is None else x.view(-1, width)
        for x in (y_pred, y_true, all_losses, gradient)
    ]
    rows.append(weight)
    step = max(1, BLOCK_SIZE // width)
    # For what is not returned. Allocating it for each block takes a fifth of the time.
    scratch = y_pred.new_empty(2, min(step, y_pred.numel() // width), width)
    total = 0.0
    for start in range(0, y_pred.numel() // width, step):
        blocks: list[Any] = [x if x is None else x[start : start + step] for x in rows]
        pred_block, true_block, *out, weight_block = blocks
        losses_block, gradient_block = (
            scratch[index, : len(pred_block)] if x is None else x
            for index, x in enumerate(out)
        )
        _process(
            *(pred_block, true_block, weight_block, betas, *settings),
            losses_block,
            gradient_block,
        )
        if divisor is not None and needs_losses:
            total += float(losses_block.sum())
    if divisor is None:
        return all_losses, gradient
    return y_pred.new_tensor(total / divisor), gradient


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


def _process(
    y_pred: torch.Tensor,
    y_true: torch.Tensor,
    weight: torch.Tensor | None,
    beta: Any,
    scale: float | None,
    needs_losses: bool,
    losses: torch.Tensor | None = None,
    gradient: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the weighted losses and gradient, in the given tensors or new ones."""
    losses = torch.sub(y_pred, y_true, out=losses)
    if weight is not None:
        losses.masked_fill_(weight == 0, 0)
        # A boolean weight is a mask, and masked elements are 0 already.
        weight = None if weight.dtype is torch.bool else weight
    slopes = torch.clamp(losses, -beta, beta, out=gradient)
    if needs_losses:
        losses.sub_(slopes, alpha=0.5)  # d - c / 2
    slopes.div_(beta)
    if needs_losses:
        losses.mul_(slopes)
        if weight is not None:
            losses.mul_(weight)
    if scale is not None:
        if weight is not None:
            slopes.mul_(weight)
        if scale != 1:
            slopes.mul_(scale)
    return losses, slopes

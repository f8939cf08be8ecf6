"""Eager PyTorch on a CPU: the weighted sum of the losses and its gradient in one walk.

One operation after another sweeps a large tensor through memory a dozen times and
allocates each time, which made the loss ten times as slow as torch's own kernel. Here
the tensors are walked in pieces that stay in the cache, with the operations of
`reference`, and the gradient is written into the one buffer that is handed on. It must
match `torch.smooth_l1`, weighted and summed by `torch.total`; whatever it does not
cover is computed by these.
"""

from typing import Any

import torch

from keras_smoothl1.kernels.torch import Slope
from keras_smoothl1.validation import Tensor

PIECE = 2**17  # elements; large enough for torch to use its threads


def covers(y_true: Tensor, y_pred: Tensor, beta: Any, weight: Tensor | None) -> bool:
    tensors = [x for x in (y_true, y_pred, weight) if x is not None]
    return (
        isinstance(beta, float)
        and y_pred.numel() > 0
        and y_true.shape == y_pred.shape
        and all(x.device.type == "cpu" and x.is_contiguous() for x in tensors)
        and not any(x.requires_grad for x in tensors if x is not y_pred)
        and (weight is None or _weighs_rows(weight, y_pred))
        and not torch.compiler.is_compiling()
        # torch.func and torch.vmap cannot go through operations with out=.
        and not torch._C._are_functorch_transforms_active()
    )


def _weighs_rows(weight: Tensor, y_pred: Tensor) -> bool:
    """Whether each entry of weight is for one row of neighbours, not much too long."""
    own, shape = tuple(weight.shape), tuple(y_pred.shape)
    rank = len(own)
    while rank and own[rank - 1] == 1:
        rank -= 1
    return own[:rank] == shape[:rank] and y_pred.numel() <= weight.numel() * PIECE * 16


def weighted_sum(
    y_true: Tensor, y_pred: Tensor, beta: float, weight: Tensor | None, divisor: float
) -> Tensor:
    """The sum of weight · loss, divided by divisor."""
    result: Tensor = _WeightedSum.apply(y_pred, y_true, weight, beta, divisor)
    return result


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y_pred: Tensor,
        y_true: Tensor,
        weight: Tensor | None,
        beta: float,
        divisor: float,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        total, gradient = _walk(y_true, y_pred, beta, weight, divisor, wanted)
        if wanted:
            ctx.save_for_backward(y_pred, y_true, weight)
            ctx.beta, ctx.divisor, ctx.gradient = beta, divisor, gradient
        return y_pred.new_tensor(total / divisor)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Handed on and not kept: autograd takes a buffer that nobody else holds without
        # a copy. A second backward pass, or one to be differentiated, starts again.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None or torch.is_grad_enabled():
            gradient = _differentiable(ctx)
        elif float(upstream) == 1:
            return gradient, None, None, None, None
        else:
            return gradient.mul_(upstream), None, None, None, None
        return gradient * upstream, None, None, None, None


def _differentiable(ctx: Any) -> Tensor:
    y_pred, y_true, weight = ctx.saved_tensors
    error = y_pred - y_true
    if weight is not None:
        error = torch.where(weight != 0, error, 0)
    slope = Slope.apply(error, error.new_tensor(ctx.beta))
    return (slope if weight is None else slope * weight) / ctx.divisor


def _walk(
    y_true: Tensor,
    y_pred: Tensor,
    beta: float,
    weight: Tensor | None,
    divisor: float,
    wanted: bool,
) -> tuple[float, Tensor | None]:
    """The sum of weight · loss, and the gradient of that sum over divisor if wanted."""
    rows = y_pred.numel() if weight is None else weight.numel()
    shape = (rows, y_pred.numel() // rows)
    y_true, y_pred_rows = y_true.view(shape), y_pred.detach().view(shape)
    weight = None if weight is None else weight.view(rows, 1)
    step = max(1, PIECE // shape[1])
    scratch = y_pred.new_empty(2 - wanted, min(step, rows), shape[1])
    gradient = torch.empty_like(y_pred) if wanted else None
    total = 0.0
    for start in range(0, rows, step):
        piece = slice(start, start + step)
        size = min(step, rows - start)
        half = scratch[1, :size] if gradient is None else gradient.view(shape)[piece]
        torch.sub(y_pred_rows[piece], y_true[piece], out=half)
        if weight is not None:
            half.masked_fill_(weight[piece] == 0, 0)
        slope = torch.clamp(half, -beta, beta, out=scratch[0, :size])
        half.sub_(slope, alpha=0.5)  # d - c / 2
        slope.div_(beta)
        loss = half.mul_(slope)
        if weight is not None:
            loss.mul_(weight[piece])
            slope.mul_(weight[piece])
        total += float(loss.sum())
        if gradient is not None:
            torch.mul(slope, 1 / divisor, out=half)
    return total, gradient

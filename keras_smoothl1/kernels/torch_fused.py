"""Eager PyTorch on a CPU: loss and gradient in one walk over the tensors.

One operation after another sweeps a large tensor through memory a dozen times and
allocates each time, which made the loss ten times as slow as torch's own kernel. Here
the tensors are walked in pieces that stay in the cache, with the operations of
`reference`. `weighted_sum` writes the gradient into the one buffer that is handed on,
and must match `torch.smooth_l1`, weighted and summed by `torch.total`; `smooth_l1`
gives one loss for each error, and must match `reference.value` and `reference.slope`.
Whatever they do not cover is computed by these.
"""

from typing import Any

import torch

from keras_smoothl1.kernels.torch import Slope
from keras_smoothl1.validation import Tensor

PIECE = 2**17  # elements; large enough for torch to use its threads


def _walkable(*tensors: Tensor) -> bool:
    return (
        all(x.device.type == "cpu" and x.is_contiguous() for x in tensors)
        and tensors[0].numel() > 0
        and not torch.compiler.is_compiling()
        # torch.func and torch.vmap cannot go through operations with out=.
        and not torch._C._are_functorch_transforms_active()
    )


def covers(y_true: Tensor, y_pred: Tensor, beta: Any, weight: Tensor | None) -> bool:
    """Whether `weighted_sum` can take these."""
    given = [y_true] if weight is None else [y_true, weight]
    return (
        isinstance(beta, float)
        and _walkable(y_pred, *given)
        and not any(x.requires_grad for x in given)
        and (weight is None or _weighs_rows(weight, y_pred))
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
    if torch.is_grad_enabled() and y_pred.requires_grad:
        result: Tensor = _WeightedSum.apply(y_pred, y_true, weight, beta, divisor)
        return result
    total, _ = _walk(y_true, y_pred, beta, weight, divisor, wanted=False)
    return y_pred.new_tensor(total / divisor)


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
        total, ctx.gradient = _walk(y_true, y_pred, beta, weight, divisor, wanted=True)
        ctx.save_for_backward(y_pred, y_true, weight)
        ctx.beta, ctx.divisor = beta, divisor
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


def covers_errors(error: Tensor, beta: Any) -> bool:
    """Whether `smooth_l1` can take these."""
    return isinstance(beta, float | tuple) and _walkable(error)


def smooth_l1(error: Tensor, beta: float | tuple[float, ...]) -> Tensor:
    """One loss for each error."""
    row = error.new_tensor(beta)
    if torch.is_grad_enabled() and error.requires_grad:
        result: Tensor = _Elementwise.apply(error, row)
        return result
    return _losses_and_slopes(error, row, wanted=False)[0]


def _losses_and_slopes(
    error: Tensor, beta: Tensor, wanted: bool
) -> tuple[Tensor, Tensor]:
    """The losses, and the slopes if wanted; else those of one piece are enough."""
    row = beta.numel()
    errors = error.detach().view(-1, row)
    step = min(max(1, PIECE // row), len(errors))
    loss = torch.empty_like(error)
    slope = torch.empty_like(error) if wanted else errors.new_empty(step, row)
    for start in range(0, len(errors), step):
        d, out = (x.view(-1, row)[start : start + step] for x in (errors, loss))
        kept = slope.view(-1, row)[start if wanted else 0 :][: len(d)]
        torch.clamp(d, -beta, beta, out=kept)
        torch.sub(d, kept, alpha=0.5, out=out)  # d - c / 2
        out.mul_(kept.div_(beta))
    return loss, slope


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, error: Tensor, beta: Tensor) -> Tensor:
        loss, ctx.slope = _losses_and_slopes(error, beta, wanted=True)
        ctx.save_for_backward(error, beta)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        slope, ctx.slope = ctx.slope, None
        if slope is None or torch.is_grad_enabled():
            return Slope.apply(*ctx.saved_tensors) * upstream, None
        return slope.mul_(upstream), None

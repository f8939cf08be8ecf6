"""Eager PyTorch on a CPU: a plain sum by torch's own kernels, where they are exact.

Four operations replace the seven of `cpu`; for a small tensor torch's own backward pass
takes half as long as any that is written in Python. The derivative of torch's sum is
the closed-form slope, rounded once. Its value squares the error, and so leaves the
range of the dtype before the loss does, but the sum shows whether that can have cost it
a digit: `is_exact` must be asked. It must match the sum of `cpu`, which takes the rest.
"""

import torch

from keras_smoothl1.backends.torch import internals

MIN_SIZE = 2**8  # elements from which on the roundings of each are lost in the sum
SMALL = 2**16  # elements up to which the calls take longer than the work
BLOCK_SIZE = 2**20  # elements: 4 MB, which stay in the cache and keep the threads busy
NONE, MEAN, SUM = 0, 1, 2  # torch's numbers for reductions
LIMITS = {dtype: torch.finfo(dtype) for dtype in (torch.float32, torch.float64)}


def supports_blocks(y_pred: torch.Tensor) -> bool:
    """Whether plain tensors are so large that copying them to blocks pays."""
    return y_pred.numel() > BLOCK_SIZE


def loss_sum(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    *,
    beta: float,
    divisor: float,
    needs_grad: bool,
) -> tuple[float, torch.Tensor | None]:
    """Returns the sum of the losses, and the gradient of sum / divisor by y_pred."""
    y_pred, y_true = y_pred.contiguous(), y_true.contiguous()
    gradient = torch.empty_like(y_pred) if needs_grad else None
    # Each block of the gradient's buffer holds the losses first.
    block_size = min(y_pred.numel(), BLOCK_SIZE)
    buffer = y_pred.new_empty(block_size) if gradient is None else gradient
    blocks, true_blocks, buffers = (
        x.view(-1).split(BLOCK_SIZE) for x in (y_pred, y_true, buffer)
    )
    one = y_pred.new_ones(())
    total = 0.0
    for index, (block, true_block) in enumerate(zip(blocks, true_blocks, strict=True)):
        out = buffers[index] if needs_grad else buffer[: len(block)]
        total += float(
            internals.smooth_l1(block, true_block, NONE, beta, out=out).sum()
        )
        if needs_grad:
            internals.smooth_l1_slope(
                one, block, true_block, SUM, beta, grad_input=out
            ).mul_(1 / divisor)
    return total, gradient


def supports_one_block(
    y_pred: torch.Tensor, beta: float, weight: torch.Tensor | None
) -> bool:
    """Whether torch's own loss, with its own gradient, is worth a try.

    In a sum of few, the two or three roundings of each loss still show. The gradient
    may underflow on the way; if beta is not below eps, what it loses by that is less
    than the smallest normal number.
    """
    size = y_pred.numel()
    return (
        MIN_SIZE <= size <= (BLOCK_SIZE if weight is None else SMALL)
        and beta >= LIMITS[y_pred.dtype].eps
    )


def loss_of_one_block(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    beta: float,
    divisor: float,
) -> tuple[torch.Tensor, bool]:
    """Returns the weighted sum over divisor, differentiable, and whether it is exact.

    Where a weight hides NaN or infinity it is NaN, and not exact.
    """
    size = count = y_pred.numel()
    if weight is None and divisor == size:
        mean = internals.smooth_l1_loss(y_pred, y_true, MEAN, beta)
        return mean, is_exact(float(mean.detach()) * size, beta, count, y_pred)
    if weight is None:
        total = internals.smooth_l1_loss(y_pred, y_true, SUM, beta)
    else:
        losses = internals.smooth_l1_loss(y_pred, y_true, NONE, beta)
        total = (losses * weight).sum()
        if weight.dtype is not torch.bool:
            count = float(weight.abs().sum()) * (size // weight.numel())
    exact = is_exact(float(total.detach()), beta, count, y_pred)
    return total if divisor == 1 else total / divisor, exact


def is_exact(total: float, beta: float, count: float, y_pred: torch.Tensor) -> bool:
    """Whether no digit of a sum of losses was lost out of the dtype's range.

    count is how many they are, or the sum of their absolute weights.
    """
    # No square of an error below beta overflows, and what all of them may have lost by
    # underflow, tiny each and divided by beta, is less than a rounding of the sum.
    limits = LIMITS[y_pred.dtype]
    return beta * beta < limits.max and total * beta * limits.eps >= count * limits.tiny

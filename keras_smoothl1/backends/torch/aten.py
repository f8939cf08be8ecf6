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


def supports_one_block(y_pred: torch.Tensor, beta: float) -> bool:
    """Whether torch's own loss, with its own gradient, is worth a try.

    In a sum of few, the two or three roundings of each loss still show. The gradient
    may underflow on the way; if beta is not below eps, what it loses by that is less
    than the smallest normal number.
    """
    return MIN_SIZE <= y_pred.numel() <= BLOCK_SIZE and beta >= LIMITS[y_pred.dtype].eps


def loss_of_one_block(
    y_true: torch.Tensor, y_pred: torch.Tensor, *, beta: float, divisor: float
) -> tuple[float, torch.Tensor]:
    """Returns the sum of the losses, and the differentiable sum / divisor."""
    size = y_pred.numel()
    if divisor == size:
        mean = internals.smooth_l1_loss(y_pred, y_true, MEAN, beta)
        return float(mean.detach()) * size, mean
    total = internals.smooth_l1_loss(y_pred, y_true, SUM, beta)
    return float(total.detach()), total if divisor == 1 else total / divisor


def is_exact(total: float, beta: float, y_pred: torch.Tensor) -> bool:
    """Whether no digit of a sum of losses was lost out of the dtype's range."""
    # No square of an error below beta overflows, and what all of them may have lost by
    # underflow, info.tiny each and divided by beta, is less than a rounding of the sum.
    limits = LIMITS[y_pred.dtype]
    lost = y_pred.numel() * limits.tiny
    return beta * beta < limits.max and total * beta * limits.eps >= lost

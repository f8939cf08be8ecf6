"""Eager PyTorch: torch's own loss and kernels, where they lose no accuracy.

Four operations replace the seven of `cpu`. For small tensors, torch's own backward pass
takes half as long as any backward pass in Python. torch computes the square of the
error and divides it by 2 beta; it rounds as often as `formula`, and its gradient is the
closed-form slope. But the square can underflow before the loss does. If beta is at
least 1, the loss underflows as well. Otherwise, on a CPU, the losses or their sum show
whether accuracy was lost, and `cpu` is used if it was. On a GPU such a check would
block. So losses are accepted only if beta is 1, and sums only if beta is at least 1/16,
where underflow changes them by less than 2e-6. The results must match those of `cpu`
and `triton`. "Exact" below means unaffected by overflow and underflow.

torch's gradient multiplies the error by the incoming gradient before it divides by
beta. The product can leave the range of the dtype although the quotient does not. So
beta is limited: then this only happens for incoming gradients close to the limits of
the dtype.
"""

import torch

from keras_smoothl1.backends.torch import internals

MIN_SIZE = 2**8  # elements; in smaller sums, the rounding of each loss matters
SMALL = 2**16  # up to this many elements, call overhead exceeds computation
BLOCK_SIZE = 2**20  # elements: 4 MB, which fit in the cache and keep the threads busy
SMALL_ON_GPU = 2**22  # up to this many elements, a GPU is idle while Python runs
MIN_BETA, MAX_BETA = 2.0**-10, 2.0**10  # for sums
MIN_BETA_STRICT = 2.0**-4  # for losses, and for sums on a GPU, which are not checked
NONE, MEAN, SUM = 0, 1, 2  # torch's codes for reductions
LIMITS = {dtype: torch.finfo(dtype) for dtype in (torch.float32, torch.float64)}


def supports_blocks(y_pred: torch.Tensor) -> bool:
    """Whether plain tensors are so large that processing them in blocks is faster."""
    return y_pred.numel() > BLOCK_SIZE


def loss_sum(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    *,
    beta: float,
    divisor: float,
    needs_grad: bool,
) -> tuple[float, torch.Tensor | None]:
    """Returns the sum of the losses, and the gradient of sum / divisor."""
    y_pred, y_true = y_pred.contiguous(), y_true.contiguous()
    gradient = torch.empty_like(y_pred) if needs_grad else None
    # The losses of a block are written to the buffer of its gradient first.
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
    """Whether to try torch's own loss with its own gradient.

    In a sum of few elements, the two or three rounding errors of each loss matter.
    """
    size = y_pred.numel()
    return (
        MIN_SIZE <= size <= (BLOCK_SIZE if weight is None else SMALL)
        and MIN_BETA <= beta <= MAX_BETA
    )


def loss_of_one_block(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    beta: float,
    divisor: float,
) -> tuple[torch.Tensor, bool]:
    """Returns the weighted sum, divided by divisor, and whether it is exact.

    The sum is differentiable. If a weight of 0 hides NaN or infinity, the sum is NaN
    and not exact.
    """
    if weight is None:
        loss = plain_sum(y_true, y_pred, beta=beta, divisor=divisor)
        exact = beta >= 1 or is_exact(
            loss.item() * divisor, beta, y_pred.numel(), y_pred
        )
        return loss, exact
    losses = internals.smooth_l1_loss(y_pred, y_true, NONE, beta)
    total = (losses * weight).sum()
    count = y_pred.numel()
    if weight.dtype is not torch.bool:
        count = float(weight.abs().sum()) * (count // weight.numel())
    exact = is_exact(total.item(), beta, count, y_pred)
    return total if divisor == 1 else total / divisor, exact


def plain_sum(
    y_true: torch.Tensor, y_pred: torch.Tensor, *, beta: float, divisor: float
) -> torch.Tensor:
    """Returns the differentiable sum of the losses, divided by the divisor."""
    if divisor == y_pred.numel():
        return internals.smooth_l1_loss(y_pred, y_true, MEAN, beta)
    total = internals.smooth_l1_loss(y_pred, y_true, SUM, beta)
    return total if divisor == 1 else total / divisor


def supports_losses(beta: float) -> bool:
    """Whether to try torch's own losses with their own gradient.

    If beta is at most 1, no product in the gradient exceeds the incoming gradient.
    """
    return MIN_BETA_STRICT <= beta <= 1


def losses(
    y_true: torch.Tensor, y_pred: torch.Tensor, *, beta: float
) -> tuple[torch.Tensor, bool]:
    """Returns the differentiable loss of each element, and whether all are exact."""
    losses = internals.smooth_l1_loss(y_pred, y_true, NONE, beta)
    exact = beta == 1 or (losses.amin().item() * beta >= LIMITS[y_pred.dtype].tiny)
    return losses, exact


def supports_gpu_losses(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    beta: float,
    weight: torch.Tensor | None,
) -> bool:
    """Whether these are plain GPU tensors for which torch's losses are always exact.

    Checking the losses would block.
    """
    return beta == 1 and weight is None and _are_plain_on_gpu(y_true, y_pred)


def supports_gpu_sum(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    beta: float,
    weight: torch.Tensor | None,
) -> bool:
    """Whether to use torch's sum for these tensors: small, plain, and on a GPU.

    For a beta of at least `MIN_BETA_STRICT`, its relative error is below 2e-6 even if
    squares underflow.
    """
    return (
        MIN_BETA_STRICT <= beta <= MAX_BETA
        and weight is None
        and MIN_SIZE <= y_pred.numel() <= SMALL_ON_GPU
        and _are_plain_on_gpu(y_true, y_pred)
    )


def _are_plain_on_gpu(y_true: torch.Tensor, y_pred: torch.Tensor) -> bool:
    return (
        internals.no_mode_is_active()
        and internals.is_plain_gpu_tensor(y_pred)
        and internals.is_plain_gpu_tensor(y_true)
        and y_pred.dtype in LIMITS
        and y_true.dtype is y_pred.dtype
        and y_true.device == y_pred.device
        and not y_true.requires_grad
    )


def is_exact(total: float, beta: float, count: float, y_pred: torch.Tensor) -> bool:
    """Whether a sum of losses is unaffected by overflow and underflow.

    `count` is the number of losses, or the sum of their absolute weights.
    """
    # No square of an error smaller than beta overflows. The total error due to
    # underflow, at most tiny / beta per element, is less than a rounding error.
    limits = LIMITS[y_pred.dtype]
    return beta * beta < limits.max and total * beta * limits.eps >= count * limits.tiny

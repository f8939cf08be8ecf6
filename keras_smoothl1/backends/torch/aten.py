"""Eager PyTorch: torch's own loss and kernels, where they are exact.

Four operations replace the seven of `cpu`; for a small tensor torch's own backward pass
takes half as long as any that is written in Python. torch rounds the square of an error
and its quotient by 2 beta, as often as `formula` rounds, and its gradient is the
closed-form slope. But the square leaves the range of the dtype before the loss does. If
beta is 1 or more, the loss then leaves it, too; else the losses or their sum show
whether it can have cost a digit, which must be asked. What is not exact is left to
`cpu` and `triton`, which this must match.

torch's gradient multiplies the error by the incoming gradient before it divides by
beta. The product can leave the range of the dtype although the quotient does not. So
beta is bounded: then this happens only to gradients near the ends of the range.
"""

import torch

from keras_smoothl1.backends.torch import internals

MIN_SIZE = 2**8  # elements from which on the roundings of each are lost in the sum
SMALL = 2**16  # elements up to which the calls take longer than the work
BLOCK_SIZE = 2**20  # elements: 4 MB, which stay in the cache and keep the threads busy
SMALL_ON_GPU = 2**22  # elements up to which a GPU waits for Python
MIN_BETA, MAX_BETA = 2.0**-10, 2.0**10  # of sums
MIN_BETA_UNASKED = 2.0**-4  # of losses, and of sums that nothing asks whether exact
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

    In a sum of few, the two or three roundings of each loss still show.
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
    """Returns the weighted sum over divisor, differentiable, and whether it is exact.

    Where a weight hides NaN or infinity it is NaN, and not exact.
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
    """Returns the sum over divisor, differentiable."""
    if divisor == y_pred.numel():
        return internals.smooth_l1_loss(y_pred, y_true, MEAN, beta)
    total = internals.smooth_l1_loss(y_pred, y_true, SUM, beta)
    return total if divisor == 1 else total / divisor


def supports_losses(beta: float) -> bool:
    """Whether torch's own losses, with their own gradient, are worth a try.

    Up to 1, a beta keeps each product of its gradient below the incoming gradient.
    """
    return MIN_BETA_UNASKED <= beta <= 1


def losses(
    y_true: torch.Tensor, y_pred: torch.Tensor, *, beta: float
) -> tuple[torch.Tensor, bool]:
    """Returns the loss of each element, differentiable, and whether all are exact."""
    losses = internals.smooth_l1_loss(y_pred, y_true, NONE, beta)
    exact = beta == 1 or (losses.amin().item() * beta >= LIMITS[y_pred.dtype].tiny)
    return losses, exact


def supports_gpu_losses(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    beta: float,
    weight: torch.Tensor | None,
) -> bool:
    """Whether these are plain tensors on a GPU, and their losses always exact.

    To ask whether they are would wait for the GPU.
    """
    return beta == 1 and weight is None and _are_plain_on_gpu(y_true, y_pred)


def supports_gpu_sum(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    beta: float,
    weight: torch.Tensor | None,
) -> bool:
    """Whether these are small plain tensors on a GPU, and their sum right to 2e-6.

    It is down to `MIN_BETA_UNASKED`, whatever the squares lose by underflow.
    """
    return (
        MIN_BETA_UNASKED <= beta <= MAX_BETA
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
        # A tensor of torch.inference_mode() cannot be saved for the backward pass.
        and not (y_pred.requires_grad and y_true.is_inference())
        and not y_true.requires_grad
    )


def is_exact(total: float, beta: float, count: float, y_pred: torch.Tensor) -> bool:
    """Whether no digit of a sum of losses was lost out of the dtype's range.

    count is how many they are, or the sum of their absolute weights.
    """
    # No square of an error below beta overflows, and what all of them may have lost by
    # underflow, tiny each and divided by beta, is less than a rounding of the sum.
    limits = LIMITS[y_pred.dtype]
    return beta * beta < limits.max and total * beta * limits.eps >= count * limits.tiny

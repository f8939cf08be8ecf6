"""Eager PyTorch: torch's own loss for beta = 1, where it is right by construction.

Its backward pass in C++ takes half as long as any backward pass in Python. torch
computes d² / 2, which underflows only if the loss does, and the incoming gradient times
d, where |d| < 1. With another beta, torch divides by it only after these
multiplications, whose results can be out of range although the quotient is not. The
results must match those of `cpu` and `triton`.
"""

import torch

from keras_smoothl1.backends.torch import internals
from keras_smoothl1.typing import Beta, Size

# Up to this many elements, torch's sum is faster than the pass of `cpu` or `triton`.
LARGEST_SUM = {"cpu": 2**20, "cuda": 2**22}
NONE, SUM = 0, 2  # torch's codes for reductions


def supports(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    beta: Beta | torch.Tensor,
    weight: torch.Tensor | None,
    divisor: Size | None,
) -> bool:
    """Whether beta is 1, and these are plain tensors of one dtype without weights."""
    if not isinstance(beta, float) or beta != 1 or weight is not None:
        return False
    device = internals.common_device(y_pred, y_true)
    return (
        device is not None
        and y_pred.dtype is y_true.dtype
        and y_pred.dtype in (torch.float32, torch.float64)
        and (
            divisor is None
            or (isinstance(divisor, int) and y_pred.numel() <= LARGEST_SUM[device])
        )
    )


def weighted_losses(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    beta: float,
    weight: None,
    divisor: int | None,
) -> torch.Tensor:
    """Returns the losses, or their sum / divisor if there is a divisor."""
    if divisor is None:
        return internals.smooth_l1_loss(y_pred, y_true, NONE, beta)
    # In the gradient of torch's mean, d is divided before it is multiplied by the
    # incoming gradient, and can underflow.
    total = internals.smooth_l1_loss(y_pred, y_true, SUM, beta)
    return total if divisor == 1 else total / divisor

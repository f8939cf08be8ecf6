"""Eager PyTorch on a CPU: a plain sum by torch's own kernels, where they are exact.

They sweep a tensor once where `torch_fused` does four times. The derivative of torch's
sum is the closed-form slope, rounded once. Its value squares the error, and so leaves
the range of the dtype before the loss does, but the sum shows whether that can have
cost it a digit. It must match the sum of `torch_fused`, which takes the rest.
"""

from typing import Any

import torch

from keras_smoothl1.validation import Tensor

SMALL = 2**16  # elements up to which the calls take longer than the work
PIECE = 2**20  # elements that stay in the cache: 4 MB
NONE, SUM = 0, 2  # torch's numbers for reductions

_losses: Any = torch.ops.aten.smooth_l1_loss.out
_slopes: Any = torch.ops.aten.smooth_l1_loss_backward.grad_input


def weighted_sum(
    y_pred: Tensor, y_true: Tensor, beta: float, divisor: float, wanted: bool
) -> tuple[Tensor, Tensor | None] | None:
    """The sum of the losses over divisor, and its gradient if wanted.

    None where it takes longer, or may have lost digits.
    """
    size = y_pred.numel()
    if size <= SMALL:
        return None
    shape = y_pred.shape
    y_pred, y_true = y_pred.reshape(-1), y_true.reshape(-1)
    buffer = y_pred.new_empty(size if wanted else min(size, PIECE))
    one = y_pred.new_ones(())
    total = 0.0
    for start in range(0, size, PIECE):
        own = slice(start, start + PIECE)
        piece = y_pred[own], y_true[own]
        out = buffer[own] if wanted else buffer[: len(piece[0])]
        total += float(_losses(*piece, NONE, beta, out=out).sum())
        if wanted:
            _slopes(one, *piece, SUM, beta, grad_input=out).mul_(1 / divisor)
    if not _is_exact(total, beta, size, torch.finfo(y_pred.dtype)):
        return None
    return y_pred.new_tensor(total / divisor), buffer.view(shape) if wanted else None


def _is_exact(total: float, beta: float, size: int, info: torch.finfo) -> bool:
    # No square of an error below beta overflows, and what all of them may have lost by
    # underflow, info.tiny each and divided by beta, is less than a rounding of the sum.
    return beta * beta < info.max and total * beta * info.eps >= size * info.tiny

"""Eager PyTorch on a CPU: a plain sum by torch's own kernels, where they are exact.

Four operations do what takes `torch_fused` seven. The derivative of torch's sum is the
closed-form slope, rounded once. Its value squares the error, and so leaves the range of
the dtype before the loss does, but the sum shows whether that can have cost it a digit.
It must match the sum of `torch_fused`, which takes the rest.
"""

from typing import Any

import torch

from keras_smoothl1.validation import Tensor

SMALL = 2**16  # elements up to which the calls take longer than the work
PIECE = 2**20  # elements: 4 MB, which stay in the cache and keep torch's threads busy
NONE, SUM = 0, 2  # torch's numbers for reductions

_losses: Any = torch.ops.aten.smooth_l1_loss.out
_slopes: Any = torch.ops.aten.smooth_l1_loss_backward.grad_input


def plain_sum(
    y_pred: Tensor, y_true: Tensor, beta: float, divisor: float, wanted: bool
) -> tuple[Tensor, Tensor | None] | None:
    """The sum of the losses over divisor, and its gradient if wanted.

    None where it takes longer, or may have lost digits.
    """
    size = y_pred.numel()
    in_order = y_pred.is_contiguous() and y_true.is_contiguous()
    if size <= SMALL or (size <= PIECE and not in_order):
        return None
    y_pred, y_true = y_pred.contiguous(), y_true.contiguous()
    gradient = torch.empty_like(y_pred) if wanted else None
    # Where the gradient will stand there is room for the losses.
    room = y_pred.new_empty(min(size, PIECE)) if gradient is None else gradient
    pieces, targets, rooms = (x.view(-1).split(PIECE) for x in (y_pred, y_true, room))
    one = y_pred.new_ones(())
    total = 0.0
    for index, (piece, target) in enumerate(zip(pieces, targets, strict=True)):
        out = rooms[index] if wanted else room[: len(piece)]
        total += float(_losses(piece, target, NONE, beta, out=out).sum())
        if wanted:
            _slopes(one, piece, target, SUM, beta, grad_input=out).mul_(1 / divisor)
    if not _is_exact(total, beta, size, torch.finfo(y_pred.dtype)):
        return None
    return y_pred.new_tensor(total / divisor), gradient


def _is_exact(total: float, beta: float, size: int, info: torch.finfo) -> bool:
    # No square of an error below beta overflows, and what all of them may have lost by
    # underflow, info.tiny each and divided by beta, is less than a rounding of the sum.
    lost: float = size * info.tiny
    return beta * beta < float(info.max) and total * beta * float(info.eps) >= lost

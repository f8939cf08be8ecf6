"""The loss with its closed-form slope, for any tensor and any transformation of torch.

`keras.ops.custom_gradient` differentiates once and cannot be used under `torch.func`.
Value and slope are two outputs of one function: they share most of the work, and the
slope is kept for the backward pass. As an output it is differentiable there, which
makes the second derivative. It must match `formula`, by fewer operations, since eager
torch sweeps through memory for each. There is no `jvp`, since `torch.compile` refuses
functions with one.
"""

from typing import Any

import torch

from keras_smoothl1 import formula
from keras_smoothl1.typing import Beta


def value_and_slope(
    error: torch.Tensor, beta: Beta | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of each error, and its slope, both differentiable."""
    if isinstance(beta, float):
        # On a GPU nothing is copied there, and a tensor divides exactly: by a number
        # torch would multiply with its reciprocal.
        beta = error.new_full((), beta)
    else:
        beta = torch.as_tensor(beta, dtype=error.dtype, device=error.device)
    return _ValueAndSlope.apply(error, beta)


class _ValueAndSlope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        error: torch.Tensor, beta: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        clipped = torch.clamp(error, -beta, beta)
        slope = clipped / beta
        return slope * torch.sub(error, clipped, alpha=0.5), slope

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1], output[1])

    @staticmethod
    def backward(
        ctx: Any, grad_value: torch.Tensor | None, grad_slope: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        beta, slope = ctx.saved_tensors
        error_needs_grad, beta_needs_grad = ctx.needs_input_grad
        grad_error = grad_beta = None
        if grad_value is not None:
            grad_error = grad_value * slope if error_needs_grad else None
            if beta_needs_grad:
                grad_beta = grad_value * formula.value_by_beta(slope)
        if grad_slope is not None:
            curvature = formula.curvature(slope, beta, xp=torch)
            if error_needs_grad:
                grad_error = _add(grad_error, grad_slope * curvature)
            if beta_needs_grad:
                by_slope = grad_slope * formula.slope_by_beta(slope, curvature)
                grad_beta = _add(grad_beta, by_slope)
        return grad_error, None if grad_beta is None else grad_beta.sum()


def _add(x: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
    return y if x is None else x + y

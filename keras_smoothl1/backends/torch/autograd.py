"""The loss with its closed-form slope, for any tensor, in reverse mode.

`keras.ops.custom_gradient` differentiates once and cannot be used under `torch.func`.
Value and slope are two outputs of one function: they share most of the work, and the
slope is kept for the backward pass. As an output it is differentiable there, which
makes the second derivative. It must match `formula`, by fewer operations, since eager
torch sweeps through memory for each. Forward mode goes the reference's way: with a
`jvp`, `torch.compile` would refuse the function.
"""

from typing import Any

import torch

from keras_smoothl1 import formula
from keras_smoothl1.backends.torch import internals
from keras_smoothl1.typing import Beta


def supports() -> bool:
    """Whether what torch differentiates now, it differentiates in reverse mode alone.

    torch.export and torch.jit.trace keep the operations of a function and forget its
    backward pass, and differentiate the operations.
    """
    return not (
        internals.forward_mode_is_active()
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
    )


def value_and_slope(
    error: torch.Tensor, beta: Beta | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of each error, and its slope, both differentiable."""
    return _ValueAndSlope.apply(error, beta_tensor(beta, error))


def weighted_slope(
    y_pred: torch.Tensor,
    y_true: torch.Tensor,
    weight: torch.Tensor | None,
    beta: Beta | torch.Tensor,
    divisor: float | torch.Tensor | None,
) -> torch.Tensor:
    """Returns the slope of weighted losses over a divisor, itself differentiable.

    It is the gradient of a kernel, where that is to be differentiated or transformed.
    """
    dtype = torch.promote_types(y_pred.dtype, torch.float32)
    error = y_pred.to(dtype) - y_true.to(dtype)
    if weight is not None:
        error = torch.where(weight != 0, error, 0)
    _, slope = value_and_slope(error, beta)
    if weight is not None:
        slope = slope * weight
    if isinstance(divisor, torch.Tensor):
        return slope * torch.where(divisor == 0, 0, 1 / divisor)
    return slope if divisor is None else slope * (1 / divisor)


def beta_tensor(beta: Beta | torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Returns beta as a tensor like error.

    On a GPU nothing is copied there, and a tensor divides exactly: by a number torch
    would multiply with its reciprocal.
    """
    if isinstance(beta, float):
        return error.new_full((), beta)
    tensor = torch.as_tensor(beta, dtype=error.dtype, device=error.device)
    if type(error) in internals.PLAIN_CLASSES or tensor.dim() == 0:
        return tensor
    return _replicate(tensor, error)


def _replicate(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns x on each device of `like`, if that is spread over several."""
    # Not before it is needed, since it takes long. If `like` is one it is loaded.
    from torch.distributed.tensor import DTensor

    if not isinstance(like, DTensor) or isinstance(x, DTensor):
        return x
    return DTensor.from_local(x, like.device_mesh, run_check=False)


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
        return grad_error, None if grad_beta is None else _sum_to(beta, grad_beta)


def _sum_to(beta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Sums x over what beta was broadcast over."""
    if beta.dim() == 0:
        return x.sum()
    axes = [axis for axis, size in enumerate(beta.shape) if size == 1]
    return x.sum(axes, keepdim=True) if axes else x


def _add(x: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
    return y if x is None else x + y

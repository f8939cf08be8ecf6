"""The loss with its closed-form slope, for any tensor, in reverse mode.

`keras.ops.custom_gradient` supports only first derivatives and does not work with
`torch.func`. Here, value and slope are two outputs of one function. They share most of
the computation, and the slope is saved for the backward pass. Because it is an output,
it is differentiable, which gives the second derivative. The results must match
`formula`, with fewer operations, because in eager torch each of them reads and writes
whole tensors. Forward mode uses the reference: with a `jvp` method, `torch.compile`
would reject the function.
"""

from collections.abc import Sequence
from typing import Any

import torch

from keras_smoothl1 import formula
from keras_smoothl1.backends.torch import internals
from keras_smoothl1.typing import Beta


def supports() -> bool:
    """Whether torch can only differentiate in reverse mode here, and by this function.

    torch.export and torch.jit.trace keep the operations of a function but not its
    backward pass, and differentiate these operations later. torch.compile cannot trace
    torch.func.vmap over the backward pass of an autograd function.
    """
    return not (
        internals.forward_mode_is_active()
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
        or (torch.compiler.is_compiling() and internals.transforms_are_active())
    )


def value_and_slope(
    error: torch.Tensor, beta: Beta | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of each error and its slope. Both are differentiable."""
    return _ValueAndSlope.apply(error, beta_tensor(beta, error))


def gradient(
    grad_output: torch.Tensor,
    y_pred: torch.Tensor,
    y_true: torch.Tensor,
    weight: torch.Tensor | None,
    beta: Beta | torch.Tensor,
    divisor: float | torch.Tensor | None,
) -> torch.Tensor:
    """Returns the differentiable gradient of the losses, or of their sum / divisor.

    Kernels use it where they cannot reuse the gradient of their forward pass.
    """
    dtype = torch.promote_types(y_pred.dtype, torch.float32)
    error = y_pred.to(dtype) - y_true.to(dtype)
    if weight is not None:
        error = torch.where(weight != 0, error, 0)
    _, slope = value_and_slope(error, beta)
    factor = torch.ones_like(slope) if weight is None else weight
    # In float64, no product of float32 numbers is out of range. In any dtype, a weight
    # is at most as large as the sum of weights by which it is divided.
    factor, slope = factor.double(), slope.double()
    if isinstance(divisor, torch.Tensor):
        factor = torch.where(divisor == 0, 0, factor / divisor)
    elif divisor is not None:
        factor = factor / divisor
    result = factor * grad_output * slope
    # The incoming gradient of a masked element may be infinite.
    result = result if weight is None else torch.where(weight != 0, result, 0)
    return result.to(y_pred.dtype)


def beta_tensor(beta: Beta | torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Returns beta as a tensor with the dtype and device of error.

    A number is filled in on the device, without a copy. On a GPU, torch would replace
    division by a Python number with multiplication by its reciprocal.
    """
    if isinstance(beta, float):
        return error.new_full((), beta)
    tensor = torch.as_tensor(beta, dtype=error.dtype, device=error.device)
    if type(error) in internals.PLAIN_CLASSES or tensor.dim() == 0:
        return tensor
    return _replicate(tensor, error)


def _replicate(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns x as a replicated DTensor if `like` is a DTensor, otherwise x."""
    # Imported here because it is slow. If `like` is a DTensor, it is loaded already.
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
                grad_beta = grad_value * formula.value_grad_beta(slope)
        if grad_slope is not None:
            curvature = formula.curvature(slope, beta, xp=torch)
            if error_needs_grad:
                grad_error = _add(grad_error, grad_slope * curvature)
            if beta_needs_grad:
                by_slope = grad_slope * formula.slope_grad_beta(slope, curvature)
                grad_beta = _add(grad_beta, by_slope)
        return grad_error, None if grad_beta is None else _sum_to(beta, grad_beta)


def sum_over(x: torch.Tensor, axes: Sequence[int] | None) -> torch.Tensor:
    """Sums over axes, keeping them with size 1; None sums x to a scalar.

    torch adds 2^24 numbers to 2e-6 along one axis, but not over axes that are apart in
    memory. So the axes become one.
    """
    if axes is None:
        return x.flatten().sum()
    if not axes:  # torch would sum over all axes
        return x
    kept = [axis for axis in range(x.dim()) if axis not in axes]
    total = x.permute(*kept, *axes).flatten(len(kept)).sum(-1)
    return total.reshape([1 if axis in axes else n for axis, n in enumerate(x.shape)])


def _sum_to(beta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Sums x over the dimensions in which beta was broadcast."""
    if beta.dim() == 0:
        return sum_over(x, None)
    return sum_over(x, [axis for axis, size in enumerate(beta.shape) if size == 1])


def _add(x: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
    return y if x is None else x + y

"""PyTorch: `reference`, with the closed-form slope as its derivative, and sums.

`keras.ops.custom_gradient` differentiates once and cannot be used under `torch.func`.
A function with a `setup_context` can be, and one whose derivative is such a function
again has a second derivative. They must match `reference.value`, `reference.slope` and
`reference.bend`. There is no `jvp`, since `torch.compile` refuses functions with one.
"""

from typing import Any

import torch
import torch as xp

from keras_smoothl1.kernels import reference
from keras_smoothl1.validation import Tensor

__all__ = ["alike", "known_value", "smooth_l1", "total", "xp"]


def alike(x: Any, y: Tensor) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype == y.dtype and x.device == y.device


def smooth_l1(error: Tensor, beta: Any) -> Tensor:
    beta = torch.as_tensor(beta, dtype=error.dtype, device=error.device)
    return _Value.apply(error, beta)


def total(x: Tensor, axes: tuple[int, ...] | None) -> Tensor:
    return x.sum() if axes is None else x.sum(dim=axes, keepdim=True)


def known_value(x: Tensor) -> float | None:
    if torch.compiler.is_compiling() or x.device.type != "cpu":  # not worth waiting for
        return None
    try:
        return float(x.detach())
    except RuntimeError:  # under vmap a tensor has many values
        return None


class _OfErrorAndBeta(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _Value(_OfErrorAndBeta):
    @staticmethod
    def forward(error: Tensor, beta: Tensor) -> Tensor:
        return reference.value(error, beta, xp)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor | None]:
        slope = Slope.apply(*ctx.saved_tensors)
        by_beta = _of_beta(ctx, upstream * slope * slope * -0.5)
        return upstream * slope, by_beta


class Slope(_OfErrorAndBeta):
    @staticmethod
    def forward(error: Tensor, beta: Tensor) -> Tensor:
        return reference.slope(error, beta, xp)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor | None]:
        error, beta = ctx.saved_tensors
        by_error = upstream * reference.bend(error, beta, xp)
        by_beta = _of_beta(ctx, -by_error * Slope.apply(error, beta))
        return by_error, by_beta


def _of_beta(ctx: Any, by_beta: Tensor) -> Tensor | None:
    return by_beta.sum() if ctx.needs_input_grad[1] else None

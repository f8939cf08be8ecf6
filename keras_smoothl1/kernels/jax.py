"""JAX: `reference`, with the closed-form slope as its derivative, and sums.

`keras.ops.custom_gradient` knows only reverse mode. A rule for forward mode, which JAX
transposes by itself, gives `grad`, `jvp`, `vmap` and `hessian` alike. It must match
`reference.value`, `reference.slope` and `reference.bend`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as xp
from jax.custom_derivatives import SymbolicZero

from keras_smoothl1.kernels import reference
from keras_smoothl1.validation import Tensor

__all__ = ["compiled", "kept", "known_value", "smooth_l1", "total", "xp"]


def smooth_l1(error: Tensor, beta: Any) -> Tensor:
    return _value(error, xp.asarray(beta, dtype=error.dtype))


def total(x: Tensor, axes: tuple[int, ...] | None) -> Tensor:
    # XLA sums an outer axis one by one if the inner ones have size 1: of 2^24 times 0.1
    # it got 2.5e-5 wrong, of the same as a vector 7.5e-8.
    left = () if axes is None else tuple(set(range(x.ndim)) - set(axes))
    if x.ndim > 1 and all(x.shape[axis] == 1 for axis in left):
        flat = xp.sum(x.squeeze())
        return flat if axes is None else flat.reshape((1,) * x.ndim)
    return xp.sum(x, axis=axes, keepdims=axes is not None)


def compiled(function: Callable[..., Tensor], static: tuple[str, ...]) -> Any:
    # Called eagerly it is five to six times as fast as keras.losses.Huber, which JAX
    # runs one operation after another. Inside a user's own jit this one is inlined.
    return jax.jit(function, static_argnames=static)


@jax.custom_jvp
def kept(error: Tensor, counts: Tensor) -> Tensor:
    # XLA on a CPU is slow to select by a condition that it has to spread: a step with a
    # mask over pixels took twice as long. To spread numbers is cheap. Both are small:
    # what the error may be at most, and what a NaN becomes.
    most = xp.where(counts, xp.inf, 0).astype(error.dtype)
    if_nan = xp.where(counts, xp.nan, 0).astype(error.dtype)
    clipped = xp.minimum(xp.maximum(error, -most), most)
    return xp.where(xp.isnan(error), if_nan, clipped)


@kept.defjvp
def _kept_rule(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    error, counts = primals
    return kept(error, counts), tangents[0] * counts.astype(error.dtype)


def known_value(x: Tensor) -> float | None:
    return None if isinstance(x, jax.core.Tracer) else float(x)


@jax.custom_jvp
def _value(error: Tensor, beta: Tensor) -> Tensor:
    # The two branches of the definition: with the gradient, XLA on a CPU took 61 ms for
    # 2^24 elements, and 96 ms for the spelling of the reference. As there the divisor
    # is chosen per element, so that XLA divides.
    magnitude = xp.abs(error)
    quadratic = magnitude < beta
    slope = error / xp.where(quadratic, beta, xp.ones_like(beta))
    return xp.where(quadratic, slope * (0.5 * error), magnitude - 0.5 * beta)


@jax.custom_jvp
def _slope(error: Tensor, beta: Tensor) -> Tensor:
    return reference.slope(error, beta, xp)


def _value_rule(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    slope = _slope(*primals)
    by_beta = -0.5 * slope * slope
    return _value(*primals), _tangent(slope, by_beta, tangents)


def _slope_rule(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    error, beta = primals
    slope, bend = _slope(error, beta), reference.bend(error, beta, xp)
    return slope, _tangent(bend, -slope * bend, tangents)


def _tangent(by_error: Tensor, by_beta: Tensor, tangents: Any) -> Tensor:
    # A constant beta has a symbolic zero: its term must not reach the compiler, which
    # may not drop a multiplication by 0.
    terms = [
        derivative * tangent
        for derivative, tangent in zip((by_error, by_beta), tangents, strict=True)
        if not isinstance(tangent, SymbolicZero)
    ]
    return sum(terms[1:], start=terms[0])


_value.defjvp(_value_rule, symbolic_zeros=True)
_slope.defjvp(_slope_rule, symbolic_zeros=True)

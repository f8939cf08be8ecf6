"""JAX: the closed-form slope by `custom_jvp`, sums, and eager calls that are compiled.

`keras.ops.custom_gradient` knows only reverse mode. A rule for forward mode, which JAX
transposes by itself, gives `grad`, `jvp`, `vmap` and `hessian` alike. The rules must
match `formula`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax.custom_derivatives import SymbolicZero
from jax.experimental.sparse import JAXSparse

from keras_smoothl1 import formula
from keras_smoothl1.backends.base import Backend, Function
from keras_smoothl1.keras_internals import get_stateless_scope
from keras_smoothl1.typing import Axes, Beta, Tensor


class JaxBackend(Backend):
    xp: Any = jnp

    def _smooth_l1(self, error: Tensor, beta: Beta | Tensor) -> jax.Array:
        return _value(error, self.beta_tensor(beta, error))

    def sum(self, x: Tensor, axes: Axes | None = None) -> jax.Array:
        # XLA sums an outer axis one by one if the inner ones have size 1: of 2^24 times
        # 0.1 it got 2.5e-5 wrong, of the same as a vector 7.5e-8.
        rank = len(x.shape)
        others = () if axes is None else tuple(set(range(rank)) - set(axes))
        if rank > 1 and all(x.shape[axis] == 1 for axis in others):
            ones = tuple(axis for axis in range(rank) if x.shape[axis] == 1)
            total = jnp.sum(jnp.squeeze(x, ones))
            return total if axes is None else total.reshape((1,) * rank)
        return jnp.sum(x, axis=axes, keepdims=axes is not None)

    def where_or_zero(self, condition: Tensor, x: Tensor) -> jax.Array:
        # Where JAX is to find the operation that makes a NaN, none may be made here.
        if jax.config.jax_debug_nans or jax.config.jax_debug_infs:
            return super().where_or_zero(condition, x)
        return _where_or_zero(condition, x)

    def static_range(self, x: Any) -> tuple[float, float] | None:
        if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable:
            return None
        return super().static_range(x)

    def keeps_value_of(self, variable: keras.Variable) -> bool:
        scope = get_stateless_scope()
        if scope is not None and not scope.state_mapping:
            return False  # nothing is computed: Keras asks for shapes alone
        # Under jit even a constant is traced.
        is_compiling = isinstance(jnp.zeros(()), jax.core.Tracer)
        return is_compiling and not isinstance(variable.value, jax.core.Tracer)

    def to_dense(self, x: Any) -> Any:
        return x.todense() if isinstance(x, JAXSparse) else x

    def jit(self, function: Function, *, static_argnames: Sequence[str]) -> Any:
        # Called eagerly it is five to six times as fast as keras.losses.Huber, which
        # JAX runs one operation after another. Inside a user's own jit it is inlined.
        return jax.jit(function, static_argnames=static_argnames)


@jax.custom_jvp
def _where_or_zero(condition: jax.Array, x: jax.Array) -> jax.Array:
    # XLA on a CPU is slow to select by a condition that it has to broadcast: a step
    # with a mask over pixels took twice as long. To broadcast numbers is cheap. Both
    # are small: the largest magnitude that x may have, and what a NaN becomes.
    bound = jnp.where(condition, jnp.inf, 0).astype(x.dtype)
    if_nan = jnp.where(condition, jnp.nan, 0).astype(x.dtype)
    clipped = jnp.minimum(jnp.maximum(x, -bound), bound)
    return jnp.where(jnp.isnan(x), if_nan, clipped)


@_where_or_zero.defjvp
def _where_or_zero_rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    condition, x = primals
    return _where_or_zero(condition, x), tangents[1] * condition.astype(x.dtype)


@jax.custom_jvp
def _value(error: jax.Array, beta: jax.Array) -> jax.Array:
    # The two branches of the definition: with the gradient, XLA on a CPU took 61 ms for
    # 2^24 elements, and 96 ms for the spelling of `formula`. As there the divisor is
    # chosen per element, so that XLA divides.
    magnitude = jnp.abs(error)
    quadratic = magnitude < beta
    slope = error / jnp.where(quadratic, beta, jnp.ones_like(beta))
    return jnp.where(quadratic, slope * (0.5 * error), magnitude - 0.5 * beta)


@jax.custom_jvp
def _slope(error: jax.Array, beta: jax.Array) -> jax.Array:
    # Clipped: by the spelling of formula.slope a step with a mask took 15 % longer.
    return formula.value_and_slope(error, beta, xp=jnp)[1]


def _value_rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    slope = _slope(*primals)
    return _value(*primals), _tangent(slope, formula.value_by_beta(slope), tangents)


def _slope_rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    slope = _slope(*primals)
    curvature = formula.curvature(slope, primals[1], xp=jnp)
    by_beta = formula.slope_by_beta(slope, curvature)
    return slope, _tangent(curvature, by_beta, tangents)


def _tangent(by_error: jax.Array, by_beta: jax.Array, tangents: Any) -> jax.Array:
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

"""JAX: the closed-form slope through `custom_jvp`, sums, and compiled eager calls.

`keras.ops.custom_gradient` supports only reverse mode. JAX transposes a rule for
forward mode automatically, so a `custom_jvp` works with `grad`, `jvp`, `vmap` and
`hessian`. The rules must match `formula`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.experimental.sparse import JAXSparse

from keras_smoothl1 import formula
from keras_smoothl1.backends.base import Backend, Function
from keras_smoothl1.keras_internals import get_stateless_scope
from keras_smoothl1.typing import Axes, Beta, Tensor


class JaxBackend(Backend):
    xp: Any = jnp

    def smooth_l1(self, error: Tensor, beta: Beta | Tensor) -> jax.Array:
        return _value(error, self.beta_tensor(beta, error))

    def sum(self, x: Tensor, axes: Axes | None = None) -> jax.Array:
        return _sum(x, axes)

    def where_or_zero(self, condition: Tensor, x: Tensor) -> jax.Array:
        # These settings raise an error for any NaN or infinity, even a temporary one.
        if jax.config.jax_debug_nans or jax.config.jax_debug_infs:
            return super().where_or_zero(condition, x)
        return _where_or_zero(condition, x)

    def zero_where_missing(self, error: Tensor, weight: Tensor) -> jax.Array:
        # XLA is slow to select with a condition that it has to broadcast.
        return _finite_or(error, self.where_or_zero(weight != 0, error))

    def static_range(self, x: Any) -> tuple[float, float] | None:
        if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable:
            return None
        return super().static_range(x)

    def compiles_as_constant(self, variable: keras.Variable) -> bool:
        scope = get_stateless_scope()
        if scope is not None and not scope.state_mapping:
            return False  # Keras only infers shapes
        # Under jit, even a constant is a tracer.
        is_compiling = isinstance(jnp.zeros(()), jax.core.Tracer)
        return is_compiling and not isinstance(variable.value, jax.core.Tracer)

    def to_dense(self, x: Any) -> Any:
        return x.todense() if isinstance(x, JAXSparse) else x

    def jit(self, function: Function, *, static_argnames: Sequence[str]) -> Any:
        # An eager call is five to seven times as fast as keras.losses.Huber, whose
        # operations JAX dispatches one by one. In a user's jit the function is inlined.
        # Numbers for beta are an argument, so that a new one does not compile anew.
        compiled = jax.jit(function, static_argnames=static_argnames)

        @functools.wraps(function)
        def call(
            y_true: Any, y_pred: Any, beta: Any, *rest: Any, **settings: Any
        ) -> Any:
            if isinstance(beta, tuple):
                beta = np.asarray(beta, y_pred.dtype)
            return compiled(y_true, y_pred, beta, *rest, **settings)

        return call


def _sum(x: jax.Array, axes: Axes | None) -> jax.Array:
    # XLA adds 2^24 numbers to 2e-6 over adjacent axes only, of which the last must not
    # be followed by axes of size 1. So those are removed, and axes that are apart are
    # summed one group after another. Without the barrier, XLA would merge these sums.
    shape = x.shape
    summed = range(len(shape)) if axes is None else axes
    long_axes = [axis for axis, size in enumerate(shape) if size != 1]
    x = jnp.squeeze(x, tuple(set(range(len(shape))) - set(long_axes)))
    rest = [index for index, axis in enumerate(long_axes) if axis in summed]
    while rest:
        group = [rest.pop()]
        while rest and rest[-1] == group[-1] - 1:
            group.append(rest.pop())
        x = jnp.sum(x, group)
        x = jax.lax.optimization_barrier(x) if rest else x
    ones = [1 if axis in summed else size for axis, size in enumerate(shape)]
    return x.reshape(() if axes is None else ones)


@jax.custom_jvp
def _where_or_zero(condition: jax.Array, x: jax.Array) -> jax.Array:
    # On CPUs, XLA is slow to select with a condition that it has to broadcast: a step
    # with a mask over pixels took twice as long. Broadcasting numbers is cheap. So the
    # condition becomes two small tensors: the largest allowed magnitude of x, and the
    # replacement for NaN.
    bound = jnp.where(condition, jnp.inf, 0).astype(x.dtype)
    if_nan = jnp.where(condition, jnp.nan, 0).astype(x.dtype)
    clipped = jnp.minimum(jnp.maximum(x, -bound), bound)
    return jnp.where(jnp.isnan(x), if_nan, clipped)


@_where_or_zero.defjvp
def _where_or_zero_rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    condition, x = primals
    return _where_or_zero(condition, x), tangents[1] * condition.astype(x.dtype)


@jax.custom_jvp
def _finite_or(error: jax.Array, replacement: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(error), error, replacement)


@_finite_or.defjvp
def _finite_or_rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # The tangent needs no condition: it is multiplied by the weight, which is 0 where
    # an error is replaced. A saved condition would be one more tensor to read.
    return _finite_or(*primals), tangents[0]


@jax.custom_jvp
def _value(error: jax.Array, beta: jax.Array) -> jax.Array:
    # The two branches of the definition. For 2^24 elements, value and gradient took 61
    # ms on a CPU, and 96 ms with `formula.value_and_slope`. The divisor is selected per
    # element, so that XLA does not multiply by 1 / beta.
    magnitude = jnp.abs(error)
    quadratic = magnitude < beta
    slope = error / jnp.where(quadratic, beta, jnp.ones_like(beta))
    return jnp.where(quadratic, slope * (0.5 * error), magnitude - 0.5 * beta)


@jax.custom_jvp
def _slope(error: jax.Array, beta: jax.Array) -> jax.Array:
    # Clips, because a step with a mask took 15% longer with formula.slope.
    return formula.value_and_slope(error, beta, xp=jnp)[1]


def _value_rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    slope = _slope(*primals)
    return _value(*primals), _tangent(slope, formula.value_grad_beta(slope), tangents)


def _slope_rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    slope = _slope(*primals)
    curvature = formula.curvature(slope, primals[1], xp=jnp)
    by_beta = formula.slope_grad_beta(slope, curvature)
    return slope, _tangent(curvature, by_beta, tangents)


def _tangent(by_error: jax.Array, by_beta: jax.Array, tangents: Any) -> jax.Array:
    # The tangent of a constant beta is a symbolic zero. Its term is left out, because
    # the compiler is not allowed to remove a multiplication by 0.
    of_error, of_beta = tangents
    terms = [] if isinstance(of_error, SymbolicZero) else [by_error * of_error]
    if not isinstance(of_beta, SymbolicZero):
        terms.append(by_beta * _broadcast(of_beta, by_beta))
    return sum(terms[1:], start=terms[0])


def _broadcast(beta: jax.Array, x: jax.Array) -> jax.Array:
    """Broadcasts beta to the shape of x, so that gradients are summed by `_sum`."""
    axes: Axes | None = None
    if beta.ndim:
        axes = tuple(axis for axis, size in enumerate(beta.shape) if size == 1)
    return jax.linear_transpose(lambda x: _sum(x, axes), x)(beta)[0]


_value.defjvp(_value_rule, symbolic_zeros=True)
_slope.defjvp(_slope_rule, symbolic_zeros=True)

"""optax's own tests of its losses, and JAX's transformations in chex's variants."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("optax and chex are for JAX", allow_module_level=True)

import chex
import jax
import optax
from absl.testing import parameterized
from jax import numpy as jnp
from optax.losses import _regression, _regression_test

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss

ABOVE_ALL_ERRORS = 2.0**10
calls = []


def huber_loss(predictions, targets, delta=1.0):
    calls.append("huber_loss")
    return delta * smooth_l1_loss(targets, predictions, delta)


def squared_error(predictions, targets):
    calls.append("squared_error")
    beta = ABOVE_ALL_ERRORS
    return 2 * beta * smooth_l1_loss(targets, predictions, beta)


def l2_loss(predictions, targets):
    return 0.5 * squared_error(predictions, targets)


@pytest.fixture
def _our_loss(monkeypatch):
    for ours in (huber_loss, squared_error, l2_loss):
        monkeypatch.setattr(_regression, ours.__name__, ours)
    before = len(calls)
    yield
    assert len(calls) > before


@pytest.mark.usefixtures("_our_loss")
class OptaxHuberLossTest(_regression_test.HuberLossTest):
    pass


@pytest.mark.usefixtures("_our_loss")
class OptaxSquaredErrorTest(_regression_test.SquaredErrorTest):
    pass


@pytest.mark.usefixtures("_our_loss")
class OptaxL2LossTest(_regression_test.L2LossTest):
    pass


def by_function(y_pred, y_true, delta):
    return delta * smooth_l1_loss(y_true, y_pred, delta)


def by_class(y_pred, y_true, delta):
    del delta  # the class accepts only numbers
    return DELTA * SmoothL1Loss(DELTA, None, dtype=y_pred.dtype)(y_true, y_pred)


def by_optax(y_pred, y_true, delta):
    return optax.huber_loss(y_pred, y_true, delta=delta)


def by_optax_with_a_number(y_pred, y_true, delta):
    return by_optax(y_pred, y_true, jax.lax.stop_gradient(delta))


def total(loss):
    return lambda *args: loss(*args).sum()


def jvp(loss):
    return lambda *args: jax.jvp(loss, args, tuple(map(jnp.cos, args)))


def vjp(loss):
    def pulled_back(*args):
        value, pull_back = jax.vjp(loss, *args)
        return pull_back(jnp.cos(value))

    return pulled_back


def linearize(loss):
    return lambda *args: jax.linearize(loss, *args)[1](*map(jnp.cos, args))


def scan(loss):
    def rows(y_pred, y_true, delta):
        return jax.lax.map(lambda row: loss(*row, delta), (y_pred, y_true))

    return rows


# Predictions, targets and delta: optax's loss is differentiable in all three.
ALL, ROWS = (0, 1, 2), (0, 0, None)
TRANSFORMATIONS = {
    "value": lambda loss: loss,
    "grad": lambda loss: jax.grad(total(loss), ALL),
    "value_and_grad": lambda loss: jax.value_and_grad(total(loss), ALL),
    "jvp": jvp,
    "vjp": vjp,
    "linearize": linearize,
    "jacfwd": lambda loss: jax.jacfwd(loss, ALL),
    "jacrev": lambda loss: jax.jacrev(loss, ALL),
    "hessian": lambda loss: jax.hessian(total(loss), ALL),
    "rev_over_rev": lambda loss: jax.jacrev(jax.grad(total(loss), ALL), ALL),
    "rev_over_fwd": lambda loss: jax.jacrev(jax.jacfwd(total(loss), ALL), ALL),
    "fwd_over_fwd": lambda loss: jax.jacfwd(jax.jacfwd(total(loss), ALL), ALL),
    "vmap": lambda loss: jax.vmap(loss, ROWS),
    "vmap_of_grad": lambda loss: jax.vmap(jax.grad(total(loss), ALL), ROWS),
    "grad_of_vmap": lambda loss: jax.grad(total(jax.vmap(loss, ROWS)), ALL),
    "grad_of_checkpoint": lambda loss: jax.grad(total(jax.checkpoint(loss)), ALL),
    "scan": scan,
    "grad_of_scan": lambda loss: jax.grad(total(scan(loss)), ALL),
}
# A power of two, so that scaling by it does not round. There are errors on both sides.
DELTA = 0.5
CASES = [
    (f"{transformation}_{dtype}", transformation, dtype)
    for transformation in TRANSFORMATIONS
    for dtype in ("float32", "bfloat16")
]


class VariantsTest(chex.TestCase):
    """Each transformation of JAX: with and without jit, on a device, and with pmap."""

    def check(self, ours, theirs, transformation, dtype):
        rng = np.random.default_rng(0)
        y_pred, y_true = (jnp.asarray(x, dtype) for x in rng.normal(size=(2, 4, 3)))
        inputs = y_pred, y_true, jnp.asarray(DELTA, dtype)
        transform = TRANSFORMATIONS[transformation]
        expected = transform(theirs)(*inputs)
        actual = self.variant(transform(ours))(*inputs)
        chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
        tolerance = 4 * float(jnp.finfo(dtype).eps)
        chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)

    @chex.all_variants
    @parameterized.named_parameters(CASES)
    def test_function(self, transformation, dtype):
        self.check(by_function, by_optax, transformation, dtype)

    @chex.all_variants
    @parameterized.named_parameters(CASES)
    def test_class(self, transformation, dtype):
        self.check(by_class, by_optax_with_a_number, transformation, dtype)

"""JAX's configuration, symbolic shapes, and layers that add the loss."""

import keras
import numpy as np
import pytest
from helpers.autodiff import BACKEND, to_numpy

if BACKEND != "jax":
    pytest.skip("for JAX only", allow_module_level=True)

import jax
import jax.numpy as jnp

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss

RNG = np.random.default_rng(10)
Y_TRUE, Y_PRED = RNG.normal(size=(2, 8, 6, 4)).astype("float32")
WEIGHT = (RNG.random((8, 6)) < 0.5).astype("float32")
WEIGHTS = pytest.mark.parametrize("weight", [(), (WEIGHT,)], ids=["", "weights"])


def loss_and_gradient(loss, weight, y_pred=Y_PRED):
    return jax.value_and_grad(loss, argnums=1)(Y_TRUE, y_pred, *weight)


def assert_close(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=1e-6, atol=1e-7)


@WEIGHTS
@pytest.mark.parametrize("disable_jit", [False, True])
@pytest.mark.parametrize("debug", [jax.debug_nans, jax.debug_infs])
def test_clean_data_passes_the_nan_and_inf_checks(debug, disable_jit, weight):
    expected = loss_and_gradient(SmoothL1Loss(), weight)
    with debug(True), jax.disable_jit(disable_jit):
        assert_close(loss_and_gradient(SmoothL1Loss(), weight), expected)


def test_debug_nans_reports_the_operation_that_made_the_nan():
    def step(x):
        return SmoothL1Loss()(Y_TRUE, jnp.log(x), WEIGHT)

    with (
        jax.debug_nans(True),
        jax.disable_jit(),
        pytest.raises(FloatingPointError, match="encountered in log"),
    ):
        step(Y_PRED)


@WEIGHTS
@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.numpy_rank_promotion("raise"),
        lambda: jax.numpy_dtype_promotion("strict"),
    ],
    ids=["rank_promotion", "dtype_promotion"],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"beta": [0.1, 0.2, 0.3, 0.4]},
        {"beta": [0.1, 0.2, 0.3, 2.4e-38]},
        {"reduce_dims": (1, 2)},
        {"reduction": "mean_with_sample_weight"},
    ],
    ids=str,
)
def test_no_rank_or_dtype_is_promoted(settings, setting, weight):
    expected = loss_and_gradient(SmoothL1Loss(**settings), weight)
    with setting():
        assert_close(loss_and_gradient(SmoothL1Loss(**settings), weight), expected)


@pytest.mark.parametrize(
    "settings", [{}, {"reduction": "sum"}, {"reduction": None}, {"reduce_dims": -1}]
)
@pytest.mark.parametrize("shape", ["b", "b, 1", "b, 4", "b, h, 4"])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_exported_loss_accepts_any_sizes(settings, shape, weighted):
    loss, scope = SmoothL1Loss(**settings), jax.export.SymbolicScope()

    def spec(shape):
        sizes = jax.export.symbolic_shape(shape, scope=scope)
        return jax.ShapeDtypeStruct(sizes, "float32")

    specs = [spec(shape)] * 2 + [spec("b")] * weighted
    exported = jax.export.export(jax.jit(lambda *x: loss(*x)))(*specs)
    for batch in (1, 7):
        sizes = {"b": batch, "h": 5, "1": 1, "4": 4}
        arguments = [
            RNG.normal(size=[sizes[n] for n in each.split(", ")]).astype("float32")
            for each in (shape, shape, "b")[: len(specs)]
        ]
        assert_close([exported.call(*arguments)], [loss(*arguments)])


class Parameter:
    """Like flax.nnx.Param: not an array, but convertible to one."""

    def __init__(self, value):
        self.value, self.shape, self.dtype = value, value.shape, value.dtype

    def __jax_array__(self):
        return self.value


def test_beta_may_be_a_parameter():
    def total(beta):
        return smooth_l1_loss(Y_TRUE, Y_PRED, beta).sum()

    beta = jnp.float32(0.5)
    assert_close([total(Parameter(beta))], [total(beta)])
    by_parameter = jax.grad(lambda x: total(Parameter(x)))(beta)
    assert_close([by_parameter], [jax.grad(total)(beta)])


class AddLoss(keras.layers.Layer):
    def call(self, y_true, y_pred, weight):
        self.add_loss(SmoothL1Loss()(y_true, y_pred, weight))
        return y_pred


def test_a_layer_of_a_functional_model_can_add_the_loss():
    x, y_true, weight = (keras.Input(shape) for shape in ((8,), (2, 2), ()))
    y_pred = keras.layers.Reshape((2, 2))(keras.layers.Dense(4)(x))
    model = keras.Model([x, y_true, weight], AddLoss()(y_true, y_pred, weight))
    model.compile("sgd")
    data = [RNG.normal(size=(20, *n)).astype("float32") for n in ((8,), (2, 2))]
    data.append(RNG.random(20).astype("float32"))
    history = model.fit(data, epochs=5, verbose=0).history["loss"]
    assert history[-1] < history[0]

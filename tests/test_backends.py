"""The overrides of a backend have the interface and the results of the reference."""

import inspect

import keras
import numpy as np
import pytest
from helpers.autodiff import to_numpy
from helpers.pairwise import pairwise

from keras_smoothl1 import backends
from keras_smoothl1.backends import Backend, backend

RNG = np.random.default_rng(7)
Y_TRUE, Y_PRED, WEIGHT = RNG.normal(size=(3, 4, 6, 32)).astype("float32")
WEIGHT[:, ::2] = 0
MISSING = np.where(WEIGHT == 0, np.float32("nan"), Y_TRUE)


def test_overrides_have_the_signatures_of_the_interface():
    overridden = [name for name in vars(type(backend)) if not name.startswith("__")]
    assert overridden
    for name in overridden:
        assert name in vars(Backend)
        if name != "xp":
            own, reference = (
                list(inspect.signature(getattr(cls, name)).parameters.values())
                for cls in (type(backend), Backend)
            )
            kinds = [(x.name, x.kind, x.default) for x in own]
            assert kinds == [(x.name, x.kind, x.default) for x in reference]


def test_other_backends_use_the_reference(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    assert type(backends._backend_of_keras()) is Backend


def compare(method, *arguments, **settings):
    actual, expected = (
        to_numpy(getattr(x, method)(*arguments, **settings))
        for x in (backend, Backend())
    )
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-7)
    assert actual.dtype == expected.dtype


def tensor(x):
    return None if x is None else keras.ops.convert_to_tensor(x)


TENSOR_BETA = np.array(0.5, "float32")
BETAS = [0.5, (0.25, 2.0) * 16, 2.4e-38, TENSOR_BETA]
WEIGHTS = [None, WEIGHT, WEIGHT[:, :, :1], WEIGHT != 0]


def inputs(beta, weight):
    y_true = Y_TRUE if weight is None or weight.shape != Y_TRUE.shape else MISSING
    beta = tensor(beta) if beta is TENSOR_BETA else beta
    return tensor(y_true), tensor(Y_PRED), beta, tensor(weight)


@pairwise(beta=BETAS, weight=WEIGHTS)
def test_weighted_losses(beta, weight):
    compare("weighted_losses", *inputs(beta, weight))


@pairwise(
    beta=BETAS,
    weight=WEIGHTS,
    axes=[None, (0,), (1, 2), (0, 1, 2)],
    divisor=[1, 24, np.array(24.0), np.array(0.0)],
)
def test_weighted_sums(beta, weight, axes, divisor):
    size = divisor if isinstance(divisor, int) else tensor(divisor.astype("float32"))
    compare("weighted_sum", *inputs(beta, weight), axes=axes, divisor=size)


@pytest.mark.parametrize("axes", [None, (), (0,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("shape", [(4, 6, 32), (4, 1, 1), (1, 1, 1), (0, 6, 32)])
def test_sums_and_sizes(axes, shape):
    x = tensor(np.full(shape, 0.5, "float32"))
    compare("sum", x, axes)
    assert backend.size(x, axes) == Backend().size(x, axes)


@pytest.mark.parametrize("y", [4, [4, 0.5, 2], [2, 0, 0]], ids=repr)
def test_quotients_without_nan(y):
    x = tensor(np.array([1, -2, 0], "float32"))
    compare("divide_no_nan", x, y if isinstance(y, int) else tensor(np.float32(y)))


def test_where_or_zero_drops_nan_and_infinity():
    missing = tensor(np.array([np.nan, np.inf, 3], "float32"))
    compare("where_or_zero", tensor(np.array([False, False, True])), missing)


def test_errors_that_are_not_finite_are_dropped_at_a_weight_of_0():
    errors = tensor(np.array([np.nan, 2, -np.inf], "float32"))
    compare("zero_where_missing", errors, tensor(np.array([0, -1, 0], "float32")))


@pytest.mark.parametrize("shape", [(4, 6, 32), (4, 6, 32, 1)])
def test_shapes_compatible_with_y_pred(shape):
    y_pred = tensor(Y_PRED)
    compare("reshape_like", tensor(Y_TRUE.reshape(shape)), y_pred)
    compare("ensure_same_shape", tensor(Y_TRUE), y_pred)
    compare("ensure_broadcastable", tensor(WEIGHT[:, :1]), y_pred, "sample_weight")
    compare("ensure_last_axis", y_pred, 32)
    compare("expand_rank_like", tensor(WEIGHT[:, 0, 0]), y_pred, "sample_weight")


def test_the_reference_rejects_ragged_tensors():
    reference = Backend()
    assert not reference.is_ragged(Y_PRED)
    for method, arguments in (
        (reference.ragged_values, (Y_TRUE, Y_PRED, "y_true")),
        (reference.with_rows_of, (Y_PRED, Y_TRUE)),
    ):
        with pytest.raises(NotImplementedError, match="no ragged tensors"):
            method(*arguments)

"""Gradients by the automatic differentiation of the backend."""

import numpy as np
import pytest
from helpers import oracle
from helpers.autodiff import value_and_gradients
from helpers.pairwise import pairwise

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss

RNG = np.random.default_rng(1)
Y_TRUE = RNG.normal(size=(4, 3, 5)).astype("float32")
Y_PRED = RNG.normal(size=(4, 3, 5)).astype("float32")


@pairwise(
    beta=[0.1, 1.0, (0.1, 0.3, 1.0, 3.0, 10.0)],
    reduction=[None, "sum", "mean"],
    reduce_dims=[None, -1, (1, 2)],
)
def test_gradients_wrt_y_pred_and_y_true(beta, reduction, reduce_dims):
    loss = SmoothL1Loss(beta, reduction, reduce_dims)
    value, (grad_true, grad_pred) = value_and_gradients(loss, Y_TRUE, Y_PRED)
    expected, gradient = oracle.loss_and_gradient(
        Y_TRUE,
        Y_PRED,
        beta,
        reduction=reduction,
        reduce_dims=() if reduce_dims is None else reduce_dims,
    )
    np.testing.assert_allclose(value, expected, rtol=3e-6)
    np.testing.assert_allclose(grad_pred, gradient, rtol=1e-6)
    np.testing.assert_allclose(grad_true, -gradient, rtol=1e-6)


@pytest.mark.parametrize(
    ("error", "slope"),
    [
        (0.0, 0.0),
        (1e-36, 1e-36),
        (0.5, 0.5),
        (1.0, 1.0),
        (-1.0, -1.0),
        (3e38, 1.0),
        (np.inf, 1.0),
        (-np.inf, -1.0),
        (np.nan, np.nan),
    ],
)
def test_slope_of_single_errors(error, slope):
    _, (_, grad_pred) = value_and_gradients(
        smooth_l1_loss, np.zeros(1, "float32"), np.array([error], "float32")
    )
    np.testing.assert_allclose(grad_pred, [slope], rtol=1e-6)


@pytest.mark.parametrize("beta", [1e-37, 1e-6, 1 / 9, 1.0, 1e6, 1e37])
def test_slopes_are_at_most_1_and_never_nan(beta):
    errors = np.geomspace(1e-37, 3e38, 1000).astype("float32")
    errors = np.concatenate([errors, -errors, [0.0], [np.float32(beta)]])
    errors = errors.astype("float32")
    _, (_, grad_pred) = value_and_gradients(
        lambda y_true, y_pred: smooth_l1_loss(y_true, y_pred, beta), errors * 0, errors
    )
    assert np.all(np.abs(grad_pred) <= 1)
    _, slope = oracle.value_and_slope(errors, np.float32(beta))
    normal = np.abs(slope) >= np.finfo("float32").tiny
    np.testing.assert_allclose(grad_pred[normal], slope[normal], rtol=2e-7)


@pytest.mark.parametrize(
    ("error", "beta", "size"), [(1e-29, 1e-28, 2**16), (1e-20, 1e-3, 2**10)]
)
def test_the_mean_of_many_tiny_errors_is_accurate(error, beta, size):
    # The square of either error is below the smallest normal number.
    errors = np.full(size, error, "float32")
    value, (_, grad_pred) = value_and_gradients(SmoothL1Loss(beta), errors * 0, errors)
    np.testing.assert_allclose(value, error**2 / (2 * beta), rtol=1e-6)
    np.testing.assert_allclose(grad_pred, error / beta / size, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_the_gradient_wrt_beta_is_minus_half_the_squared_slope(beta):
    _, (grad_beta,) = value_and_gradients(
        lambda beta: smooth_l1_loss(Y_TRUE, Y_PRED, beta), np.array(beta, "float32")
    )
    _, slope = oracle.value_and_slope(Y_PRED - Y_TRUE, beta)
    np.testing.assert_allclose(grad_beta, np.sum(-(slope**2) / 2), rtol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", None])
@pytest.mark.parametrize("weight", [(), (2.0,)])
def test_a_scalar_error_has_a_scalar_loss_and_slope(reduction, weight):
    loss = SmoothL1Loss(reduction=reduction)
    value, (_, slope, *_) = value_and_gradients(
        loss, *map(np.float32, (1.0, 3.5, *weight))
    )
    assert value.shape == slope.shape == ()
    assert value == 2 * (1, *weight)[-1]
    assert slope == (1, *weight)[-1]


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_an_empty_batch_has_an_empty_gradient(shape):
    empty = np.zeros(shape, "float32")
    _, (_, grad_pred) = value_and_gradients(SmoothL1Loss(), empty, empty)
    assert grad_pred.shape == shape

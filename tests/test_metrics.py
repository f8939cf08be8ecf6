"""SmoothL1Error: the mean over all elements of all batches."""

import keras
import numpy as np
import pytest
from helpers import oracle
from helpers.autodiff import to_numpy

from keras_smoothl1 import SmoothL1Error

RNG = np.random.default_rng(4)
Y_TRUE, Y_PRED = RNG.normal(size=(2, 6, 5)).astype("float32")


def test_the_result_is_the_mean_over_all_batches():
    metric = SmoothL1Error(beta=0.5)
    for batch in (slice(0, 1), slice(1, 6)):
        metric.update_state(Y_TRUE[batch], Y_PRED[batch])
    expected, _ = oracle.loss_and_gradient(Y_TRUE, Y_PRED, 0.5)
    np.testing.assert_allclose(to_numpy(metric.result()), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (6,), (6, 5), (6, 1), (1, 5)])
def test_the_result_with_weights_is_the_weighted_mean(shape):
    weight = RNG.integers(0, 3, shape).astype("float32") + (shape == ())
    metric = SmoothL1Error(beta=0.5)
    expected, _ = oracle.loss_and_gradient(
        Y_TRUE, Y_PRED, 0.5, weight, reduction="mean_with_sample_weight"
    )
    value = metric(Y_TRUE, Y_PRED, sample_weight=weight)
    np.testing.assert_allclose(to_numpy(value), expected, rtol=1e-6)


def test_masked_elements_do_not_count():
    layer = keras.layers.Masking()
    y_pred = Y_PRED.reshape(2, 3, 5).copy()
    y_pred[1, 1:] = 0
    mask = np.array([[1, 1, 1], [1, 0, 0]], bool)
    y_true = Y_TRUE.reshape(2, 3, 5).copy()
    y_true[~mask] = np.nan
    metric = SmoothL1Error()
    expected, _ = oracle.loss_and_gradient(y_true, y_pred, 1.0, None, mask)
    value = metric(y_true, layer(y_pred))
    np.testing.assert_allclose(to_numpy(value), expected, rtol=1e-6)


class CountingError(SmoothL1Error):
    def __init__(self):
        super().__init__(beta=0.5)
        self.batches = self.add_variable((), "zeros", name="batches")


def test_a_subclass_may_have_more_variables():
    metric, expected = CountingError(), SmoothL1Error(beta=0.5)
    assert to_numpy(metric(Y_TRUE, Y_PRED)) == to_numpy(expected(Y_TRUE, Y_PRED))
    assert to_numpy(metric.batches.value) == 0


def test_the_result_is_zero_before_updates_and_after_a_reset():
    metric = SmoothL1Error()
    assert to_numpy(metric.result()) == 0
    assert to_numpy(metric(Y_TRUE, Y_PRED)) > 0
    metric.reset_state()
    assert to_numpy(metric.result()) == 0


def test_missing_targets_with_weight_zero_do_not_count():
    metric = SmoothL1Error()
    y_true = Y_TRUE.copy()
    y_true[2] = np.nan
    weight = np.ones(6, "float32")
    weight[2] = 0
    rows = weight > 0
    expected, _ = oracle.loss_and_gradient(Y_TRUE[rows], Y_PRED[rows])
    value = metric(y_true, Y_PRED, weight)
    np.testing.assert_allclose(to_numpy(value), expected, rtol=1e-6)


def test_a_float16_metric_counts_beyond_the_range_of_float16():
    metric = SmoothL1Error(dtype="float16")
    for _ in range(2):
        metric.update_state(np.zeros(100_000), np.full(100_000, 3.0))
    assert to_numpy(metric.result()) == 2.5
    assert keras.backend.standardize_dtype(metric.result().dtype) == "float16"


def test_many_small_batches_after_a_large_one_all_count():
    # In float32, 2^20 + 0.1 rounds to 2^20 + 0.125.
    metric = SmoothL1Error()
    metric.update_state([0.0], [1.5], 2.0**20)  # a loss of 1
    for _ in range(500):
        metric.update_state([0.0], [3.5], 0.1)  # a loss of 3
    weight = 500 * float(np.float32(0.1))
    expected = (2.0**20 + 3 * weight) / (2.0**20 + weight)
    np.testing.assert_allclose(to_numpy(metric.result()), expected, rtol=2e-7)


# NumPy warns where the remainder of an infinite sum is computed.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_infinite_loss_makes_the_result_infinite():
    metric = SmoothL1Error()
    for y_pred in (1.0, np.inf, 1.0):
        metric.update_state([0.0], [y_pred])
    assert to_numpy(metric.result()) == np.inf
    metric.reset_state()
    assert to_numpy(metric(Y_TRUE, Y_PRED)) < 10

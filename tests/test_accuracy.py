"""Differences from exact results, in units in the last place, in each mode."""

import itertools

import keras
import mpmath
import numpy as np
import pytest
from helpers import exact
from helpers.autodiff import BACKEND, to_numpy, value_and_gradients

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss

BETAS = {
    "float32": [2.36e-38, 1e-37, 1e-20, 1e-6, 1 / 9, 1.0, 1.5, 1e4, 1e20, 8e37],
    "float64": [4.46e-308, 1e-300, 1e-100, 1e-20, 1 / 9, 1.0, 1e4, 1e100, 4e307],
}
# JAX has float64 only if JAX_ENABLE_X64 is set.
DTYPES = (
    ["float32", "float64"]
    if keras.ops.convert_to_tensor(np.zeros(1)).dtype in (np.float64, "float64")
    or BACKEND == "torch"
    else ["float32"]
)
CASES = pytest.mark.parametrize(
    ("dtype", "beta"), [(dtype, beta) for dtype in DTYPES for beta in BETAS[dtype]]
)


def eager(function):
    return function


def graph(function):
    import tensorflow as tf

    return tf.function(function, autograph=False)


def compiled(function):
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)


RUNS = {
    "jax": [eager, compiled],
    "tensorflow": [eager, graph, compiled],
    "torch": [eager],
}[BACKEND]
RUN = pytest.mark.parametrize("run", RUNS)


@RUN
@pytest.mark.parametrize("kind", ["number", "scalar tensor", "tensor"])
@CASES
def test_each_value_and_slope_is_within_1_5_ulp(dtype, beta, kind, run):
    errors = exact.errors(beta, dtype)
    values, slopes = exact.value_and_slope(errors, beta)
    if kind != "number":
        shape = errors.shape if kind == "tensor" else ()
        beta = keras.ops.convert_to_tensor(np.full(shape, beta, dtype))
    result, (_, slope) = value_and_gradients(
        run(lambda y_true, y_pred: smooth_l1_loss(y_true, y_pred, beta)),
        np.zeros_like(errors),
        errors,
    )
    for actual, expected in ((result, values), (slope, slopes)):
        assert actual.dtype == dtype
        worst, non_finite = exact.worst_ulp(actual, expected)
        assert non_finite == 0
        assert worst <= 1.5
    assert np.abs(slope).max() <= 1


@CASES
def test_means_of_groups_of_four_are_within_4_ulp(dtype, beta):
    errors = np.sort(np.abs(exact.errors(beta, dtype)))
    errors = errors[: len(errors) // 4 * 4].reshape(-1, 4) / 8  # no sum overflows
    values, _ = exact.value_and_slope(errors.reshape(-1), beta)
    means = [sum(values[i : i + 4]) / 4 for i in range(0, len(values), 4)]
    result = to_numpy(smooth_l1_loss(errors * 0, errors, beta, reduce_dims=-1))[:, 0]
    normal = [i for i in range(len(means)) if values[4 * i] > np.finfo(dtype).tiny]
    worst, non_finite = exact.worst_ulp(result[normal], [means[i] for i in normal])
    assert non_finite == 0
    assert worst <= 4


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@CASES
def test_mean_and_sum_and_their_gradients_are_within_4_ulp(dtype, beta, reduction):
    errors = exact.errors(beta, dtype)
    errors = errors[np.abs(errors) < np.finfo(dtype).max / 1e4]  # no sum overflows
    values, slopes = exact.value_and_slope(errors, beta)
    share = 1 / mpmath.mpf(len(errors)) if reduction == "mean" else mpmath.mpf(1)
    loss = SmoothL1Loss(beta, reduction, dtype=dtype)
    result, (_, gradient) = value_and_gradients(loss, np.zeros_like(errors), errors)
    with mpmath.workprec(200):
        total = mpmath.fsum(values) * share
        slopes = [slope * share for slope in slopes]
    for actual, expected, bound in (
        (result[None], [total], 4),
        (gradient, slopes, 2.5),
    ):
        assert actual.dtype == dtype
        worst, non_finite = exact.worst_ulp(actual, expected)
        assert non_finite == 0
        assert worst <= bound


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@RUN
@pytest.mark.parametrize("shape", [(2**24,), (2**24 + 7,), (2**24, 1), (4096, 4096)])
def test_sums_of_2_to_the_24_elements_are_accurate_to_2e_6(shape, run, reduction):
    error = np.float32(0.6)  # a naive sum of its loss, 0.18, loses digits
    y_pred = np.full(shape, error)
    loss = SmoothL1Loss(beta=1.0, reduction=reduction)
    expected = float(error) ** 2 / 2 * (y_pred.size if reduction == "sum" else 1)
    result = run(lambda y_true, y_pred: loss(y_true, y_pred))(
        np.zeros_like(y_pred), y_pred
    )
    np.testing.assert_allclose(float(to_numpy(result)), expected, rtol=2e-6)


@RUN
@pytest.mark.parametrize(
    ("shape", "reduce_dims"),
    [
        ((2**24, 1), 0),
        ((2**23, 2), 0),
        ((4096, 4096), 0),
        ((2, 2**23), 1),
        ((2, 2**20 + 1), 1),
        ((16, 1024, 1024), (1, 2)),
    ],
)
def test_means_of_large_groups_are_accurate_to_2e_6(shape, reduce_dims, run):
    y_pred = np.full(shape, np.float32(0.6))
    expected = float(np.float32(0.6)) ** 2 / 2
    result = run(
        lambda y_true, y_pred: smooth_l1_loss(y_true, y_pred, 1.0, reduce_dims)
    )(np.zeros_like(y_pred), y_pred)
    np.testing.assert_allclose(to_numpy(result), expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("shape", "run"),
    [
        *(((2**16, 3, 4), run) for run in RUNS if run is not eager),
        *((shape, RUNS[-1]) for shape in [(2**12, 2, 3, 2, 2), (2, 3, 2**12, 2, 2)]),
        ((2**14, 3, 4), eager),
    ],
)
def test_sums_over_any_axes_are_accurate_to_2e_6(shape, run):
    y_true = np.zeros(shape, "float32")
    y_pred = np.full(shape, np.float32(0.6))
    loss = float(np.float32(0.6)) ** 2 / 2
    mask, axes = np.arange(shape[0]) > 0, range(len(shape))
    subsets = [x for n in axes for x in itertools.combinations(axes, n + 1)]
    betas = [np.ones([1 if a in x else shape[a] for a in axes], "f4") for x in subsets]

    def means(y_true, y_pred):
        return [
            smooth_l1_loss(y_true, y_pred, 1.0, subset, mask=any_mask)
            for subset in subsets
            for any_mask in (None, mask)
        ]

    def total(y_true, y_pred, *betas):
        return sum(
            keras.ops.sum(smooth_l1_loss(y_true, y_pred, beta)) for beta in betas
        )

    for mean in map(to_numpy, run(means)(y_true, y_pred)):
        # The group of a masked sample has nothing to average.
        assert np.count_nonzero(mean) >= mean.size * (1 - 1 / shape[0])
        np.testing.assert_allclose(mean[mean != 0], loss, rtol=2e-6)
    _, gradients = value_and_gradients(run(total), y_true, y_pred, *betas)
    for beta, gradient in zip(betas, gradients[2:], strict=True):
        expected = -loss * y_pred.size / beta.size
        np.testing.assert_allclose(gradient, expected, rtol=2e-6)


@RUN
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_equals_float32_rounded_once(dtype, run):
    y_pred = keras.ops.cast(np.linspace(-3, 3, 1000, dtype="float32"), dtype)
    y_true = keras.ops.zeros_like(y_pred)
    wide = smooth_l1_loss(y_true, keras.ops.cast(y_pred, "float32"), 1 / 9)
    result = run(lambda a, b: smooth_l1_loss(a, b, 1 / 9))(y_true, y_pred)
    np.testing.assert_array_equal(
        to_numpy(result), to_numpy(keras.ops.cast(wide, dtype))
    )
    mean = run(lambda a, b: SmoothL1Loss(1 / 9, dtype=dtype)(a, b))(y_true, y_pred)
    np.testing.assert_array_equal(
        to_numpy(mean),
        to_numpy(keras.ops.cast(keras.ops.mean(wide), dtype)),
    )

"""Values, reductions, reduce_dims and shapes, mostly for hand-computed numbers."""

import keras
import ml_dtypes
import numpy as np
import pytest
from helpers import oracle
from helpers.autodiff import to_numpy

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss

# Errors 0.5 (quadratic), 0, 3 (linear), -1 (at the threshold of beta = 1).
Y_TRUE = np.array([[0.0, 1.0], [0.0, 0.0]], "float32")
Y_PRED = np.array([[0.5, 1.0], [3.0, -1.0]], "float32")
LOSSES = {
    1.0: [[0.125, 0.0], [2.5, 0.5]],
    0.5: [[0.25, 0.0], [2.75, 0.75]],
    4.0: [[0.03125, 0.0], [1.125, 0.125]],
}
IMAGES_TRUE = np.zeros((2, 3, 4, 5), "float32")
IMAGES_PRED = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype("float32")


@pytest.mark.parametrize("beta", LOSSES)
def test_elementwise_losses_follow_the_formula(beta):
    loss = to_numpy(SmoothL1Loss(beta=beta, reduction=None)(Y_TRUE, Y_PRED))
    np.testing.assert_array_equal(loss, LOSSES[beta])
    np.testing.assert_array_equal(to_numpy(smooth_l1_loss(Y_TRUE, Y_PRED, beta)), loss)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sum_over_batch_size", 3.125 / 4),
        ("mean", 3.125 / 4),
        ("auto", 3.125 / 4),
        ("mean_with_sample_weight", 3.125 / 4),
        ("sum", 3.125),
        ("none", LOSSES[1.0]),
        (None, LOSSES[1.0]),
    ],
)
def test_reduction(reduction, expected):
    loss = SmoothL1Loss(reduction=reduction)
    np.testing.assert_array_equal(to_numpy(loss(Y_TRUE, Y_PRED)), expected)


def test_auto_is_stored_as_sum_over_batch_size():
    assert SmoothL1Loss(reduction="auto").reduction == "sum_over_batch_size"


def test_the_loss_is_huber_divided_by_beta():
    huber = keras.losses.Huber(delta=0.25)(Y_TRUE, Y_PRED) / 0.25
    np.testing.assert_allclose(
        to_numpy(SmoothL1Loss(beta=0.25)(Y_TRUE, Y_PRED)), to_numpy(huber), rtol=1e-6
    )


def test_a_small_beta_gives_the_absolute_error():
    loss = SmoothL1Loss(beta=1e-30, reduction=None)(Y_TRUE, Y_PRED)
    np.testing.assert_array_equal(to_numpy(loss), abs(Y_PRED - Y_TRUE))


def test_a_large_beta_gives_the_squared_error_divided_by_two_beta():
    loss = SmoothL1Loss(beta=1e30, reduction=None)(Y_TRUE, Y_PRED)
    np.testing.assert_allclose(
        to_numpy(loss), (Y_PRED - Y_TRUE) ** 2 / 2e30, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("error", "loss"),
    [(0.0, 0.0), (-0.0, 0.0), (np.inf, np.inf), (-np.inf, np.inf), (np.nan, np.nan)],
)
@pytest.mark.parametrize("beta", [1e-30, 1.0, 1e30])
def test_zero_infinite_and_nan_errors(error, loss, beta):
    result = to_numpy(smooth_l1_loss([0.0], np.array([error], "float32"), beta))
    np.testing.assert_array_equal(result, [loss])


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize(
    "reduce_dims", [None, (), 0, -1, [1], (1, 2, 3), (3, 1), (-1, 0), (0, 1, 2, 3)]
)
def test_reduce_dims_averages_over_the_dimensions(reduce_dims, keepdims):
    elementwise = to_numpy(smooth_l1_loss(IMAGES_TRUE, IMAGES_PRED, 0.5))
    axes = () if reduce_dims is None else tuple(np.atleast_1d(reduce_dims).astype(int))
    expected = elementwise.mean(axes, keepdims=keepdims)
    for result in (
        smooth_l1_loss(IMAGES_TRUE, IMAGES_PRED, 0.5, reduce_dims, keepdims),
        SmoothL1Loss(0.5, None, reduce_dims, keepdims)(IMAGES_TRUE, IMAGES_PRED),
    ):
        assert tuple(result.shape) == expected.shape
        np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-6)


@pytest.mark.parametrize("reduce_dims", [None, -1, (1, 2, 3), (0, 2)])
def test_reduce_dims_changes_the_sum_but_not_the_mean(reduce_dims):
    arguments = {"y_true": IMAGES_TRUE, "y_pred": IMAGES_PRED}
    for reduction in ("mean", "sum"):
        loss = SmoothL1Loss(0.5, reduction, reduce_dims)
        expected, _ = oracle.loss_and_gradient(
            **arguments,
            beta=0.5,
            reduction=reduction,
            reduce_dims=() if reduce_dims is None else reduce_dims,
        )
        np.testing.assert_allclose(to_numpy(loss(**arguments)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("true_shape", "pred_shape"),
    [((4,), (4, 1)), ((4, 1), (4,)), ((4, 3), (4, 3, 1)), ((4, 3, 1), (4, 3))],
)
def test_a_trailing_dimension_of_1_may_be_missing(true_shape, pred_shape):
    y_pred = np.arange(np.prod(pred_shape), dtype="float32").reshape(pred_shape)
    y_true = np.ones(true_shape, "float32")
    expected, _ = oracle.value_and_slope(y_pred - 1, 1.0)
    loss = to_numpy(SmoothL1Loss(reduction=None)(y_true, y_pred))
    np.testing.assert_array_equal(loss, expected)


@pytest.mark.parametrize(
    ("true_shape", "pred_shape"),
    [
        ((4,), (4, 4)),
        ((4, 1), (4, 4)),
        ((4, 4), (4, 1)),
        ((1, 4), (4, 4)),
        ((4,), (3,)),
        ((), (4,)),
        ((4,), ()),
        ((4, 1, 1), (4,)),
        ((4, 2), (4, 3)),
    ],
)
@pytest.mark.parametrize("loss", [SmoothL1Loss(), smooth_l1_loss])
def test_incompatible_shapes_raise_an_error_with_both(loss, true_shape, pred_shape):
    with pytest.raises(ValueError, match="y_true and y_pred") as error:
        loss(np.zeros(true_shape, "float32"), np.zeros(pred_shape, "float32"))
    assert f"y_true of shape {true_shape}" in str(error.value)
    assert f"y_pred of shape {pred_shape}" in str(error.value)


def test_a_scalar_error_has_a_scalar_loss():
    assert to_numpy(SmoothL1Loss()(1.0, 3.0)).tolist() == 1.5
    assert to_numpy(smooth_l1_loss(1, 3)).tolist() == 1.5


def test_one_beta_for_each_entry_of_the_last_axis():
    y_pred = np.array([[[0.5, 0.5, 0.5]]], "float32")
    expected = [[[0.375, 0.25, 0.0625]]]
    for beta in ((0.25, 0.5, 2.0), [0.25, 0.5, 2], np.array([0.25, 0.5, 2.0])):
        loss = SmoothL1Loss(beta, reduction=None)
        np.testing.assert_array_equal(to_numpy(loss(y_pred * 0, y_pred)), expected)
        result = smooth_l1_loss(y_pred * 0, y_pred, beta)
        np.testing.assert_array_equal(to_numpy(result), expected)


@pytest.mark.parametrize(
    "beta",
    [2, np.float32(2), np.int64(2), np.array(2.0), np.array(2, ml_dtypes.bfloat16)],
)
def test_beta_may_be_any_real_number(beta):
    assert SmoothL1Loss(beta).beta == 2.0
    assert type(SmoothL1Loss(beta).beta) is float


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_class_returns_its_dtype_and_the_function_that_of_y_pred(dtype):
    y_pred = keras.ops.convert_to_tensor(Y_PRED, dtype=dtype)
    loss = SmoothL1Loss(dtype=dtype)(Y_TRUE, Y_PRED)
    assert keras.backend.standardize_dtype(loss.dtype) == dtype
    loss = smooth_l1_loss(Y_TRUE, y_pred)
    assert keras.backend.standardize_dtype(loss.dtype) == dtype


def test_integers_are_computed_as_floats():
    loss = smooth_l1_loss([[1, 2]], keras.ops.convert_to_tensor([[3, 2]], "int32"))
    assert keras.backend.standardize_dtype(loss.dtype) == keras.backend.floatx()
    np.testing.assert_array_equal(to_numpy(loss), [[1.5, 0.0]])


def test_float16_is_rounded_once_at_the_end():
    y_pred = keras.ops.full((400_000,), 3.0, dtype="float16")
    y_true = keras.ops.zeros((400_000,), dtype="float16")
    assert to_numpy(SmoothL1Loss(dtype="float16")(y_true, y_pred)) == 2.5
    assert to_numpy(smooth_l1_loss(y_true, y_pred, reduce_dims=0)) == [2.5]


@pytest.mark.parametrize("reduction", ["mean", "mean_with_sample_weight", "sum"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_empty_batch_has_loss_zero(shape, reduction):
    empty = np.zeros(shape, "float32")
    assert to_numpy(SmoothL1Loss(reduction=reduction)(empty, empty)) == 0
    loss = SmoothL1Loss(reduction=reduction, reduce_dims=-1)
    assert to_numpy(loss(empty, empty)) == 0


def test_beta_may_be_a_variable():
    variable = keras.Variable(0.5)
    np.testing.assert_array_equal(
        to_numpy(smooth_l1_loss([0.0, 0.0], [0.25, 3.0], variable)),
        to_numpy(smooth_l1_loss([0.0, 0.0], [0.25, 3.0], 0.5)),
    )


def test_a_subclass_can_set_its_own_defaults():
    class BoxLoss(SmoothL1Loss):
        def __init__(self, **settings):
            super().__init__(beta=1 / 9, **settings)

    assert float(BoxLoss()([0.0], [1.0])) == float(SmoothL1Loss(1 / 9)([0.0], [1.0]))


def test_call_returns_the_losses_before_the_reduction():
    loss = SmoothL1Loss(reduce_dims=-1).call(Y_TRUE, Y_PRED)
    np.testing.assert_array_equal(to_numpy(loss), [[0.0625], [1.5]])


class TestBurn:
    """The methods of Burn's SmoothL1Loss, on which the package is based."""

    def test_the_default_config_has_beta_1(self):
        assert SmoothL1Loss().beta == 1.0

    def test_forward(self):
        element_wise = SmoothL1Loss(reduction=None)(IMAGES_TRUE, IMAGES_PRED)
        assert tuple(element_wise.shape) == IMAGES_PRED.shape
        expected, _ = oracle.value_and_slope(IMAGES_PRED, 1.0)
        np.testing.assert_allclose(to_numpy(element_wise), expected, rtol=1e-6)

    @pytest.mark.parametrize("reduction", ["mean", "auto", "sum"])
    def test_forward_with_reduction(self, reduction):
        loss = SmoothL1Loss(reduction=reduction)(IMAGES_TRUE, IMAGES_PRED)
        losses, _ = oracle.value_and_slope(IMAGES_PRED, 1.0)
        expected = losses.sum() if reduction == "sum" else losses.mean()
        np.testing.assert_allclose(to_numpy(loss), expected, rtol=1e-6)

    @pytest.mark.parametrize("dims", [[1, 2, 3], [3, 1, 2], [2, 3, 1]])
    def test_forward_reduce_dims(self, dims):
        loss_per_image = SmoothL1Loss(reduction=None, reduce_dims=dims)(
            IMAGES_TRUE, IMAGES_PRED
        )
        assert tuple(loss_per_image.shape) == (2, 1, 1, 1)
        losses, _ = oracle.value_and_slope(IMAGES_PRED, 1.0)
        np.testing.assert_allclose(
            to_numpy(loss_per_image), losses.mean((1, 2, 3), keepdims=True), rtol=1e-6
        )

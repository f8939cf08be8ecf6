"""Sample weights and masks: broadcasting, reductions and missing values."""

import keras
import numpy as np
import pytest
from helpers import oracle
from helpers.autodiff import to_numpy, value_and_gradients
from helpers.pairwise import pairwise
from keras.src.backend.common.masking import set_keras_mask

from keras_smoothl1 import SmoothL1Error, SmoothL1Loss
from keras_smoothl1.keras_internals import get_keras_mask

RNG = np.random.default_rng(2)
MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
REDUCTIONS = [None, "sum", "mean", "mean_with_sample_weight"]


def normal(shape):
    return RNG.normal(size=shape).astype("float32")


def weights(shape):
    """Random weights, some of them zero."""
    return (RNG.uniform(0.1, 2, shape) * RNG.integers(0, 3, shape)).astype("float32")


def masked(y_pred, mask):
    """y_pred with a mask, like the output of a layer."""
    y_pred = keras.ops.convert_to_tensor(y_pred)
    set_keras_mask(y_pred, keras.ops.convert_to_tensor(mask, "bool"))
    assert get_keras_mask(y_pred) is not None
    return y_pred


@pairwise(
    shape=[
        (),
        (1,),
        (4,),
        (4, 3),
        (4, 1),
        (1, 3),
        (4, 3, 2),
        (4, 1, 2),
        (4, 3, 2, 5),
        (1, 1, 1, 5),
    ],
    reduction=REDUCTIONS,
    reduce_dims=[None, -1, (1, 2, 3), 0],
)
def test_weights_are_broadcast_from_the_left(shape, reduction, reduce_dims):
    y_true, y_pred, weight = normal((4, 3, 2, 5)), normal((4, 3, 2, 5)), weights(shape)
    loss = SmoothL1Loss(0.5, reduction, reduce_dims)
    value, (grad_pred,) = value_and_gradients(lambda x: loss(y_true, x, weight), y_pred)
    expected, gradient = oracle.loss_and_gradient(
        y_true,
        y_pred,
        0.5,
        weight,
        reduction=reduction,
        reduce_dims=() if reduce_dims is None else reduce_dims,
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grad_pred, gradient, rtol=1e-5)


@pairwise(
    mask_shape=[(4,), (4, 3), (4, 3, 2), (4, 1)],
    reduction=REDUCTIONS,
    reduce_dims=[None, -1, (1, 2), (0, 1)],
    weight_shape=[None, (4,), (4, 3), (4, 3, 2)],
)
def test_masked_elements_never_count(mask_shape, reduction, reduce_dims, weight_shape):
    y_true, y_pred = normal((4, 3, 2)), normal((4, 3, 2))
    mask = RNG.integers(0, 2, mask_shape).astype(bool)
    mask[0] = False
    mask[1] = True
    weight = None if weight_shape is None else weights(weight_shape)
    loss = SmoothL1Loss(0.5, reduction, reduce_dims)
    expected, gradient = oracle.loss_and_gradient(
        y_true,
        y_pred,
        0.5,
        weight,
        mask,
        reduction,
        () if reduce_dims is None else reduce_dims,
    )
    value, (grad_pred,) = value_and_gradients(
        lambda x: loss(y_true, masked(x, mask), weight), y_pred
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grad_pred, gradient, rtol=1e-5)


HIDDEN = [np.nan, np.inf, -np.inf]


@pairwise(
    reduction=REDUCTIONS,
    reduce_dims=[None, -1, 0],
    where=["y_true", "y_pred", "both"],
    hidden=HIDDEN,
)
def test_weight_zero_hides_missing_values(reduction, reduce_dims, where, hidden):
    y_true, y_pred, weight = normal((4, 3)), normal((4, 3)), weights((4, 3))
    weight[1] = 0
    loss = SmoothL1Loss(0.5, reduction, reduce_dims)
    expected = value_and_gradients(lambda x: loss(y_true, x, weight), y_pred)
    if where in ("y_true", "both"):
        y_true[weight == 0] = hidden
    if where in ("y_pred", "both"):
        y_pred[weight == 0] = hidden
    result = value_and_gradients(lambda x: loss(y_true, x, weight), y_pred)
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1][0], expected[1][0])
    assert np.all(result[1][0][weight == 0] == 0)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_mask_hides_missing_values_and_weights(reduction, hidden):
    y_true, y_pred, mask = normal((4, 3)), normal((4, 3)), np.array([1, 0, 1, 0], bool)
    weight = np.ones((4, 3), "float32")
    loss = SmoothL1Loss(0.5, reduction)

    def masked_loss(x):
        return loss(y_true, masked(x, mask), weight)

    expected = value_and_gradients(masked_loss, y_pred)
    y_true[1], y_pred[3], weight[3] = hidden, hidden, hidden
    result = value_and_gradients(masked_loss, y_pred)
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1][0], expected[1][0])
    assert np.all(result[1][0][~mask] == 0)


@pytest.mark.parametrize("reduce_dims", [None, -1, (0, 1)])
@pytest.mark.parametrize("reduction", ["sum", *MEANS])
def test_loss_and_gradient_are_zero_if_no_element_counts(reduction, reduce_dims):
    y_true, y_pred = np.full((4, 3), np.nan, "float32"), normal((4, 3))
    loss = SmoothL1Loss(reduction=reduction, reduce_dims=reduce_dims)
    value, (grad_pred,) = value_and_gradients(
        lambda x: loss(y_true, x, np.zeros(4, "float32")), y_pred
    )
    assert value == 0
    np.testing.assert_array_equal(grad_pred, np.zeros((4, 3)))
    assert to_numpy(loss(y_true, masked(y_pred, np.zeros(4, bool)))) == 0


# Shapes that Keras's Huber also accepts.
WEIGHT_SHAPES = {
    (4, 5): [(), (1,), (4,), (4, 1)],
    (4, 3, 5): [(), (4, 3), (4, 3, 1), (4, 1), (1, 3)],
    (4, 3, 2, 5): [(), (4, 3, 2), (4, 3, 2, 1), (4, 1, 1), (1, 3, 2)],
}


@pairwise(y_shape=WEIGHT_SHAPES, reduction=MEANS, with_mask=[False, True])
def test_means_match_huber_divided_by_beta(y_shape, reduction, with_mask):
    y_true, y_pred = normal(y_shape), normal(y_shape)
    mask = RNG.integers(0, 2, y_shape[:-1]).astype(bool)
    huber = keras.losses.Huber(delta=0.25, reduction=reduction)
    for weight_shape in [None, *WEIGHT_SHAPES[y_shape]]:
        weight = None if weight_shape is None else weights(weight_shape) + 0.1
        huber_weight = weight
        if weight is not None and (with_mask or reduction == "mean_with_sample_weight"):
            # Huber would broadcast the weight to the mask from the right, and divide by
            # the sum of the weights before they are broadcast.
            huber_weight = oracle.broadcast(weight, y_shape)[..., 0].copy()
        y = masked(y_pred, mask) if with_mask else keras.ops.convert_to_tensor(y_pred)
        np.testing.assert_allclose(
            to_numpy(SmoothL1Loss(0.25, reduction)(y_true, y, weight)),
            to_numpy(huber(y_true, y, huber_weight)) / 0.25,
            rtol=2e-6,
        )


def test_weights_of_shape_n_apply_to_the_first_axis_of_a_cube():
    y_pred = np.arange(27, dtype="float32").reshape(3, 3, 3)
    weight = np.array([0.0, 1.0, 2.0], "float32")
    loss = SmoothL1Loss()(y_pred * 0, y_pred, weight)
    expected, _ = oracle.loss_and_gradient(y_pred * 0, y_pred, 1.0, weight)
    np.testing.assert_allclose(to_numpy(loss), expected, rtol=1e-6)
    assert expected == 18.5


@pytest.mark.parametrize(
    "shape", [(3,), (5,), (4, 5), (4, 3, 2), (2, 3), (4, 3, 5, 2), (4, 3, 5, 1, 1)]
)
def test_an_incompatible_weight_raises_an_error_with_both_shapes(shape):
    y = normal((4, 3, 5))
    for function in (SmoothL1Loss(), SmoothL1Error().update_state):
        with pytest.raises(ValueError, match="sample_weight") as error:
            function(y, y, np.ones(shape, "float32"))
        assert f"sample_weight of shape {shape}" in str(error.value)
        assert "y_pred of shape (4, 3, 5)" in str(error.value)


def test_an_incompatible_mask_raises_an_error():
    y = normal((4, 3, 5))
    with pytest.raises(ValueError, match="mask of shape"):
        SmoothL1Loss()(y, masked(y, np.ones((4, 5), bool)))


def test_a_weight_may_have_an_extra_trailing_dimension_of_1():
    y_true, y_pred, weight = normal(4), normal(4), weights((4, 1))
    assert to_numpy(SmoothL1Loss()(y_true, y_pred, weight)) == to_numpy(
        SmoothL1Loss()(y_true, y_pred, weight[:, 0])
    )


def test_the_gradient_wrt_a_weight_is_the_loss():
    y_true, y_pred = normal((4, 3)), normal((4, 3))
    _, (grad_weight,) = value_and_gradients(
        lambda weight: SmoothL1Loss(reduction="sum")(y_true, y_pred, weight),
        np.ones((4, 3), "float32"),
    )
    losses, _ = oracle.value_and_slope(y_pred - y_true, 1.0)
    np.testing.assert_allclose(grad_weight, losses, rtol=1e-5)

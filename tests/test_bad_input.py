"""Errors are raised early, and name the argument and the received value."""

import copy
import re

import keras
import numpy as np
import pytest
from helpers.autodiff import to_numpy

from keras_smoothl1 import SmoothL1Error, SmoothL1Loss, smooth_l1_loss

Y = np.zeros((2, 3), "float32")


def with_beta(beta):
    return [
        lambda: SmoothL1Loss(beta=beta),
        lambda: SmoothL1Error(beta=beta),
        lambda: smooth_l1_loss(Y, Y, beta),
    ]


@pytest.mark.parametrize(
    "beta",
    [0, -1, -1e-30, float("nan"), float("inf"), -float("inf"), 1e-46, 1e39, 1e-38, 1e38]
    + [10**400, [1.0, 0.0, 1.0], np.array([1.0, -1.0, 1.0])],
)
def test_beta_out_of_range(beta):
    for make in with_beta(beta):
        with pytest.raises(ValueError, match="beta must be (positive|from)") as error:
            make()
        assert f"Received: beta={beta!r}" in str(error.value)


def test_the_error_for_beta_zero_suggests_the_absolute_error():
    with pytest.raises(ValueError, match=re.escape("keras.losses.MeanAbsoluteError")):
        SmoothL1Loss(beta=0)


@pytest.mark.parametrize(
    "beta",
    [True, np.True_, "1", None, b"1", 1j, {}, {"beta": 1}, {1.0}, abs, object()]
    + [[], (), np.zeros(0), [[1.0]], np.ones((1, 3)), [1.0, "1", 1.0], [1.0, None, 1.0]]
    + [[True, 1.0, 1.0], bytearray(b"123")]
    + [memoryview(b"123"), np.timedelta64(5, "s"), np.array([5, 6, 7], "m8[s]")],
)
def test_beta_of_an_invalid_type(beta):
    for make in with_beta(beta):
        with pytest.raises((TypeError, ValueError), match="beta") as error:
            make()
        assert "Received" in str(error.value)


def test_a_symbolic_tensor_raises_a_type_error_with_a_hint():
    for call in (SmoothL1Loss(), smooth_l1_loss):
        with pytest.raises(TypeError, match="y_pred must hold numbers.*compile"):
            call(Y, keras.Input((3,)))


def test_the_classes_reject_a_tensor_beta():
    """A config could not store it."""
    for make in with_beta(keras.ops.ones(()))[:2]:
        with pytest.raises(TypeError, match="beta"):
            make()


@pytest.mark.parametrize("beta", [[1.0], [1.0, 2.0], [1.0] * 4])
@pytest.mark.parametrize("y", [Y, np.float32(1.0)])
def test_a_beta_sequence_must_match_the_last_axis(beta, y):
    for call in (
        lambda: SmoothL1Loss(beta)(y, y),
        lambda: SmoothL1Error(beta)(y, y),
        lambda: smooth_l1_loss(y, y, beta),
    ):
        with pytest.raises(ValueError, match="beta must have one number") as error:
            call()
        assert str(y.shape) in str(error.value)


@pytest.mark.parametrize(
    "reduce_dims",
    ["1", 1.0, True, np.True_, {}, {1: 2}, {1}, [[1]], [1.0], [None], [True], [0, 0]]
    + [(1, 1), np.ones((1, 1), int), object()],
)
def test_reduce_dims_of_an_invalid_type(reduce_dims):
    for make in (
        lambda: SmoothL1Loss(reduce_dims=reduce_dims),
        lambda: smooth_l1_loss(Y, Y, reduce_dims=reduce_dims),
    ):
        with pytest.raises((TypeError, ValueError), match="reduce_dims") as error:
            make()
        assert f"Received: reduce_dims={reduce_dims!r}" in str(error.value)


@pytest.mark.parametrize("reduce_dims", [2, -3, (0, 5), (0, -2), (-1, 1)])
def test_reduce_dims_out_of_range_or_repeated(reduce_dims):
    for call in (
        lambda: SmoothL1Loss(reduce_dims=reduce_dims)(Y, Y),
        lambda: smooth_l1_loss(Y, Y, reduce_dims=reduce_dims),
    ):
        with pytest.raises(ValueError, match=r"reduce_dims must .*rank 2") as error:
            call()
        assert f"Received: reduce_dims={reduce_dims!r}" in str(error.value)


@pytest.mark.parametrize("reduction", ["average", "MEAN", "", 1, ["mean"], {}, True])
def test_unknown_reduction(reduction):
    with pytest.raises(ValueError, match="reduction must be") as error:
        SmoothL1Loss(reduction=reduction)
    assert f"Received: reduction={reduction!r}" in str(error.value)


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "float31", 5])
@pytest.mark.parametrize("make", [SmoothL1Loss, SmoothL1Error])
def test_dtype_must_be_floating_point(make, dtype):
    with pytest.raises((TypeError, ValueError), match="dtype must be"):
        make(dtype=dtype)


@pytest.mark.parametrize("keepdims", ["yes", 1, None])
def test_keepdims_must_be_a_bool(keepdims):
    for make in (
        lambda: SmoothL1Loss(keepdims=keepdims),
        lambda: smooth_l1_loss(Y, Y, keepdims=keepdims),
    ):
        with pytest.raises(TypeError, match="keepdims"):
            make()


@pytest.mark.parametrize("name", [5, ["name"]])
@pytest.mark.parametrize("make", [SmoothL1Loss, SmoothL1Error])
def test_name_must_be_a_string(make, name):
    with pytest.raises(TypeError, match="name must be"):
        make(name=name)


def test_a_tensor_beta_must_not_be_a_bool():
    with pytest.raises(TypeError, match="beta must have a numeric dtype"):
        smooth_l1_loss(Y, Y, keras.ops.convert_to_tensor(True))


def test_a_subclass_must_not_override_call():
    """The override would never be called."""
    with pytest.raises(TypeError, match=r"call\(\)"):
        type("Sub", (SmoothL1Loss,), {"call": lambda self, y_true, y_pred: y_pred})


@pytest.mark.parametrize("ragged", [[[1.0], [1.0, 2.0]], [1.0, [2.0]]])
@pytest.mark.parametrize("argument", ["y_true", "y_pred", "sample_weight"])
def test_ragged_lists_raise_an_error_that_names_the_argument(argument, ragged):
    with pytest.raises(ValueError, match=f"{argument} must be nested lists"):
        SmoothL1Loss()(**{"y_true": Y, "y_pred": Y, argument: ragged})


@pytest.mark.parametrize("cls", [SmoothL1Loss, SmoothL1Error])
def test_an_unknown_config_key_raises_an_error(cls):
    with pytest.raises((TypeError, ValueError), match="delta"):
        cls.from_config({**cls().get_config(), "delta": 1.0})


BAD_INPUTS = [
    "text",
    ["a", "b"],
    [["a", "b", "c"]] * 2,
    1j,
    [[1j, 0, 0]] * 2,
    np.ones((2, 3), "complex64"),
    np.full((2, 3), "a"),
    np.full((2, 3), None),
    None,
    [[None, 1.0, 1.0]] * 2,
    b"123",
    {"a": 1.0},
    {"a": np.ones((2, 3), "float32")},
]


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        (argument, bad)
        for argument in ("y_true", "y_pred", "sample_weight")
        for bad in BAD_INPUTS
        if not (argument == "sample_weight" and bad is None)  # None means no weights
    ],
)
def test_complex_string_or_object_input_raises_a_type_error(argument, bad):
    arguments = {"y_true": Y, "y_pred": Y, argument: bad}
    calls = [SmoothL1Loss(), SmoothL1Error().update_state]
    if argument != "sample_weight":
        calls.append(smooth_l1_loss)
    for call in calls:
        with pytest.raises(TypeError, match=f"{argument} must be"):
            call(**arguments)


def test_the_error_for_a_dict_shows_its_keys():
    with pytest.raises(TypeError, match=r"y_true of type dict with the keys \['a'\]"):
        SmoothL1Loss()({"a": Y}, Y)


def test_the_error_for_pandas_objects_shows_how_to_convert_them():
    pandas = pytest.importorskip("pandas")
    for bad in (
        pandas.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}),
        pandas.Series([1, None], dtype="Int64"),
        pandas.Series([1.0, "x"]),
    ):
        with pytest.raises(TypeError, match=r"y_true\.to_numpy") as error:
            SmoothL1Loss()(bad, np.zeros(2))
        assert len(str(error.value)) < 250


@pytest.mark.parametrize("argument", ["y_true", "y_pred", "sample_weight"])
def test_arrays_may_have_another_byte_order(argument):
    arguments = {"y_true": Y, "y_pred": Y + 1, "sample_weight": Y + 2}
    expected = to_numpy(SmoothL1Loss()(**arguments))
    arguments[argument] = arguments[argument].astype(">f4")
    assert to_numpy(SmoothL1Loss()(**arguments)) == expected


def test_the_error_for_a_mask_says_which_layer_to_look_for():
    with pytest.raises(ValueError, match=r"mask must be.*compute_mask\(\)"):
        smooth_l1_loss(Y, Y, mask=np.ones((3, 2), bool))


class WithArgument(SmoothL1Loss):
    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale


def test_copying_a_subclass_without_get_config_names_get_config():
    with pytest.raises(TypeError, match=r"override get_config\(\).*scale"):
        copy.deepcopy(WithArgument(2.0))

"""Random cases, compared with the oracle, and random configs, mostly invalid."""

import json

import keras
import numpy as np
from helpers import oracle
from helpers.autodiff import BACKEND, to_numpy, value_and_gradients
from hypothesis import event, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_weights_and_masks import masked

from keras_smoothl1 import SmoothL1Error, SmoothL1Loss

ERRORS = st.floats(-100, 100, width=32)


@st.composite
def cases(draw):
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4))
    beta = st.floats(0.0009765625, 64, width=32)
    if draw(st.booleans()) and shape[-1]:
        beta = draw(st.lists(beta, min_size=shape[-1], max_size=shape[-1]))
    else:
        beta = draw(beta)
    reduce_dims = draw(
        st.none()
        | st.lists(st.integers(0, len(shape) - 1), unique=True).map(
            lambda axes: [
                axis - len(shape) * draw(st.sampled_from([0, 1])) for axis in axes
            ]
        )
    )
    return {
        "y_true": draw(hnp.arrays("float32", shape, elements=ERRORS)),
        "y_pred": draw(hnp.arrays("float32", shape, elements=ERRORS)),
        "beta": beta,
        "sample_weight": draw(
            st.none() | broadcastable(draw, shape, st.integers(0, 3))
        ),
        "mask": draw(st.none() | broadcastable(draw, shape, st.integers(0, 1))),
        "reduction": draw(
            st.sampled_from([None, "sum", "mean", "mean_with_sample_weight"])
        ),
        "reduce_dims": reduce_dims,
        "keepdims": draw(st.booleans()),
    }


def broadcastable(draw, shape, elements):
    """Arrays that broadcast to shape from the left; some of their sizes are 1."""
    rank = draw(st.integers(0, len(shape)))
    partial_shape = tuple(draw(st.sampled_from([1, size])) for size in shape[:rank])
    return hnp.arrays("float32", partial_shape, elements=elements.map(float))


@given(case=cases(), hidden=st.sampled_from([0.0, np.nan, np.inf]))
def test_value_and_gradient_match_the_oracle(case, hidden):
    oracle_case = dict(case)
    if case["reduce_dims"] is None:
        oracle_case["reduce_dims"] = ()
    expected, gradient = oracle.loss_and_gradient(**oracle_case)

    y_true, y_pred = case.pop("y_true").copy(), case.pop("y_pred")
    weight, mask = case.pop("sample_weight"), case.pop("mask")
    counts = oracle.broadcast(1.0 if weight is None else weight, y_pred.shape) != 0
    if mask is not None:
        counts = counts & (oracle.broadcast(mask, y_pred.shape) != 0)
    y_true[~counts] = hidden

    loss = SmoothL1Loss(**case)
    value, (grad_pred,) = value_and_gradients(
        lambda x: loss(y_true, x if mask is None else masked(x, mask), weight), y_pred
    )
    assert value.shape == np.shape(expected)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(grad_pred, gradient, rtol=1e-5, atol=1e-30)
    keras.utils.clear_session(free_memory=False)


ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=3)
    | st.complex_numbers()
    | st.lists(st.integers(-3, 3) | st.floats() | st.none(), max_size=3)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
)
BETAS = st.floats(1e-37, 1e37) | st.lists(
    st.floats(1e-37, 1e37) | st.integers(1, 100), min_size=1, max_size=4
)
VALID = {
    "beta": BETAS,
    "reduction": st.sampled_from(
        [None, "none", "sum", "mean", "sum_over_batch_size", "auto"]
        + ["mean_with_sample_weight"]
    ),
    "reduce_dims": st.none()
    | st.integers(-3, 3)
    | st.lists(st.integers(-3, 3), max_size=3, unique=True),
    "keepdims": st.booleans(),
    "name": st.none() | st.text(max_size=5),
    # Without JAX_ENABLE_X64, JAX has no float64.
    "dtype": st.sampled_from(
        [None, "float16", "bfloat16", "float32", "mixed_bfloat16"]
        + (["float64"] if BACKEND != "jax" else [])
    ),
}
SETTINGS = {
    name: st.integers(0, 5).flatmap(
        lambda die, valid=valid: ANYTHING if die == 5 else valid
    )
    for name, valid in VALID.items()
}


@given(
    config=st.fixed_dictionaries({}, optional=SETTINGS),
    extra=st.sampled_from([{}, {}, {}, {"delta": 1.0}, {"": None}]),
    cls=st.sampled_from([SmoothL1Loss, SmoothL1Error]),
)
def test_a_config_gives_a_working_object_or_an_error_that_names_the_argument(
    config, extra, cls
):
    if cls is SmoothL1Error:
        config = {
            key: config[key] for key in config if key in ("beta", "name", "dtype")
        }
    created, error = None, None
    try:
        created = cls.from_config({**config, **extra})
    except (TypeError, ValueError) as exception:
        error = str(exception)
    event("accepted" if created else "rejected")
    if not created:
        assert any(name in error for name in (*SETTINGS, *extra))
        return
    assert not extra
    plain = json.loads(json.dumps(created.get_config(), allow_nan=False))
    assert cls.from_config(plain).get_config() == plain
    axes = np.atleast_1d(plain.get("reduce_dims") or []).tolist()
    if max(map(abs, axes), default=0) > 3:
        return  # no such axis
    beta = plain["beta"]
    shape = (2, 1, 1, 1, 1, 1, len(beta) if isinstance(beta, list) else 2)
    y_pred = np.ones(shape, "float32")
    assert np.isfinite(to_numpy(created(y_pred * 0, y_pred))).all()

"""Sparse tensors are converted to dense; all values of ragged tensors count."""

import keras
import numpy as np
import pytest
from helpers.autodiff import BACKEND, to_numpy

from keras_smoothl1 import SmoothL1Error, SmoothL1Loss, smooth_l1_loss

DENSE = np.array([[0, 1], [2, 0], [0, 0]], "float32")
Y_PRED = np.array([[0.5, 1], [2, 3], [0, 2]], "float32")
LENGTHS = [2, 0, 1]
VALUES = np.array([1, 2, 3], "float32")
PRED_VALUES = np.array([1.5, 2, 5], "float32")
LOSSES = [0.125, 0, 1.5]

if BACKEND == "jax":
    from jax.experimental import sparse

    SPARSE = {"BCOO": sparse.BCOO.fromdense, "BCSR": sparse.BCSR.fromdense}
elif BACKEND == "torch":
    import torch

    SPARSE = {
        "COO": lambda x: torch.tensor(x).to_sparse(),
        "CSR": lambda x: torch.tensor(x).to_sparse_csr(),
    }

    def ragged(values, lengths, layout=torch.jagged):
        rows = torch.as_tensor(values).split(lengths)
        return torch.nested.as_nested_tensor(list(rows), layout=layout)

    def values_of(x):
        return x.values()
else:
    import tensorflow as tf

    SPARSE = {"SparseTensor": tf.sparse.from_dense}

    def ragged(values, lengths):
        return tf.RaggedTensor.from_row_lengths(values, lengths)

    def values_of(x):
        return x.flat_values


# torch's own warnings about the two layouts.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse CSR tensor support is in beta",
    "ignore:The PyTorch API of nested tensors is in prototype stage",
)
has_ragged_tensors = pytest.mark.skipif(BACKEND == "jax", reason="JAX has none")


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_tensors_are_converted_to_dense(kind):
    make = SPARSE[kind]
    loss, expected = SmoothL1Loss(), to_numpy(SmoothL1Loss()(DENSE, Y_PRED))
    assert to_numpy(loss(make(DENSE), Y_PRED)) == expected > 0
    assert to_numpy(loss(DENSE, make(Y_PRED))) == expected
    weighted = to_numpy(loss(DENSE, Y_PRED, DENSE + 1))
    assert to_numpy(loss(DENSE, Y_PRED, make(DENSE + 1))) == weighted
    metric = SmoothL1Error()
    metric.update_state(make(DENSE), Y_PRED)
    assert to_numpy(metric.result()) == expected


@has_ragged_tensors
@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (None, sum(LOSSES) / 3),
        (2.0, 2 * sum(LOSSES) / 3),
        (np.array([2.0, 7, 4], "float32"), (2 * 0.125 + 4 * 1.5) / 3),
        ("ragged", (0.125 + 3 * 1.5) / 3),
    ],
)
def test_all_values_of_ragged_tensors_count(weight, expected):
    if isinstance(weight, str):
        weight = ragged(np.array([1, 2, 3], "float32"), LENGTHS)
    y_true, y_pred = ragged(VALUES, LENGTHS), ragged(PRED_VALUES, LENGTHS)
    assert to_numpy(SmoothL1Loss()(y_true, y_pred, weight)) == pytest.approx(expected)


@has_ragged_tensors
def test_the_metric_of_ragged_tensors_is_the_weighted_mean_of_all_values():
    metric, weight = SmoothL1Error(), np.array([2, 7, 4], "float32")
    metric.update_state(ragged(VALUES, LENGTHS), ragged(PRED_VALUES, LENGTHS), weight)
    expected = (2 * 0.125 + 4 * 1.5) / (2 + 2 + 4)
    assert to_numpy(metric.result()) == pytest.approx(expected)


@has_ragged_tensors
def test_unreduced_losses_of_ragged_tensors_are_ragged():
    y_true, y_pred = ragged(VALUES, LENGTHS), ragged(PRED_VALUES, LENGTHS)
    for loss in (smooth_l1_loss, SmoothL1Loss(reduction=None)):
        losses = loss(y_true, y_pred)
        assert type(losses) is type(y_pred)
        np.testing.assert_allclose(to_numpy(values_of(losses)), LOSSES)


@has_ragged_tensors
def test_ragged_rows_may_have_one_beta_per_output():
    values = np.stack([PRED_VALUES, PRED_VALUES], -1)
    loss = SmoothL1Loss([1.0, 2.0], reduction="sum")
    actual = loss(ragged(0 * values, LENGTHS), ragged(values, LENGTHS))
    expected = np.sum(PRED_VALUES - 0.5) + np.sum(
        np.where(PRED_VALUES < 2, PRED_VALUES**2 / 4, PRED_VALUES - 1)
    )
    np.testing.assert_allclose(to_numpy(actual), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="one number for each entry of y_pred's last"):
        SmoothL1Loss([1.0, 2.0, 3.0])(
            ragged(VALUES, LENGTHS), ragged(PRED_VALUES, LENGTHS)
        )


@has_ragged_tensors
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"y_true": "other rows"}, "y_true must have rows as long"),
        ({"y_true": DENSE}, "y_true must be"),
        ({"y_pred": Y_PRED}, "y_true must not be ragged"),
        ({"sample_weight": "other rows"}, "sample_weight must have rows as long"),
        ({"sample_weight": DENSE}, "sample_weight must be"),
        ({"sample_weight": VALUES[:2]}, "sample_weight must be"),
    ],
)
def test_inputs_that_do_not_match_ragged_tensors_raise_an_error(change, name):
    arguments = {
        "y_true": ragged(VALUES, LENGTHS),
        "y_pred": ragged(PRED_VALUES, LENGTHS),
        **change,
    }
    for key, value in change.items():
        if isinstance(value, str):
            arguments[key] = ragged(VALUES, [1, 1, 1])
    with pytest.raises(TypeError, match=name):
        SmoothL1Loss()(**arguments)


@has_ragged_tensors
def test_reduce_dims_with_ragged_tensors_raises_an_error():
    with pytest.raises(TypeError, match="reduce_dims must be None for a ragged y_pred"):
        SmoothL1Loss(reduce_dims=1)(
            ragged(VALUES, LENGTHS), ragged(PRED_VALUES, LENGTHS)
        )


if BACKEND == "torch":

    def test_nested_tensors_of_either_layout_have_gradients():
        for layout in (torch.strided, torch.jagged):
            values = torch.tensor(PRED_VALUES, requires_grad=True)
            loss = SmoothL1Loss(reduction="sum")
            loss(ragged(VALUES, LENGTHS), ragged(values, LENGTHS, layout)).backward()
            np.testing.assert_allclose(values.grad, [0.5, 0, 1])


if BACKEND == "tensorflow":

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_row_lengths_in_graphs_are_compared_at_run_time(jit_compile):
        spec = tf.RaggedTensorSpec([None, None], tf.float32)
        run = tf.function(
            lambda y_true, y_pred: SmoothL1Loss()(y_true, y_pred),
            input_signature=[spec, spec],
            jit_compile=jit_compile,
            autograph=False,
        )
        y_pred = ragged(PRED_VALUES, LENGTHS)
        actual = to_numpy(run(ragged(VALUES, LENGTHS), y_pred))
        assert actual == pytest.approx(sum(LOSSES) / 3)
        if jit_compile:  # XLA cannot raise an error that depends on data
            assert np.isnan(to_numpy(run(ragged(VALUES, [1, 1, 1]), y_pred)))
        else:
            with pytest.raises(tf.errors.InvalidArgumentError, match="rows as long"):
                run(ragged(VALUES, [1, 1, 1]), y_pred)

    def test_a_model_trains_on_sparse_targets():
        model = keras.Sequential([keras.layers.Dense(2)])
        model.compile("sgd", SmoothL1Loss())
        history = model.fit(Y_PRED, tf.sparse.from_dense(DENSE), epochs=5, verbose=0)
        assert history.history["loss"][-1] < history.history["loss"][0]

"""Sizes that are known only at run time, and conversion to TensorFlow Lite."""

import keras
import numpy as np
import pytest
from helpers.autodiff import BACKEND, to_numpy

if BACKEND != "tensorflow":
    pytest.skip("for TensorFlow only", allow_module_level=True)

import tensorflow as tf

from keras_smoothl1 import SmoothL1Error, SmoothL1Loss, smooth_l1_loss

RNG = np.random.default_rng(9)
JIT_COMPILE = pytest.mark.parametrize("jit_compile", [False, True])
UNKNOWN_SIZES = tf.TensorSpec([None, None])
UNKNOWN_RANK = tf.TensorSpec(None)
InvalidArgument = tf.errors.InvalidArgumentError


def normal(*shape):
    return RNG.normal(size=shape).astype("float32")


def graph(function, specs, jit_compile):
    return tf.function(
        function, input_signature=specs, jit_compile=jit_compile, autograph=False
    )


@JIT_COMPILE
@pytest.mark.parametrize("reduction", ["mean", "sum", None])
@pytest.mark.parametrize(
    ("true_shape", "pred_shape"),
    [
        ((6, 4), (6, 1)),
        ((1, 4), (6, 4)),
        ((6, 1), (6, 4)),
        ((6, 4), (4, 6)),
        ((6, 4, 2), (6, 4)),
        ((6,), (6, 4)),
    ],
)
@pytest.mark.parametrize("known_rank", [True, False])
def test_incompatible_targets_raise_an_error_at_run_time(
    true_shape, pred_shape, reduction, jit_compile, known_rank
):
    specs = [
        tf.TensorSpec([None] * len(shape) if known_rank else None)
        for shape in (true_shape, pred_shape)
    ]
    run = graph(SmoothL1Loss(reduction=reduction), specs, jit_compile)
    # The message of the assertion, or the name of the operation that XLA rejects.
    message = "y.true.and.y.pred.must.have.the.same.shape|squeeze"
    with pytest.raises((InvalidArgument, ValueError), match=message):
        run(normal(*true_shape), normal(*pred_shape))


@JIT_COMPILE
@pytest.mark.parametrize("known_rank", [True, False])
@pytest.mark.parametrize("weight_shape", [(4,), (6, 3), (6, 4, 2), (4, 6), (3, 1)])
def test_incompatible_weights_raise_an_error_at_run_time(
    weight_shape, known_rank, jit_compile
):
    weight_spec = tf.TensorSpec([None] * len(weight_shape) if known_rank else None)
    run = graph(
        SmoothL1Loss(), [UNKNOWN_SIZES, UNKNOWN_SIZES, weight_spec], jit_compile
    )
    message = "sample.weight.must.be.broadcastable|squeeze"
    with pytest.raises((InvalidArgument, ValueError), match=message):
        run(normal(6, 4), normal(6, 4), normal(*weight_shape))


@JIT_COMPILE
@pytest.mark.parametrize("spec", [UNKNOWN_SIZES, UNKNOWN_RANK])
@pytest.mark.parametrize(
    "make", [lambda beta: SmoothL1Loss(beta, "sum"), lambda beta: SmoothL1Error(beta)]
)
def test_several_betas_are_compared_with_the_last_axis_at_run_time(
    make, spec, jit_compile
):
    loss = make([0.5, 1.0, 2.0])
    call = loss if isinstance(loss, SmoothL1Loss) else loss.update_state
    run = graph(lambda *x: call(*x), [spec] * 2, jit_compile)
    for shape in ((4, 1), (4, 2), (1, 4)):
        message = "beta.must.have.one.number.for.each.entry.of.the.last.axis"
        with pytest.raises((InvalidArgument, ValueError), match=message):
            run(normal(*shape), normal(*shape))
    y_true, y_pred = normal(4, 3), normal(4, 3)
    np.testing.assert_allclose(
        to_numpy(run(y_true, y_pred) if call is loss else loss(y_true, y_pred)),
        to_numpy(make([0.5, 1.0, 2.0])(y_true, y_pred)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("known_rank", [True, False])
def test_the_error_at_run_time_names_the_argument(known_rank):
    weight_spec = tf.TensorSpec([None, None] if known_rank else None)
    run = graph(SmoothL1Loss(), [UNKNOWN_SIZES, UNKNOWN_SIZES, weight_spec], False)
    with pytest.raises(InvalidArgument, match=r"\[sample_weight\] \[6 3\] \[y_pred\]"):
        run(normal(6, 4), normal(6, 4), normal(6, 3))


@JIT_COMPILE
@pytest.mark.parametrize("weight_shape", [(), (6,), (6, 1), (1, 4), (6, 4), (6, 4, 1)])
def test_weights_of_unknown_rank_are_broadcast(weight_shape, jit_compile):
    y_true, y_pred, weight = normal(6, 4), normal(6, 4), normal(*weight_shape)
    expected = to_numpy(SmoothL1Loss()(y_true, y_pred, weight))
    run = graph(SmoothL1Loss(), [UNKNOWN_RANK] * 3, jit_compile)
    actual = to_numpy(run(y_true, y_pred, weight))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@JIT_COMPILE
@pytest.mark.parametrize("specs", [[None, None], [None, [None, None]]])
@pytest.mark.parametrize("y_true_has_it", [False, True])
def test_a_trailing_1_may_be_missing_if_ranks_are_unknown(
    specs, y_true_has_it, jit_compile
):
    y, other = normal(6, 4), normal(6, 4)
    expected = to_numpy(SmoothL1Loss()(y, other))
    y_true, y_pred = (y[..., None], other) if y_true_has_it else (y, other)
    run = graph(SmoothL1Loss(), [tf.TensorSpec(x) for x in specs], jit_compile)
    np.testing.assert_allclose(to_numpy(run(y_true, y_pred)), expected, rtol=1e-6)


def test_fit_rejects_incompatible_targets_of_unknown_static_shape():
    x, y = normal(6, 4), normal(6, 4)
    data = tf.data.Dataset.from_generator(
        lambda: iter([(x, y)]), output_signature=(tf.TensorSpec([6, 4]), UNKNOWN_SIZES)
    )
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", SmoothL1Loss(), jit_compile=False)
    with pytest.raises(
        InvalidArgument, match="y true and y pred must have the same shape"
    ):
        model.fit(data, shuffle=False, verbose=0)


def test_a_metric_rejects_incompatible_targets():
    metric = SmoothL1Error()
    run = graph(metric.update_state, [UNKNOWN_SIZES] * 2, False)
    with pytest.raises(InvalidArgument, match="must have the same shape"):
        run(normal(6, 4), normal(4, 6))


@pytest.mark.parametrize(
    "select",
    [tf.boolean_mask, lambda x, mask: tf.gather(x, tf.where(mask)[:, 0])],
    ids=["boolean_mask", "gather"],
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reduction": "sum"},
        {"reduction": "mean_with_sample_weight"},
        {"reduce_dims": -1},
        {"reduce_dims": 0},
        {"beta": [0.1, 0.2, 0.5, 2.4e-38]},
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_boxes_selected_by_a_mask_under_xla(select, settings, weighted):
    loss = SmoothL1Loss(**settings)
    data = normal(20, 4), normal(20, 4), *((normal(20),) if weighted else ())
    mask = RNG.random(20) < 0.4

    def step(mask, y_true, y_pred, *weight):
        selected = [select(x, mask) for x in (y_true, y_pred, *weight)]
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            selected[1] = select(y_pred, mask)
            value = loss(*selected)
        return value, tape.gradient(value, y_pred)

    expected = step(mask, *map(tf.constant, data))
    compiled = tf.function(step, jit_compile=True, autograph=False)
    for actual, value in zip(
        compiled(mask, *map(tf.constant, data)), expected, strict=True
    ):
        np.testing.assert_allclose(
            to_numpy(actual), to_numpy(value), rtol=1e-5, atol=1e-7
        )


def test_different_numbers_of_selected_rows_give_nan_under_xla():
    y_true, y_pred = normal(20, 4), normal(20, 4)

    @tf.function(jit_compile=True, autograph=False)
    def run(mask, other):
        return SmoothL1Loss()(
            tf.boolean_mask(y_true, mask), tf.boolean_mask(y_pred, other)
        )

    mask, other = np.arange(20) < 5, np.arange(20) < 6
    assert np.isfinite(to_numpy(run(mask, mask)))
    assert np.isnan(to_numpy(run(mask, other)))


@JIT_COMPILE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(6, 4), (6, 0), (0, 4)])
@pytest.mark.parametrize("reduce_dims", [None, 0, 1])
def test_sums_in_a_graph_match_eager_sums(shape, reduce_dims, dtype, jit_compile):
    y_true, y_pred = (x.astype(dtype) for x in (normal(*shape), normal(*shape)))
    loss = SmoothL1Loss(0.5, None, reduce_dims, dtype=dtype)
    total = SmoothL1Loss(0.5, "sum", reduce_dims, dtype=dtype)
    for each in (loss, total):
        run = graph(each, [tf.TensorSpec(shape, dtype)] * 2, jit_compile)
        actual = to_numpy(run(y_true, y_pred))
        expected = to_numpy(each(y_true, y_pred))
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


@JIT_COMPILE
@pytest.mark.parametrize("spec", [UNKNOWN_SIZES, UNKNOWN_RANK])
def test_a_sum_of_unknown_sizes_may_be_close_to_the_smallest_normal_number(
    spec, jit_compile
):
    run = graph(SmoothL1Loss(4.8e-38, "sum"), [spec] * 2, jit_compile)
    error = np.full((1, 1), 3e-37, "float32")
    np.testing.assert_allclose(to_numpy(run(0 * error, error)), 2.76e-37, rtol=1e-6)


@pytest.mark.parametrize("spec", [(6, 4), (None, 4), None])
def test_finite_data_pass_the_check_of_numerics(spec):
    loss, metric = SmoothL1Loss(), SmoothL1Error()
    weight = np.float32([1, 0, 1, 0.5, 0, 2])

    @tf.function(input_signature=[tf.TensorSpec(spec)] * 2, autograph=False)
    def step(y_true, y_pred):
        metric.update_state(y_true, y_pred, weight)
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            value = loss(y_true, y_pred, weight)
        return tape.gradient(value, y_pred)

    tf.debugging.enable_check_numerics()
    try:
        gradient = step(normal(6, 4), normal(6, 4))
    finally:
        tf.debugging.disable_check_numerics()
    assert np.count_nonzero(gradient) == 16


def test_eager_arguments_may_be_variables():
    arrays = normal(6, 4), normal(6, 4), RNG.random(6).astype("float32")
    variables, tensors = [[f(x) for x in arrays] for f in (tf.Variable, tf.constant)]
    with tf.GradientTape() as tape:
        value = SmoothL1Loss()(*variables)
    with tf.GradientTape() as tape_of_tensors:
        tape_of_tensors.watch(tensors)
        expected = SmoothL1Loss()(*tensors)
    assert value == expected
    for actual, gradient in zip(
        tape.gradient(value, variables),
        tape_of_tensors.gradient(expected, tensors),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, gradient)


def test_sums_of_unknown_sizes_are_accurate_to_2e_6():
    errors = np.full((2**22, 1), 0.6, "float32")
    expected = np.square(np.float64(np.float32(0.6))) / 2 * 2**22
    for jit_compile in (False, True):
        run = graph(SmoothL1Loss(reduction="sum"), [UNKNOWN_SIZES] * 2, jit_compile)
        np.testing.assert_allclose(to_numpy(run(0 * errors, errors)), expected, 2e-6)


@pytest.mark.parametrize(
    "settings",
    [{}, {"reduction": "sum"}, {"reduce_dims": -1}, {"beta": [0.1, 1.0, 2.0]}],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_a_training_step_converts_to_tflite_with_builtin_operations(settings, tmp_path):
    loss, x, y, weight = (
        SmoothL1Loss(**settings),
        normal(40, 5),
        normal(40, 3),
        normal(40),
    )

    class Step(tf.Module):
        def __init__(self):
            self.kernel = tf.Variable(tf.ones([5, 3]))

        @tf.function(
            input_signature=[
                tf.TensorSpec([40, 5]),
                tf.TensorSpec([40, 3]),
                tf.TensorSpec([40]),
            ],
            autograph=False,
        )
        def train(self, x, y, weight):
            with tf.GradientTape() as tape:
                value = loss(y, x @ self.kernel, weight)
            self.kernel.assign_sub(0.1 * tape.gradient(value, self.kernel))
            return {"loss": value}

    step = Step()
    tf.saved_model.save(step, tmp_path, signatures={"train": step.train})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.experimental_enable_resource_variables = True
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    train = interpreter.get_signature_runner("train")
    for _ in range(2):
        expected = to_numpy(step.train(x, y, weight)["loss"])
        actual = train(x=x, y=y, weight=weight)["loss"]
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_the_function_also_rejects_incompatible_targets():
    run = graph(smooth_l1_loss, [UNKNOWN_SIZES] * 2, False)
    with pytest.raises(InvalidArgument, match="must have the same shape"):
        run(normal(6, 4), normal(6, 1))

"""A tensor as beta: per sample, per output or per element, and trainable.

It is aligned with y_pred from the left, like weights. Each backend has its execution
modes; tests/test_torch_tensors.py covers torch's special kinds of tensors.
"""

import keras
import numpy as np
import pytest
from helpers import oracle
from helpers.autodiff import BACKEND, derivative, to_numpy, value_and_gradients
from helpers.pairwise import pairwise
from keras.src.backend.common.masking import set_keras_mask
from packaging import version

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss

RNG = np.random.default_rng(12)
SHAPE = (4, 3, 2)
Y_TRUE, Y_PRED = RNG.normal(size=(2, *SHAPE)).astype("float32")
TARGETS = keras.ops.convert_to_tensor(Y_TRUE)  # torch.compile accepts no NumPy arrays
SHAPES = [(), (1,), (4,), (4, 1, 1), (1, 1, 2), (1, 3), (4, 3), (4, 1, 2), SHAPE]
WEIGHT = np.array([0.0, 0.5, 1.0, 2.0], "float32")
MASK = RNG.integers(0, 2, SHAPE[:2]).astype(bool)
DTYPES = {"jax": ["float32"]}.get(BACKEND, ["float32", "float64"])


def betas(shape, dtype="float32"):
    return np.random.default_rng(1).uniform(0.3, 1.5, shape).astype(dtype)


def expected(beta, y_true=Y_TRUE):
    """The losses, and the gradients of their sum with respect to y_pred and beta."""
    error = Y_PRED - y_true
    losses, slopes = oracle.value_and_slope(error, oracle.broadcast(beta, SHAPE))
    aligned = beta.shape + (1,) * (len(SHAPE) - beta.ndim)
    axes = tuple(axis for axis, size in enumerate(aligned) if size == 1)
    grad_beta = np.sum(-(slopes**2) / 2, axis=axes, keepdims=True)
    return losses, slopes, grad_beta.reshape(beta.shape)


def assert_close(results, expected):
    for result, numbers in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, numbers, rtol=2e-6, atol=1e-8)


def value_and_gradients_of(function):
    def run(y_pred, beta):
        value, gradients = value_and_gradients(function, y_pred, beta)
        tensors = map(keras.ops.convert_to_tensor, (value, *gradients))
        return tuple(tensors)

    return run


if BACKEND == "jax":
    import jax

    def with_jit(function):
        def run(y_pred, beta):
            slopes = jax.grad(lambda *x: function(*x).sum(), argnums=(0, 1))
            return function(y_pred, beta), *slopes(y_pred, beta)

        return jax.jit(run)

    def vmap_of_grad(function):
        """Over a new leading axis."""
        run = jax.vmap(with_jit(function))
        return lambda *x: [result[0] for result in run(*(each[None] for each in x))]

    RUNNERS = {"eager": value_and_gradients_of, "jit": with_jit, "vmap": vmap_of_grad}
elif BACKEND == "torch":
    import torch

    def with_compile(function):
        torch._dynamo.reset()
        return value_and_gradients_of(
            torch.compile(function, fullgraph=True, backend="aot_eager")
        )

    def with_torch_func(function):
        def run(*x):
            x = tuple(map(torch.as_tensor, x))
            slopes = torch.func.grad(lambda *x: function(*x).sum(), argnums=(0, 1))
            return function(*x), *slopes(*x)

        return run

    def vmap_of_grad(function):
        run = torch.func.vmap(with_torch_func(function))

        def unbatched(*x):
            results = run(*(torch.as_tensor(each)[None] for each in x))
            return [result[0] for result in results]

        return unbatched

    RUNNERS = {
        "eager": value_and_gradients_of,
        "func": with_torch_func,
        "vmap": vmap_of_grad,
    }
    # torch.compile cannot trace the tensor operations of Keras before 3.15.
    if version.parse(keras.__version__) >= version.parse("3.15"):
        RUNNERS["compile"] = with_compile
else:
    import tensorflow as tf

    def graph(sizes, *, jit_compile=False):
        """With known sizes, with only a known rank, or with an unknown rank."""

        def compiled(function):
            def run(y_pred, beta):
                specs = [tf.TensorSpec(sizes(x.shape)) for x in (y_pred, beta)]
                return value_and_gradients_of(
                    tf.function(
                        function, specs, jit_compile=jit_compile, autograph=False
                    )
                )(y_pred, beta)

            return run

        return compiled

    def known(shape):
        return shape

    def unknown(shape):
        return (None,) * len(shape)

    def unranked(shape):
        return None

    RUNNERS = {"eager": value_and_gradients_of} | {
        f"{sizes.__name__}, jit_compile={jit}": graph(sizes, jit_compile=jit)
        for sizes in (known, unknown, unranked)
        for jit in (False, True)
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("runner", RUNNERS)
def test_values_and_gradients_in_each_execution_mode(runner, shape):
    beta = betas(shape)
    run = RUNNERS[runner](lambda y_pred, beta: smooth_l1_loss(TARGETS, y_pred, beta))
    assert_close(map(to_numpy, run(Y_PRED, beta)), expected(beta))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_is_preserved(dtype):
    beta = betas((4,), dtype)
    losses = smooth_l1_loss(
        Y_TRUE.astype(dtype), Y_PRED.astype(dtype), keras.ops.convert_to_tensor(beta)
    )
    assert keras.backend.standardize_dtype(losses.dtype) == dtype
    error = (Y_PRED.astype(dtype) - Y_TRUE.astype(dtype)).astype("float64")
    exact, _ = oracle.value_and_slope(error, oracle.broadcast(beta, SHAPE))
    np.testing.assert_allclose(to_numpy(losses), exact, rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "mode", ["forward", "forward over reverse", "reverse over forward", "reverse twice"]
)
def test_derivatives_wrt_beta_in_each_mode(mode, shape):
    beta = betas(shape)
    direction = RNG.normal(size=shape).astype("float32")

    def function(x):
        return keras.ops.sum(smooth_l1_loss(Y_TRUE, Y_PRED, x))

    run = derivative(mode, function, direction)
    result = to_numpy(run(keras.ops.convert_to_tensor(beta)))
    _, _, grad_beta = expected(beta)
    if mode == "forward":
        np.testing.assert_allclose(result, np.sum(grad_beta * direction), 2e-5)
        return
    # The gradient is -(error / beta)**2 / 2 for errors below beta, and constant above.
    near = np.where(np.abs(Y_PRED - Y_TRUE) < oracle.broadcast(beta, SHAPE), 1.0, 0)
    aligned = beta.reshape(beta.shape + (1,) * (3 - beta.ndim)).astype("float64")
    axes = tuple(axis for axis, size in enumerate(aligned.shape) if size == 1)
    second = np.sum(near * (Y_PRED - Y_TRUE) ** 2 / aligned**3, axis=axes)
    np.testing.assert_allclose(result, second.reshape(shape) * direction, 2e-5)


def test_mixed_derivatives_wrt_y_pred_and_beta():
    beta = betas((4,))

    def slope_along_ones(beta):
        def function(y_pred):
            return keras.ops.sum(smooth_l1_loss(Y_TRUE, y_pred, beta))

        return derivative("forward", function, np.ones(SHAPE, "float32"))(
            keras.ops.convert_to_tensor(Y_PRED)
        )

    _, (mixed,) = value_and_gradients(slope_along_ones, beta)
    error, wide = Y_PRED - Y_TRUE, oracle.broadcast(beta, SHAPE)
    near = np.abs(error) < wide
    exact = np.where(near, -error / wide.astype("float64") ** 2, 0).sum((1, 2))
    np.testing.assert_allclose(mixed, exact, rtol=2e-5)


@pairwise(
    beta=[(), (4,), (1, 1, 2), (4, 3), SHAPE],
    weight=[None, (), (4,), (4, 3), SHAPE],
    mask=[None, (4,), (4, 3)],
    reduce_dims=[None, -1, (1, 2)],
    keepdims=[True, False],
)
def test_weights_and_masks_of_the_function_match_the_oracle(
    beta, weight, mask, reduce_dims, keepdims
):
    beta = betas(beta)
    weight = None if weight is None else np.resize(WEIGHT, weight).astype("float32")
    mask = None if mask is None else np.resize(MASK, mask)
    hidden = oracle.broadcast(1 if weight is None else weight, SHAPE) == 0
    if mask is not None:
        hidden |= ~oracle.broadcast(mask, SHAPE)
    y_true = np.where(hidden, np.float32("nan"), Y_TRUE)
    arguments = {"sample_weight": weight, "mask": mask}
    settings = {"reduce_dims": reduce_dims, "keepdims": keepdims}
    value, (gradient, grad_beta) = value_and_gradients(
        lambda y_pred, beta: smooth_l1_loss(
            y_true, y_pred, beta, **settings, **arguments
        ),
        Y_PRED,
        beta,
    )
    exact, exact_gradient = oracle.loss_and_gradient(
        y_true,
        Y_PRED,
        oracle.broadcast(beta, SHAPE),
        **arguments,
        reduction=None,
        reduce_dims=() if reduce_dims is None else reduce_dims,
        keepdims=keepdims,
    )
    assert_close([value, gradient], [exact, exact_gradient])
    assert np.isfinite(grad_beta).all()


def test_weights_and_masks_of_the_function_match_the_class():
    y_pred = keras.ops.convert_to_tensor(Y_PRED)
    by_function = smooth_l1_loss(Y_TRUE, y_pred, sample_weight=WEIGHT, mask=MASK)
    set_keras_mask(y_pred, keras.ops.convert_to_tensor(MASK))
    by_class = SmoothL1Loss(reduction=None)(Y_TRUE, y_pred, WEIGHT)
    np.testing.assert_array_equal(to_numpy(by_function), to_numpy(by_class))


@pytest.mark.parametrize("shape", [(3,), (2,), (4, 2), (1, 2), (4, 3, 2, 2), (5, 1, 1)])
def test_an_incompatible_beta_raises_an_error_about_alignment(shape):
    with pytest.raises(ValueError, match="beta must be.*from the left") as error:
        smooth_l1_loss(Y_TRUE, Y_PRED, keras.ops.ones(shape))
    assert f"beta of shape {shape}" in str(error.value)
    assert "list of numbers" in str(error.value)


@pytest.mark.skipif(
    BACKEND == "torch" and keras.ops.zeros(()).is_cuda,
    reason="values on a GPU are not checked",
)
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, 1e-38])
@pytest.mark.parametrize("shape", [(), (4,)])
@pytest.mark.parametrize("make", [keras.ops.convert_to_tensor, keras.Variable])
def test_a_beta_out_of_range_raises_an_error(shape, value, make):
    beta = np.ones(shape, "float32")
    beta[(0,) * len(shape)] = value
    with pytest.raises(ValueError, match="beta must be positive"):
        smooth_l1_loss(Y_TRUE, Y_PRED, make(beta))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, 1e-38])
@pytest.mark.parametrize(
    "runner", [name for name in RUNNERS if name not in ("eager", "func")]
)
def test_a_beta_out_of_range_known_only_at_run_time_gives_nan(runner, value):
    beta = np.array([1.0, value, 1.0, 1.0], "float32")
    run = RUNNERS[runner](lambda y_pred, beta: smooth_l1_loss(TARGETS, y_pred, beta))
    losses, slopes, grad_beta = map(to_numpy, run(Y_PRED, beta))
    good, exact = [0, 2, 3], expected(np.ones(4, "float32"))
    assert np.isnan(losses[1]).all()
    assert np.isnan(slopes[1]).all()
    assert np.isnan(grad_beta[1])
    assert_close(
        [losses[good], slopes[good], grad_beta[good]], [x[good] for x in exact]
    )


def test_an_empty_batch_has_no_losses_for_any_shape_of_beta():
    y = np.zeros((0, 3), "float32")
    for shape in [(0,), (0, 1), (0, 3), (1, 3), ()]:
        losses = smooth_l1_loss(y, y, keras.ops.ones(shape))
        assert tuple(losses.shape) == (0, 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    y_true, y_pred, beta = (
        keras.ops.cast(x, dtype) for x in (Y_TRUE, Y_PRED, betas((4,)))
    )
    wide = smooth_l1_loss(
        *(keras.ops.cast(x, "float32") for x in (y_true, y_pred, beta))
    )
    losses = smooth_l1_loss(y_true, y_pred, beta)
    np.testing.assert_array_equal(
        to_numpy(losses), to_numpy(keras.ops.cast(wide, dtype))
    )


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no ragged tensors")
def test_ragged_predictions_may_have_one_beta_per_row():
    rows = [Y_PRED[0, :, 0], Y_PRED[1, :2, 0]]
    beta = keras.ops.convert_to_tensor(np.array([0.3, 1.2], "float32"))
    if BACKEND == "torch":
        y_pred = torch.nested.nested_tensor(
            [torch.tensor(row) for row in rows], layout=torch.jagged
        )
        losses = smooth_l1_loss(y_pred * 0, y_pred, beta).values()
    else:
        y_pred = tf.ragged.constant([row.tolist() for row in rows])
        losses = smooth_l1_loss(y_pred * 0, y_pred, beta).values
    exact = [
        oracle.value_and_slope(row, b)[0]
        for row, b in zip(rows, [0.3, 1.2], strict=True)
    ]
    np.testing.assert_allclose(to_numpy(losses), np.concatenate(exact), rtol=1e-6)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no ragged tensors")
def test_a_ragged_beta_raises_an_error_with_a_hint():
    if BACKEND == "torch":
        y = torch.nested.nested_tensor(
            [torch.ones(2), torch.ones(3)], layout=torch.jagged
        )
    else:
        y = tf.ragged.constant([[1.0, 1.0], [1.0, 1.0, 1.0]])
    with pytest.raises(TypeError, match="beta must not be ragged.*each row"):
        smooth_l1_loss(y, y, y)


@pytest.mark.parametrize("mask", ["False", {"a": [True] * 4}, np.array([1j] * 4)])
def test_a_mask_of_an_invalid_type_raises_an_error(mask):
    with pytest.raises((TypeError, ValueError), match="mask"):
        smooth_l1_loss(Y_TRUE, Y_PRED, mask=mask)


if BACKEND == "torch":

    @pytest.mark.filterwarnings("ignore:.torch.jit.trace(_method)?. is")
    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    def test_the_beta_of_jit_trace_is_known_only_at_run_time():
        traced = torch.jit.trace(
            lambda y_pred, beta: smooth_l1_loss(torch.zeros(3), y_pred, beta),
            (torch.ones(3), torch.ones(())),
        )
        assert torch.isnan(traced(torch.ones(3), torch.tensor(-1.0))).all()


if BACKEND == "tensorflow":

    @pytest.mark.parametrize("pred_spec", [(None, 2), None])
    @pytest.mark.parametrize("beta_spec", [(1, 2), (None, 2), None])
    def test_the_derivative_wrt_beta_sums_many_terms_accurately(pred_spec, beta_spec):
        y_pred, beta = tf.fill((2**21, 2), 0.1), tf.ones((1, 2))

        @tf.function(
            input_signature=[tf.TensorSpec(pred_spec), tf.TensorSpec(beta_spec)],
            autograph=False,
        )
        def losses(y_pred, beta):
            return smooth_l1_loss(tf.zeros_like(y_pred), y_pred, beta)

        with tf.GradientTape() as tape:
            tape.watch(beta)
            total = tf.reduce_sum(losses(y_pred, beta))
        exact = -0.5 * float(np.float32(0.1)) ** 2 * 2**21
        np.testing.assert_allclose(tape.gradient(total, beta), [[exact] * 2], 2e-6)


if BACKEND == "jax":

    def test_a_variable_captured_by_jit_raises_an_error():
        variable = keras.Variable(0.5)
        run = jax.jit(lambda y_pred: smooth_l1_loss(Y_TRUE, y_pred, variable))
        with pytest.raises(ValueError, match="beta must not be a variable"):
            run(Y_PRED)
        by_argument = jax.jit(lambda *x: smooth_l1_loss(Y_TRUE, *x))
        assert_close(
            [by_argument(Y_PRED, variable.value)], expected(np.float32(0.5))[:1]
        )
        slopes = jax.grad(lambda x: smooth_l1_loss(Y_TRUE, x, variable).sum())(Y_PRED)
        assert_close([slopes], expected(np.float32(0.5))[1:2])

"""Every execution mode gives the results of eager execution."""

import keras
import numpy as np
import pytest
from helpers import oracle
from helpers.autodiff import BACKEND, to_numpy, value_and_gradients
from helpers.pairwise import pairwise
from packaging import version

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss
from keras_smoothl1.backends import backend

RNG = np.random.default_rng(6)
SHAPE = (4, 3, 2)
Y_TRUE, Y_PRED = RNG.normal(size=(2, *SHAPE)).astype("float32")
BETAS = pytest.mark.parametrize("beta", [0.5, (0.25, 2.0)])
ALL_SETTINGS = [
    {},
    {"reduction": "sum", "reduce_dims": -1},
    {"reduction": None, "reduce_dims": (1, 2)},
    {"reduction": "mean_with_sample_weight"},
]
SETTINGS = pytest.mark.parametrize("settings", ALL_SETTINGS, ids=str)
WEIGHTS = pytest.mark.parametrize("weight", [None, "(B,)", "full"])


def weights(kind):
    if kind is None:
        return None
    weight = np.arange(24, dtype="float32").reshape(SHAPE)
    return weight[:, 0, 0] if kind == "(B,)" else weight


def targets(weight):
    """The targets, missing where the weight is zero."""
    if weight is None:
        return Y_TRUE
    weight = oracle.broadcast(weight, SHAPE)
    assert (weight == 0).any()
    return np.where(weight == 0, np.float32("nan"), Y_TRUE)


def eager(loss, weight):
    y_true = targets(weight)
    value, gradients = value_and_gradients(lambda x: loss(y_true, x, weight), Y_PRED)
    assert np.isfinite(value).all()
    assert np.isfinite(gradients).all()
    return value, gradients


def assert_close(actual, expected):
    np.testing.assert_allclose(to_numpy(actual), expected, rtol=1e-6, atol=1e-7)


if BACKEND == "jax":
    import jax

    def test_more_elements_than_int32_can_count():
        y = jax.ShapeDtypeStruct((2**31 + 8, 1), "float32")
        weight = jax.ShapeDtypeStruct((1, 1), "float32")
        assert jax.eval_shape(SmoothL1Loss(), y, y, weight).shape == ()
        weighted_mean = SmoothL1Loss(reduction="mean_with_sample_weight", reduce_dims=0)
        assert jax.eval_shape(weighted_mean, y, y, weight).shape == ()

    @WEIGHTS
    @SETTINGS
    @BETAS
    def test_jit_and_grad(beta, settings, weight):
        loss, weight = SmoothL1Loss(beta, **settings), weights(weight)
        value, (gradient,) = eager(loss, weight)
        y_true = targets(weight)
        assert_close(jax.jit(loss)(y_true, Y_PRED, weight), value)
        jitted = jax.jit(jax.grad(lambda x: loss(y_true, x, weight).sum()))
        assert_close(jitted(Y_PRED), gradient)

    @BETAS
    def test_vmap_and_hessian(beta):
        loss = SmoothL1Loss(beta, reduction="sum")
        value, (gradient,) = eager(loss, None)
        each = jax.vmap(loss)(Y_TRUE, Y_PRED)
        assert_close(each.sum(), value)
        assert_close(jax.vmap(jax.grad(loss, argnums=1))(Y_TRUE, Y_PRED), gradient)
        hessian = jax.hessian(lambda x: loss(Y_TRUE, x))(Y_PRED).reshape(24, 24)
        curvature = np.where(
            abs(Y_PRED - Y_TRUE) < np.array(beta), 1 / np.array(beta), 0
        )
        assert_close(hessian, np.diag(curvature.reshape(-1)))

    @WEIGHTS
    @SETTINGS
    def test_a_batch_sharded_over_devices(settings, weight):
        loss, weight = SmoothL1Loss(0.5, **settings), weights(weight)
        value, (gradient,) = eager(loss, weight)
        mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
        y_true, y_pred = jax.device_put((targets(weight), Y_PRED), sharding)
        weight = None if weight is None else jax.device_put(weight, sharding)
        assert len(y_pred.sharding.device_set) == 4
        assert_close(jax.jit(loss)(y_true, y_pred, weight), value)
        slope = jax.jit(jax.grad(lambda x: loss(y_true, x, weight).sum()))(y_pred)
        assert len(slope.sharding.device_set) == 4
        assert_close(slope, gradient)


if BACKEND == "torch":
    import torch
    import torch._dynamo.testing

    T_TRUE, T_PRED = torch.tensor(Y_TRUE), torch.tensor(Y_PRED)
    traceable = pytest.mark.skipif(
        version.parse(keras.__version__) < version.parse("3.15"),
        reason="torch.compile cannot trace the tensor operations of Keras before 3.15",
    )

    @traceable
    @WEIGHTS
    @SETTINGS
    @BETAS
    def test_torch_compile_without_graph_breaks(beta, settings, weight):
        loss, weight = SmoothL1Loss(beta, **settings), weights(weight)
        value, (gradient,) = eager(loss, weight)
        torch._dynamo.reset()
        y_true = torch.tensor(targets(weight))
        weight = None if weight is None else torch.tensor(weight)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        x = T_PRED.clone().requires_grad_()
        actual = compiled(y_true, x, weight)
        actual.sum().backward()
        assert_close(actual, value)
        assert_close(x.grad, gradient)

    @traceable
    def test_torch_compile_with_inductor():
        loss = SmoothL1Loss((0.25, 2.0))
        value, (gradient,) = eager(loss, None)
        torch._dynamo.reset()
        x = T_PRED.clone().requires_grad_()
        actual = torch.compile(loss, fullgraph=True)(T_TRUE, x)
        actual.backward()
        assert_close(actual, value)
        assert_close(x.grad, gradient)

    @traceable
    def test_a_third_batch_size_does_not_recompile():
        torch._dynamo.reset()
        count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(SmoothL1Loss(), fullgraph=True, backend=count)
        for size in (4, 5, 6, 7):
            y = torch.ones(size, 3)
            assert_close(compiled(y * 0, y), 0.5)
        assert count.frame_count == 2

    @BETAS
    def test_torch_func(beta):
        loss = SmoothL1Loss(beta, reduction="sum")
        value, (gradient,) = eager(loss, None)
        assert_close(torch.func.grad(loss, argnums=1)(T_TRUE, T_PRED), gradient)
        assert_close(torch.func.vmap(loss)(T_TRUE, T_PRED).sum(), value)
        each = torch.func.vmap(torch.func.grad(loss, argnums=1))(T_TRUE, T_PRED)
        assert_close(each, gradient)

    def test_torch_vmap_over_betas():
        betas = torch.tensor([0.25, 0.5, 2.0])

        def losses(beta):
            return smooth_l1_loss(T_TRUE, T_PRED, beta)

        for actual, beta in zip(torch.func.vmap(losses)(betas), betas, strict=True):
            assert_close(actual, losses(float(beta)))

    def test_the_range_of_a_beta_on_another_device_is_unknown():
        assert backend.static_range(torch.tensor(-1.0, device="meta")) is None
        assert backend.static_range(torch.tensor(-1.0)) == (-1, -1)

    def test_no_grad_and_autocast():
        loss = SmoothL1Loss(0.5)
        value, (gradient,) = eager(loss, None)
        with torch.no_grad():
            actual = loss(T_TRUE, T_PRED.clone().requires_grad_())
        assert not actual.requires_grad
        assert_close(actual, value)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = T_PRED.clone().requires_grad_()
            actual = loss(T_TRUE, x)
        actual.backward()
        assert actual.dtype == torch.float32
        assert_close(actual, value)
        assert_close(x.grad, gradient)


if BACKEND == "tensorflow":
    import tensorflow as tf

    @pairwise(
        spec=[SHAPE, (None, *SHAPE[1:]), (None, None, None), None],
        settings=ALL_SETTINGS,
        weight=[None, "(B,)", "full"],
        beta=[0.5, (0.25, 2.0)],
        jit_compile=[False, True],
    )
    def test_graphs_with_known_and_unknown_shapes(
        spec, settings, weight, beta, jit_compile
    ):
        if spec is None and "reduce_dims" in settings:
            settings = {key: settings[key] for key in settings if key != "reduce_dims"}
        loss, weight = SmoothL1Loss(beta, **settings), weights(weight)
        value, (gradient,) = eager(loss, weight)
        signature = [tf.TensorSpec(spec)] * 2
        arguments = [tf.constant(targets(weight)), tf.constant(Y_PRED)]
        if weight is not None:
            sizes = weight.shape if spec == SHAPE else (None,) * weight.ndim
            signature.append(tf.TensorSpec(None if spec is None else sizes))
            arguments.append(tf.constant(weight))

        @tf.function(
            input_signature=signature, jit_compile=jit_compile, autograph=False
        )
        def run(y_true, y_pred, weight=None):
            return loss(y_true, y_pred, weight)

        with tf.GradientTape() as tape:
            tape.watch(arguments)
            actual = run(*arguments)
        assert_close(actual, value)
        assert_close(tape.gradient(actual, arguments[1]), gradient)

    @pytest.mark.parametrize("autograph", [False, True])
    def test_reduce_dims_with_unknown_rank_raises_an_error_with_a_hint(autograph):
        run = tf.function(
            SmoothL1Loss(reduce_dims=-1),
            input_signature=[tf.TensorSpec(None)] * 2,
            autograph=autograph,
        )
        with pytest.raises(ValueError, match="reduce_dims requires.*ensure_shape"):
            run(Y_TRUE, Y_PRED)

    @pytest.mark.parametrize("rank_of", [0, 1])
    def test_a_missing_last_dimension_is_not_broadcast_with_unknown_rank(rank_of):
        y = np.arange(4, dtype="float32")
        signature = [tf.TensorSpec((None,)), tf.TensorSpec((None, 1))]
        signature[rank_of] = tf.TensorSpec(None)
        run = tf.function(SmoothL1Loss(), input_signature=signature)
        assert to_numpy(run(y, y[:, None])) == 0

    def test_the_mixed_derivative_is_0_for_a_missing_target_of_weight_0():
        """The backward pass uses the slope that the forward pass has stored."""
        y_true, y_pred = tf.constant([0.0, np.nan]), tf.constant([3.0, 3.0])
        weight = tf.constant([1.0, 0.0])
        with tf.GradientTape() as outer:
            outer.watch(weight)
            with tf.GradientTape() as inner:
                inner.watch(y_pred)
                value = SmoothL1Loss(reduction="sum")(y_true, y_pred, weight)
            slope = tf.reduce_sum(inner.gradient(value, y_pred))
        assert_close(outer.gradient(slope, weight), [1, 0])


def test_keras_variables_are_accepted():
    loss = SmoothL1Loss(0.5)
    actual = loss(keras.Variable(Y_TRUE), keras.Variable(Y_PRED))
    assert_close(actual, to_numpy(loss(Y_TRUE, Y_PRED)))

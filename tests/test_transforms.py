"""Transformed functions have the values and derivatives of the definition.

WAYS lists ways to map, repeat, save and differentiate a loss. Some of them lose the
rules for gradients that the loss has, and differentiate its operations.
"""

import functools
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import oracle
from helpers.autodiff import AUTODIFF, BACKEND, to_numpy
from keras import ops
from packaging import version

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss

SHAPE = (5, 4)
BETA_PER_OUTPUT = [0.25, 0.5, 1.0, 2.0]
BETA_PER_SAMPLE = [0.5, 0.25, 1.0, 1.0, 2.0]
# For each setting, the inputs of the loss after y_true and y_pred.
SETTINGS = {
    "plain": (),
    "mask and list": (),
    "weight": ("weight",),
    "weight and tensor": ("weight", "beta"),
}
# The arguments reduction and reduce_dims. A way adds up what the loss returns.
REDUCTIONS = {"elements": (None, None), "sum": ("sum", None), "means": (None, -1)}


def make_loss(setting, reduction, reduce_dims):
    """The loss as a function of the inputs, for all samples or for one."""
    if setting == "mask and list":
        return lambda y_true, y_pred: smooth_l1_loss(
            y_true, y_pred, BETA_PER_OUTPUT, reduce_dims, mask=ops.isfinite(y_true)
        )
    if setting == "weight and tensor":
        return lambda y_true, y_pred, weight, beta: smooth_l1_loss(
            y_true, y_pred, beta, reduce_dims, sample_weight=weight
        )
    return SmoothL1Loss(0.5, reduction, reduce_dims)


def make_slopes(loss):
    """The derivative of a loss with respect to y_pred, as a function of the inputs."""
    _, reverse = AUTODIFF[BACKEND]()
    return lambda y_true, y_pred, *rest: reverse(
        lambda x: ops.sum(loss(y_true, x, *rest))
    )(y_pred)


def make_inputs(setting):
    rng = np.random.default_rng(16)
    beta = np.broadcast_to(0.5, SHAPE)
    if setting == "mask and list":
        beta = np.broadcast_to(BETA_PER_OUTPUT, SHAPE)
    elif "beta" in SETTINGS[setting]:
        beta = oracle.broadcast(BETA_PER_SAMPLE, SHAPE)
    y_true, error = rng.integers(-4, 4, SHAPE) / 4, rng.normal(size=SHAPE)
    error[0, 0], error[1, 1], error[2, 2] = beta[0, 0], -beta[1, 1], 0
    error[3, 3] = 3
    y_pred = y_true + error
    weight = rng.uniform(0.5, 2, SHAPE)
    weight[0, 1] = weight[3, 3] = weight[4, 0] = 0
    if setting == "mask and list" or "weight" in SETTINGS[setting]:
        y_true[4, 0] = np.nan
    others = {"weight": weight, "beta": np.array(BETA_PER_SAMPLE)}
    inputs = y_true, y_pred, *(others[name] for name in SETTINGS[setting])
    return [x.astype("float32") for x in inputs], beta


def make_tensors(setting):
    arrays, _ = make_inputs(setting)
    return tuple(map(ops.convert_to_tensor, arrays))


def expected(setting, reduce_dims):
    """The sum of the losses, its gradients, and the gradients of the sum of slopes."""
    (y_true, y_pred, *rest), beta = make_inputs(setting)
    missing = np.isnan(y_true)
    error = np.where(missing, 0, y_pred.astype("float64") - y_true)
    value, slope = oracle.value_and_slope(error, beta)
    curvature = np.where(np.abs(error) < beta, 1 / beta, 0)
    weight = rest[0] if "weight" in SETTINGS[setting] else ~missing
    size = 1
    if reduce_dims is not None:
        is_masked = setting == "mask and list"
        size = (~missing).sum(1, keepdims=True) if is_masked else SHAPE[1]
    share = weight / size
    first = {
        "y_true": -share * slope,
        "y_pred": share * slope,
        "weight": value / size,
        "beta": np.sum(-share * slope**2 / 2, 1),
    }
    second = {
        "y_true": -share * curvature,
        "y_pred": share * curvature,
        "weight": slope / size,
        "beta": np.sum(-share * slope * curvature, 1),
    }
    names = "y_true", "y_pred", *SETTINGS[setting]
    gradients = [[each[name] for name in names] for each in (first, second)]
    return np.sum(share * value), *gradients


def assert_close(results, gradients):
    for result, gradient in zip(map(to_numpy, results), gradients, strict=True):
        np.testing.assert_allclose(result, gradient, rtol=2e-6, atol=1e-6)
        assert not result[gradient == 0].any()


def sum_jacobian(jacobian, inputs):
    """Sums over the axes of the output, which come first."""
    return [
        ops.sum(ops.reshape(x, (-1, *like.shape)), 0)
        for x, like in zip(jacobian, inputs, strict=True)
    ]


def of_row(loss):
    """The sum of what the loss returns for the inputs of one sample."""
    return lambda row: ops.sum(loss(*row))


def vectorized_map(loss, inputs):
    return ops.sum(ops.vectorized_map(of_row(loss), inputs))


def map_(loss, inputs):
    return ops.sum(ops.map(of_row(loss), inputs))


def scan(loss, inputs):
    def step(total, row):
        total = total + ops.sum(loss(*row))
        return total, total

    return ops.scan(step, ops.zeros(()), inputs)[0]


def fori_loop(loss, inputs):
    def step(index, total):
        return total + ops.sum(loss(*(x[index] for x in inputs)))

    return ops.fori_loop(0, SHAPE[0], step, ops.zeros(()))


def while_loop(loss, inputs):
    def step(index, total):
        return index + 1, total + ops.sum(loss(*(x[index] for x in inputs)))

    start = ops.convert_to_tensor(0), ops.zeros(())
    rows = SHAPE[0]
    return ops.while_loop(
        lambda index, total: index < rows, step, start, maximum_iterations=rows
    )[1]


def cond(loss, inputs):
    return ops.cond(
        ops.sum(inputs[1]) > -1e9,
        lambda: ops.sum(loss(*inputs)),
        lambda: ops.zeros(()),
    )


def switch(loss, inputs):
    index = ops.cast(ops.sum(inputs[1]) > -1e9, "int32")
    branches = [lambda *x: ops.zeros(()), lambda *x: ops.sum(loss(*x))]
    return ops.switch(index, branches, *inputs)


# The functions of Keras return the total, which a way of the backend differentiates.
OF_KERAS = [vectorized_map, map_, scan, fori_loop, while_loop, cond, switch]


def eager(function):
    return function


def by_jacobian(jacobian):
    def way(loss, inputs):
        jacobians = jacobian(lambda x: loss(*x))(inputs)
        return loss(*inputs), sum_jacobian(jacobians, inputs)

    return way


if BACKEND == "jax":
    import jax

    RUNS = {"eager": eager, "jit": jax.jit}

    def reverse(function):
        def way(loss, inputs):
            return jax.value_and_grad(functools.partial(function, loss))(inputs)

        return way

    def forward(function):
        def way(loss, inputs):
            total = functools.partial(function, loss)
            return total(inputs), jax.jacfwd(total)(inputs)

        return way

    def vmap_of_grad(loss, inputs):
        return jax.vmap(jax.value_and_grad(of_row(loss)))(inputs)

    def hessian(loss, inputs):
        return sum_jacobian(jax.hessian(of_row(loss))(inputs)[1], inputs)

    def vmap_of_hessian(loss, inputs):
        return jax.vmap(functools.partial(hessian, loss))(inputs)

    def checkpoint(loss, inputs):
        return jax.checkpoint(of_row(loss))(inputs)

    of_keras = [vectorized_map, map_, scan, cond, switch]
    WAYS = {f.__name__: reverse(f) for f in [*of_keras, checkpoint]} | {
        "jacrev": by_jacobian(jax.jacrev),
        "jacfwd": by_jacobian(jax.jacfwd),
        "vmap of grad": vmap_of_grad,
        # JAX differentiates a loop of unknown length only in forward mode.
        "jacfwd of while_loop": forward(while_loop),
        "jacfwd of fori_loop": forward(fori_loop),
    }
    HESSIANS = {"hessian": hessian, "vmap of hessian": vmap_of_hessian}
    IMPOSSIBLE = set()
elif BACKEND == "torch":
    import torch
    import torch.utils.checkpoint
    from torch.func import grad_and_value, jacfwd, jacrev, vmap

    def with_compile(function):
        torch._dynamo.reset()
        return torch.compile(function, backend="eager", fullgraph=True)

    RUNS = {"eager": eager}
    # torch.compile cannot trace the tensor operations of Keras before 3.15.
    if version.parse(keras.__version__) >= version.parse("3.15"):
        RUNS["compile"] = with_compile

    def reverse(function):
        def way(loss, inputs):
            inputs = tuple(x.detach().requires_grad_() for x in inputs)
            value = function(loss, inputs)
            return value, torch.autograd.grad(value, inputs)

        return way

    def over_vmap(way):
        return lambda loss, inputs: vmap(functools.partial(way, loss))(inputs)

    def grad(loss, inputs):
        return grad_and_value(of_row(loss))(inputs)[::-1]

    def grad_of_vmap(loss, inputs):
        total = functools.partial(vectorized_map, loss)
        return grad_and_value(total)(inputs)[::-1]

    def hessian(loss, inputs):
        return sum_jacobian(torch.func.hessian(of_row(loss))(inputs)[1], inputs)

    def checkpoint(loss, inputs):
        return torch.utils.checkpoint.checkpoint(
            of_row(loss), inputs, use_reentrant=False
        )

    WAYS = {f.__name__: reverse(f) for f in [*OF_KERAS, checkpoint]} | {
        "grad of vmap": grad_of_vmap,
        "jacrev": by_jacobian(jacrev),
        "jacfwd": by_jacobian(jacfwd),
        "vmap of grad": over_vmap(grad),
        "vmap of jacrev": over_vmap(by_jacobian(jacrev)),
        "vmap of jacfwd": over_vmap(by_jacobian(jacfwd)),
    }
    HESSIANS = {"hessian": hessian, "vmap of hessian": over_vmap(hessian)}
    # torch.compile traces torch.func, but not vmap over forward mode.
    IMPOSSIBLE = {(f.__name__, "compile") for f in [*OF_KERAS, checkpoint]} | {
        ("vmap of jacfwd", "compile"),
        ("vmap of hessian", "compile"),
        # torch.func.grad does not support checkpoints.
        ("checkpoint", "second"),
    }
else:
    import tempfile

    import tensorflow as tf

    RUNS = {
        "eager": eager,
        "graph": functools.partial(tf.function, autograph=False),
        "xla": functools.partial(tf.function, autograph=False, jit_compile=True),
    }

    def with_tape(total, inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = total(inputs)
        return value, tape.gradient(value, inputs)

    def reverse(function):
        def way(loss, inputs):
            return with_tape(functools.partial(function, loss), inputs)

        return way

    def vectorized_map_of_gradient(loss, inputs):
        return tf.vectorized_map(functools.partial(with_tape, of_row(loss)), inputs)

    def vectorized_map_of_function(loss, inputs):
        run = tf.function(of_row(loss), autograph=False)
        return with_tape(lambda x: tf.reduce_sum(tf.vectorized_map(run, x)), inputs)

    def by_jacobian(*, pfor):
        def way(loss, inputs):
            # Without pfor, an eager tape has to be persistent.
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(inputs)
                value = loss(*inputs)
            jacobians = tape.jacobian(value, inputs, experimental_use_pfor=pfor)
            return value, sum_jacobian(jacobians, inputs)

        return way

    def batch_jacobian(loss, inputs):
        # A source must have at least two axes.
        sources = [tf.reshape(x, [SHAPE[0], -1]) for x in inputs]

        def losses_of(row):
            rows = zip(row, inputs, strict=True)
            losses = loss(*(tf.reshape(x, like.shape[1:]) for x, like in rows))
            return tf.reshape(losses, [-1])

        with tf.GradientTape(persistent=True) as tape:
            tape.watch(sources)
            losses = tf.vectorized_map(losses_of, sources)
        jacobians = [tape.batch_jacobian(losses, x) for x in sources]
        return losses, [
            tf.reshape(tf.reduce_sum(jacobian, 1), x.shape)
            for jacobian, x in zip(jacobians, inputs, strict=True)
        ]

    def save(loss, inputs, folder, *, custom_gradients):
        module = tf.Module()
        module.total = tf.function(
            lambda *x: ops.sum(loss(*x)),
            input_signature=[tf.TensorSpec(x.shape) for x in inputs],
            autograph=False,
        )
        options = tf.saved_model.SaveOptions(
            experimental_custom_gradients=custom_gradients
        )
        tf.saved_model.save(module, folder, options=options)

    def by_saved_model(*, custom_gradients):
        def way(loss, inputs):
            with tempfile.TemporaryDirectory() as folder:
                save(loss, inputs, folder, custom_gradients=custom_gradients)
                total = tf.saved_model.load(folder).total
            return with_tape(lambda x: total(*x), inputs)

        return way

    def imported_graph(loss, inputs):
        specs = [tf.TensorSpec(x.shape) for x in inputs]
        total = tf.function(lambda *x: ops.sum(loss(*x)), specs, autograph=False)
        graph = total.get_concrete_function().graph
        definition = graph.as_graph_def()
        names = [x.op.name for x in graph.inputs]

        def imported(*x):
            feeds = dict(zip(names, x, strict=True))
            return tf.graph_util.import_graph_def(
                definition, feeds, [graph.outputs[0].name]
            )

        total = tf.compat.v1.wrap_function(imported, specs)
        return with_tape(lambda x: total(*x)[0], inputs)

    WAYS = {f.__name__: reverse(f) for f in OF_KERAS} | {
        "vectorized_map of gradient": vectorized_map_of_gradient,
        "vectorized_map of function": vectorized_map_of_function,
        "jacobian": by_jacobian(pfor=False),
        "jacobian with pfor": by_jacobian(pfor=True),
        "batch_jacobian": batch_jacobian,
        "saved model": by_saved_model(custom_gradients=False),
        "saved model with gradients": by_saved_model(custom_gradients=True),
        "imported graph": imported_graph,
    }
    HESSIANS = {}
    IMPOSSIBLE = {
        # A model is saved outside of graphs.
        *((way, run) for way in WAYS if "saved" in way for run in ("graph", "xla")),
        # Keras's loops set no maximum of iterations, which XLA requires for gradients.
        ("scan", "xla"),
        ("fori_loop", "xla"),
    }


def cases(order, ways, settings):
    """Each way with each setting. The runs and reductions change from case to case."""
    rows = []
    for number, way in enumerate(ways):
        runs = [run for run in RUNS if not {(way, run), (way, order)} & IMPOSSIBLE]
        for index, setting in enumerate(settings if runs else ()):
            run = runs[(index + number) % len(runs)]
            reduction = list(REDUCTIONS)[(index + 2 * number) % len(REDUCTIONS)]
            rows.append((way, run, setting, reduction))
    return pytest.mark.parametrize(("way", "run", "setting", "reduction"), rows)


@cases("first", WAYS, SETTINGS)
def test_gradients_of_a_transformed_loss(way, run, setting, reduction):
    reduction, reduce_dims = REDUCTIONS[reduction]
    loss, inputs = make_loss(setting, reduction, reduce_dims), make_tensors(setting)
    values, gradients = RUNS[run](functools.partial(WAYS[way], loss))(inputs)
    value, exact, _ = expected(setting, reduce_dims)
    assert_close([ops.sum(values), *gradients], [value, *exact])


@cases("second", [*WAYS, *HESSIANS], ["mask and list", "weight and tensor"])
def test_second_derivatives_of_a_transformed_loss(way, run, setting, reduction):
    reduction, reduce_dims = REDUCTIONS[reduction]
    loss, inputs = make_loss(setting, reduction, reduce_dims), make_tensors(setting)
    if way in HESSIANS:
        gradients = RUNS[run](functools.partial(HESSIANS[way], loss))(inputs)
    else:
        slopes = functools.partial(WAYS[way], make_slopes(loss))
        _, gradients = RUNS[run](slopes)(inputs)
    _, _, exact = expected(setting, reduce_dims)
    assert_close(gradients, exact)


if BACKEND == "tensorflow":
    READER = """
import sys

import numpy as np
import tensorflow as tf

folder, *names = sys.argv[1:]
inputs = [tf.constant(x) for x in np.load(f"{folder}/inputs.npz").values()]
for name in names:
    total = tf.saved_model.load(f"{folder}/{name}").total
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = total(*inputs)
    np.savez(f"{folder}/{name}.npz", *tape.gradient(value, inputs))
assert "keras_smoothl1" not in sys.modules
"""

    def test_gradients_of_a_saved_model_in_a_process_without_the_package(tmp_path):
        setting = "weight and tensor"
        loss, inputs = make_loss(setting, None, None), make_tensors(setting)
        np.savez(tmp_path / "inputs.npz", *inputs)
        names = {"with": True, "without": False}
        for name, custom_gradients in names.items():
            folder = str(tmp_path / name)
            save(loss, inputs, folder, custom_gradients=custom_gradients)
        subprocess.run([sys.executable, "-c", READER, tmp_path, *names], check=True)
        _, exact, _ = expected(setting, None)
        for name in names:
            results = np.load(tmp_path / f"{name}.npz").values()
            assert_close(map(tf.constant, results), exact)

"""First and second derivatives in each mode, eager and transformed."""

import keras
import numpy as np
from helpers import oracle
from helpers.autodiff import BACKEND, derivative, to_numpy
from helpers.pairwise import pairwise

from keras_smoothl1 import SmoothL1Loss

RNG = np.random.default_rng(8)
SHAPE = (4, 3, 2)
Y_TRUE, Y_PRED, DIRECTION = RNG.normal(size=(3, *SHAPE)).astype("float32")
WEIGHT = np.array([0.0, 0.5, 1.0, 2.0], "float32")
# Errors at the threshold of beta = 0.5, where the second derivative is 0, and at 0.
Y_PRED[1, 0, 0], Y_PRED[2, 0, 0], Y_PRED[3, 0, 0] = 0.5, -0.5, 0
Y_TRUE[1:, 0, 0] = 0
BROADCAST = WEIGHT[:, None, None]
MODES = ["forward", "forward over reverse", "reverse over forward", "reverse twice"]


def eager(function):
    return function


if BACKEND == "jax":
    import jax

    RUNNERS = {"eager": eager, "jit": jax.jit}
elif BACKEND == "torch":
    import torch

    def with_vmap(function):
        return lambda x: torch.func.vmap(function)(x[None])[0]

    RUNNERS = {"eager": eager, "vmap": with_vmap}
else:
    import tensorflow as tf

    def xla(function):
        return tf.function(function, jit_compile=True, autograph=False)

    def graph_with_unknown_sizes(function):
        signature = [tf.TensorSpec([None] * len(SHAPE))]
        return tf.function(function, signature, autograph=False)

    RUNNERS = {
        "eager": eager,
        "graph": lambda function: tf.function(function, autograph=False),
        "unknown sizes": graph_with_unknown_sizes,
        "xla": xla,
    }


def expected(mode, beta, weight):
    """The derivative of the sum of the weighted losses, by NumPy."""
    error = (Y_PRED - Y_TRUE).astype("float64")
    _, slope = oracle.value_and_slope(error, np.array(beta))
    curvature = np.where(np.abs(error) < np.array(beta), 1 / np.array(beta), 0)
    if mode == "forward":
        return np.sum(weight * slope * DIRECTION)
    return weight * curvature * DIRECTION


def differentiate(mode, runner, inside, function, x):
    """The derivative of function. The runner wraps it if inside, else only function."""
    run, x = RUNNERS[runner], keras.ops.convert_to_tensor(x)
    # TensorFlow cannot differentiate the tangent of a tf.function.
    if inside or (BACKEND == "tensorflow" and mode == "reverse over forward"):
        return run(derivative(mode, function, DIRECTION))(x)
    return derivative(mode, run(function), DIRECTION)(x)


@pairwise(
    mode=MODES,
    runner=list(RUNNERS),
    inside=[True, False],
    beta=[0.5, (0.25, 2.0)],
    weighted=[False, True],
    reduction=["sum", "mean", None],
)
def test_derivatives_wrt_y_pred(mode, runner, inside, beta, weighted, reduction):
    loss = SmoothL1Loss(beta, reduction)
    weight = WEIGHT if weighted else None
    y_true = np.where(BROADCAST == 0, np.nan, Y_TRUE) if weighted else Y_TRUE
    result = differentiate(
        mode, runner, inside, lambda x: keras.ops.sum(loss(y_true, x, weight)), Y_PRED
    )
    count = Y_PRED.size if reduction == "mean" else 1
    np.testing.assert_allclose(
        to_numpy(result) * count,
        expected(mode, beta, BROADCAST if weighted else 1),
        rtol=2e-6,
        atol=1e-6,
    )


@pairwise(mode=MODES, runner=list(RUNNERS), inside=[True, False])
def test_derivatives_wrt_a_weight(mode, runner, inside):
    weight = RNG.uniform(1, 2, size=SHAPE).astype("float32")
    loss = SmoothL1Loss(0.5, "sum")
    result = differentiate(
        mode, runner, inside, lambda x: loss(Y_TRUE, Y_PRED, x), weight
    )
    if mode == "forward":
        value, _ = oracle.value_and_slope(Y_PRED - Y_TRUE, 0.5)
        np.testing.assert_allclose(to_numpy(result), np.sum(value * DIRECTION), 1e-5)
    else:  # TensorFlow returns None for zero.
        assert result is None or keras.ops.all(result == 0)

"""One step, forward and backward, of each implementation in each mode.

Images of shape (8, 8, 4) in batches, so that 2^8 elements are one image. Each variant
is a function of (y_true, y_pred, extra) for this package and for each peer that can do
the same work, where extra is a weight, a mask or None.
"""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import keras
import numpy as np
from keras.src.backend.common.masking import set_keras_mask

from keras_smoothl1 import SmoothL1Loss

BACKEND = keras.backend.backend()
IMAGE = (8, 8, 4)
BETA = 0.5
BETAS = [0.1, 0.1, 0.2, 0.5]
OURS, HUBER = "keras_smoothl1", "keras.losses.Huber"
MODES = {
    "torch": ("eager", "compiled"),
    "jax": ("eager", "jit"),
    "tensorflow": ("eager", "graph", "jit"),
}[BACKEND]
VARIANTS = (
    "plain",
    "weights",
    "mask",
    "reduce_dims",
    "per image",
    "elementwise",
    "beta per output",
)


def chosen(names, known, option):
    unknown = set(names or ()) - set(known)
    if unknown:
        sys.exit(f"{option} must be of {known}. Received: {sorted(unknown)}")
    return names or known


def machine(device):
    """What a recorded figure must be read with."""

    def versions():
        for name in ("keras-smoothl1", "keras", "jax", "torch", "tensorflow", "optax"):
            try:
                yield name, version(name)
            except PackageNotFoundError:
                continue

    return {
        "backend": keras.backend.backend(),
        "device": device,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **dict(versions()),
    }


def has_gpu():
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU"))
    if BACKEND == "jax":
        import jax

        return jax.default_backend() == "gpu"
    return keras.ops.zeros(()).is_cuda


def inputs(variant, size):
    """y_true, y_pred, and the weight or mask of the variant, as tensors."""
    random = np.random.default_rng(0)
    shape = (size // np.prod(IMAGE), *IMAGE)
    y_true, y_pred = random.standard_normal((2, *shape), "float32")
    extra = {
        "weights": lambda: random.random(shape[:1], "float32"),
        "mask": lambda: random.random(shape[:3]) < 0.8,
    }.get(variant, lambda: None)()
    return [
        None if x is None else keras.ops.convert_to_tensor(x)
        for x in (y_true, y_pred, extra)
    ]


def implementations(variant):
    """Functions of (y_true, y_pred, extra), by name."""
    settings = {
        "plain": {"beta": BETA},
        "weights": {"beta": BETA},
        "mask": {"beta": BETA},
        "reduce_dims": {"beta": BETA, "reduce_dims": (1, 2, 3)},
        "per image": {"beta": BETA, "reduce_dims": (1, 2, 3), "reduction": None},
        "elementwise": {"beta": BETA, "reduction": None},
        "beta per output": {"beta": BETAS},
    }[variant]
    ours = SmoothL1Loss(**settings)
    # For "beta per output" Huber broadcasts an array of deltas.
    delta = np.array(BETAS, "float32") if variant == "beta per output" else BETA
    huber = keras.losses.Huber(delta=delta, reduction=settings.get("reduction", "mean"))
    functions = {
        OURS: lambda y_true, y_pred, _: ours(y_true, y_pred),
        HUBER: lambda y_true, y_pred, _: huber(y_true, y_pred),
    }
    if variant == "weights":
        functions[OURS] = ours
        # Huber on images takes no weights (B,).
        functions[HUBER] = lambda y_true, y_pred, weight: huber(
            y_true, y_pred, weight[:, None, None]
        )
    if variant == "mask":
        functions = {OURS: masked(ours), HUBER: masked(huber)}
    if variant == "per image":
        functions[HUBER] = lambda y_true, y_pred, _: keras.ops.mean(
            huber(y_true, y_pred), axis=(1, 2)
        )
    if variant in ("plain", "weights", "reduce_dims", "elementwise"):
        functions |= native(variant)
    return functions


def masked(loss):
    def function(y_true, y_pred, mask):
        set_keras_mask(y_pred, mask)
        return loss(y_true, y_pred)

    return function


def native(variant):
    """The backend's own loss, as its users would call it."""
    if BACKEND == "torch":
        from torch.nn.functional import smooth_l1_loss

        def elementwise(y_true, y_pred):
            return smooth_l1_loss(y_pred, y_true, beta=BETA, reduction="none")

        def mean(y_true, y_pred, _):
            return smooth_l1_loss(y_pred, y_true, beta=BETA)

        name = "torch smooth_l1_loss"
    elif BACKEND == "jax":
        import optax

        def elementwise(y_true, y_pred):
            return optax.huber_loss(y_pred, y_true, delta=BETA) / BETA

        def mean(y_true, y_pred, _):
            return elementwise(y_true, y_pred).mean()

        name = "optax.huber_loss"
    else:
        from tensorflow.compat.v1 import losses

        def elementwise(y_true, y_pred):
            return losses.huber_loss(y_true, y_pred, delta=BETA, reduction="none")

        def mean(y_true, y_pred, weight):
            weight = 1.0 if weight is None else weight[:, None, None, None]
            return losses.huber_loss(y_true, y_pred, weight, delta=BETA)

        name = "tf.compat.v1 huber_loss"
    if variant == "elementwise":
        return {name: lambda y_true, y_pred, _: elementwise(y_true, y_pred)}
    if variant == "weights" and BACKEND != "tensorflow":
        return {
            name: lambda y_true, y_pred, weight: (
                weight[:, None, None, None] * elementwise(y_true, y_pred)
            ).mean()
        }
    return {name: mean}


def step(function, mode, y_true, y_pred, extra):
    """A function without arguments that runs one step and waits for its end."""
    make = {"torch": _torch_step, "jax": _jax_step, "tensorflow": _tensorflow_step}
    return make[BACKEND](function, mode, y_true, y_pred, extra)


def memory_pass(y_true, y_pred):
    """The least that a step must do: read both, and write as much into new memory."""
    if BACKEND == "jax":
        import jax

        subtract = jax.jit(jax.numpy.subtract)
        return lambda: subtract(y_pred, y_true).block_until_ready()
    if BACKEND == "torch":
        import torch

        def run():
            result = torch.sub(y_pred, y_true)
            if result.is_cuda:
                torch.cuda.synchronize()

        return run
    return lambda: y_pred - y_true


def _torch_step(function, mode, y_true, y_pred, extra):
    import torch

    if mode == "compiled":
        function = torch.compile(function)
    y_pred = y_pred.detach().requires_grad_()
    upstream = torch.ones_like(function(y_true, y_pred, extra))

    def run():
        function(y_true, y_pred, extra).backward(upstream)
        y_pred.grad = None
        if y_pred.is_cuda:
            torch.cuda.synchronize()

    return run


def _jax_step(function, mode, y_true, y_pred, extra):
    import jax

    def value_and_gradient(y_true, y_pred, extra):
        value, pull_back = jax.vjp(lambda x: function(y_true, x, extra), y_pred)
        return value, pull_back(jax.numpy.ones_like(value))

    run = jax.jit(value_and_gradient) if mode == "jit" else value_and_gradient
    return lambda: jax.block_until_ready(run(y_true, y_pred, extra))


def _tensorflow_step(function, mode, y_true, y_pred, extra):
    import tensorflow as tf

    def value_and_gradient(y_true, y_pred, extra):
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            value = function(y_true, y_pred, extra)
        return value, tape.gradient(value, y_pred)

    run = value_and_gradient
    if mode != "eager":
        run = tf.function(run, jit_compile=mode == "jit")
    return lambda: run(y_true, y_pred, extra)

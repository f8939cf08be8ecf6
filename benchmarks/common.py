"""Shared by the benchmarks: implementations and their steps, options and tables.

The inputs are batches of images of shape (8, 8, 4); one image has 2^8 elements. Keras
is imported within functions, because the environment must be set first.
"""

import argparse
import itertools
import multiprocessing
import os
import pathlib
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata

import numpy as np
from rich import box
from rich.table import Table

# The benchmarks use some helpers of the tests.
sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))

IMAGE = (8, 8, 4)
METRIC = "metric"
BETA = 0.5
OURS, HUBER = "keras_smoothl1", "keras.losses.Huber"
MODES = {
    "torch": ("eager", "compiled"),
    "jax": ("eager", "jit"),
    "tensorflow": ("eager", "graph", "jit"),
}
# The settings of the loss in each variant.
VARIANTS = {
    "plain": {},
    "weights": {},
    "mask": {},
    "reduce_dims": {"reduce_dims": (1, 2, 3)},
    "per image": {"reduce_dims": (1, 2, 3), "reduction": None},
    "elementwise": {"reduction": None},
    "beta per output": {"beta": [0.1, 0.1, 0.2, 0.5]},
}


def parser(description):
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json", type=output_path, help="file for the results")
    return parser


def output_path(text):
    """A path. Its folder is created now, so that a long run cannot fail at its end."""
    path = pathlib.Path(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def add_cases(parser, *others):
    variants = [*VARIANTS, *others]
    parser.add_argument(
        "--mode",
        nargs="+",
        help="eager, compiled, jit or graph; all modes of the backend if left out",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        choices=variants,
        default=variants,
        metavar="VARIANT",
        help="cases to measure",
    )


def chosen_cases(arguments):
    """All pairs of a chosen mode of the backend and a chosen variant."""
    modes = MODES[backend()]
    if unknown := sorted(set(arguments.mode or ()) - set(modes)):
        sys.exit(f"--mode must be one of {modes}. Received: {unknown}")
    cases = itertools.product(arguments.mode or modes, arguments.variant)
    # Keras compiles a metric only as a part of a training or test step.
    return [(mode, name) for mode, name in cases if name != METRIC or mode == "eager"]


def hide_gpus():
    """Must be called before the backend is imported."""
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")


def run_alone(function, *arguments, **environment):
    """Calls the function in a new process and returns its result."""
    os.environ.update(environment)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def table(title, *headings):
    """A Markdown table: names on the left, numbers under each heading."""
    table = Table(title=title, box=box.MARKDOWN, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def backend():
    import keras

    return keras.config.backend()


def machine(device="cpu"):
    """The machine and the versions that a recorded result belongs to."""
    installed = {package.name: package.version for package in metadata.distributions()}
    packages = ("keras-smoothl1", "keras", "jax", "torch", "tensorflow", "optax")
    return {
        "backend": backend(),
        "device": device,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: installed[name] for name in packages if name in installed},
    }


def inputs(variant, size):
    """Returns the tensors y_true and y_pred, and the variant's weight, mask or None."""
    import keras

    random = np.random.default_rng(0)
    shape = (size // np.prod(IMAGE), *IMAGE)
    y_true, y_pred = random.standard_normal((2, *shape), "float32")
    extra = None
    if variant == "weights":
        extra = random.random(shape[:1], "float32")
    if variant == "mask":
        extra = random.random(shape[:3]) < 0.8
    return [
        None if x is None else keras.ops.convert_to_tensor(x)
        for x in (y_true, y_pred, extra)
    ]


def implementations(variant):
    """The losses of the package and its peers, by name, called with `inputs()`."""
    import keras

    from keras_smoothl1 import SmoothL1Loss

    settings = {"beta": BETA, **VARIANTS[variant]}
    ours = SmoothL1Loss(**settings)
    # Huber accepts one delta per output only as an array.
    beta = settings["beta"]
    delta = np.array(beta, "float32") if isinstance(beta, list) else beta
    huber = keras.losses.Huber(delta=delta, reduction=settings.get("reduction", "mean"))
    if variant == "mask":
        return {OURS: masked(ours), HUBER: masked(huber)}
    functions = {OURS: ours, HUBER: huber}
    if variant == "weights":
        # Huber on images does not accept weights of shape (batch,).
        functions[HUBER] = lambda y_true, y_pred, weight: huber(
            y_true, y_pred, weight[:, None, None]
        )
    if variant == "per image":
        functions[HUBER] = lambda y_true, y_pred, _: keras.ops.mean(
            huber(y_true, y_pred), axis=(1, 2)
        )
    if variant in ("plain", "weights", "reduce_dims", "elementwise"):
        functions |= native(variant)
    return functions


def masked(loss):
    from keras.src.backend.common.masking import set_keras_mask

    def function(y_true, y_pred, mask):
        set_keras_mask(y_pred, mask)
        return loss(y_true, y_pred)

    return function


def native(variant):
    """The backend's native loss, called as its users would call it."""
    if backend() == "torch":
        from torch.nn.functional import smooth_l1_loss

        def elementwise(y_true, y_pred, _):
            return smooth_l1_loss(y_pred, y_true, beta=BETA, reduction="none")

        def mean(y_true, y_pred, weight):
            if weight is None:
                return smooth_l1_loss(y_pred, y_true, beta=BETA)
            losses = elementwise(y_true, y_pred, None)
            return (weight[:, None, None, None] * losses).mean()

        name = "torch smooth_l1_loss"
    elif backend() == "jax":
        import optax

        def elementwise(y_true, y_pred, _):
            return optax.huber_loss(y_pred, y_true, delta=BETA) / BETA

        def mean(y_true, y_pred, weight):
            losses = elementwise(y_true, y_pred, None)
            if weight is not None:
                losses = weight[:, None, None, None] * losses
            return losses.mean()

        name = "optax.huber_loss"
    else:
        from tensorflow.compat.v1.losses import huber_loss

        def elementwise(y_true, y_pred, _):
            return huber_loss(y_true, y_pred, delta=BETA, reduction="none")

        def mean(y_true, y_pred, weight):
            weight = 1.0 if weight is None else weight[:, None, None, None]
            return huber_loss(y_true, y_pred, weight, delta=BETA)

        name = "tf.compat.v1 huber_loss"
    return {name: elementwise if variant == "elementwise" else mean}


def metric_updates(y_true, y_pred):
    """Functions that update a metric with the batch and wait, by the metric's name."""
    import keras

    from keras_smoothl1 import SmoothL1Error

    peer = keras.metrics.MeanSquaredError()
    metrics = {OURS: SmoothL1Error(BETA), "keras MeanSquaredError": peer}
    return {name: _update(metric, y_true, y_pred) for name, metric in metrics.items()}


def _update(metric, y_true, y_pred):
    def run():
        metric.update_state(y_true, y_pred)
        for variable in metric.variables:
            wait_for(variable.value)

    return run


def wait_for(x):
    if backend() == "jax":
        x.block_until_ready()
    elif backend() == "torch" and x.is_cuda:
        import torch

        torch.cuda.synchronize()


def step(function, mode, y_true, y_pred, extra):
    """Returns a function without arguments that runs one step and waits for it."""
    make = {"torch": _torch_step, "jax": _jax_step, "tensorflow": _tensorflow_step}
    return make[backend()](function, mode, y_true, y_pred, extra)


def _torch_step(function, mode, y_true, y_pred, extra):
    import torch

    if mode == "compiled":
        # torch runs a function eagerly once it has been compiled for eight other cases.
        torch.compiler.reset()
        function = torch.compile(function)
    y_pred = y_pred.detach().requires_grad_()
    grad_output = torch.ones_like(function(y_true, y_pred, extra))

    def run():
        function(y_true, y_pred, extra).backward(grad_output)
        y_pred.grad = None
        wait_for(y_pred)

    return run


def _jax_step(function, mode, y_true, y_pred, extra):
    import jax

    def value_and_gradient(y_true, y_pred, extra):
        value, vjp = jax.vjp(lambda x: function(y_true, x, extra), y_pred)
        return value, vjp(jax.numpy.ones_like(value))

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

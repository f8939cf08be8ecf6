"""
Distributed training with keras.distribution
============================================

The script runs on JAX and, with Keras 3.16 or newer, on PyTorch. ``DataParallel`` gives
each device a part of every batch. ``ModelParallel`` also splits the output layer, so
that each device computes some of the outputs for a part of the batch. After five steps,
the weights are the same as on one device. To run it::

    KERAS_BACKEND=jax python examples/distributed_keras.py
    KERAS_BACKEND=torch python examples/distributed_keras.py

The four devices share the CPU. The script starts the processes: one per device on
PyTorch, and two on JAX, as on two machines.
"""

import itertools
import sys

import command_line
import compare_weights
import display
import keras
import numpy as np
from packaging import version

from keras_smoothl1 import SmoothL1Loss

DEVICES, STEPS, BATCH, LENGTH, OUTPUTS = 4, 5, 8, 6, 4
LOSSES = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "mean_with_sample_weight": {"reduction": "mean_with_sample_weight"},
    "mean, reduce_dims=-1": {"reduce_dims": -1},
    "mean, one beta per output": {"beta": [0.05, 0.1, 0.2, 0.5]},
}
EXTRAS = ("none", "weights", "mask", "both")


def parse_arguments():
    parser = command_line.make_parser(__doc__)
    parser.add_argument("--process", type=int, help="index of this process")
    parser.add_argument("--coordinator", help="address of the first process")
    return parser.parse_args()


def make_data():
    """Returns sequences, targets, weights (batch,) and masks (batch, time)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * BATCH, LENGTH, 8))
    y = np.sin(x[..., :OUTPUTS]) + rng.standard_cauchy((len(x), LENGTH, OUTPUTS))
    weights = rng.uniform(0, 2, len(x))
    mask = np.arange(LENGTH) < rng.integers(2, LENGTH + 1, len(x))[:, None]
    return x.astype("float32"), y.astype("float32"), weights.astype("float32"), mask


def make_strategy(kind):
    """Returns a Keras distribution, and the number of parts of a batch."""
    devices = keras.distribution.list_devices()
    # No automatic sharding, because each process passes its own part.
    if kind == "DataParallel":
        strategy = keras.distribution.DataParallel(
            devices=devices, auto_shard_dataset=False
        )
        return strategy, DEVICES
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["outputs/kernel"] = (None, "model")
    layout["outputs/bias"] = ("model",)
    strategy = keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
    )
    return strategy, 2


def weights_of_a_sum(settings, weights, mask):
    """Returns weights (batch, time) that make a sum equal to the loss of the settings.

    If each process computes the loss of its own part, and the gradients are averaged,
    no process knows the divisor of a mean over the whole batch. So the weights include
    this divisor.
    """
    of_steps = np.ones((STEPS * BATCH, LENGTH)) if mask is None else mask.astype(float)
    of_samples = np.ones(len(of_steps)) if weights is None else weights
    reduction = settings.get("reduction", "mean")
    counted = of_steps * of_samples[:, None] if "weight" in reduction else of_steps
    counts = counted.reshape(STEPS, -1).sum(axis=1).repeat(BATCH)[:, None]
    entries = 1 if "reduce_dims" in settings else OUTPUTS
    divisors = 1 if reduction == "sum" else counts * entries
    result = DEVICES * of_steps * of_samples[:, None] / divisors
    return result.astype("float32")


def train(strategy, parts, settings, weights, mask):
    """Returns the weights after five steps on this process's part of each batch."""
    keras.distribution.set_distribution(strategy)
    x, y, _, _ = make_data()
    reduction = settings.get("reduction", "mean")
    if is_averaged(strategy):
        weights, mask = weights_of_a_sum(settings, weights, mask), None
        settings = {**settings, "reduction": "sum"}
    keras.utils.set_random_seed(0)
    layers = [keras.Input((LENGTH, 8))]
    if mask is not None:
        x = np.where(mask[..., None], x, 0)
        layers.append(keras.layers.Masking())
    layers += [
        keras.layers.Dense(16, activation="tanh"),
        keras.layers.Dense(OUTPUTS, name="outputs"),
    ]
    model = keras.Sequential(layers)
    rate = 1 / (BATCH * LENGTH * OUTPUTS) if reduction == "sum" else 1.0
    # On torch, each of the many short calls of fit would compile the step again.
    model.compile(
        keras.optimizers.SGD(rate),
        SmoothL1Loss(**{"beta": 1 / 9, **settings}),
        jit_compile=keras.backend.backend() == "jax",
    )
    data = (None if a is None else part_of(a, parts, strategy) for a in (x, y, weights))
    own_x, own_y, own_weights = data
    size = len(own_x) // STEPS
    model.fit(own_x, own_y, size, sample_weight=own_weights, shuffle=False, verbose=0)
    return [whole(variable) for variable in model.weights]


def is_averaged(strategy):
    """Returns whether gradients are averaged, as in torch's DistributedDataParallel."""
    return keras.backend.backend() == "torch" and isinstance(
        strategy, keras.distribution.DataParallel
    )


def part_of(array, parts, strategy):
    """Returns this process's part of each batch, or all of it without a strategy."""
    if strategy is None:
        return array
    # Processes may share a part of the batch and compute different outputs for it.
    number = min(parts, PROCESSES)
    own = PROCESS * number // PROCESSES
    batches = array.reshape(STEPS, number, -1, *array.shape[1:])[:, own]
    return batches.reshape(-1, *array.shape[1:])


def whole(variable):
    """Returns the full value of a variable, which may be split among devices."""
    value = variable.value
    if keras.backend.backend() == "torch":
        from torch.distributed.tensor import DTensor

        value = value.detach()
        return (value.full_tensor() if isinstance(value, DTensor) else value).numpy()
    from jax.experimental import multihost_utils

    if not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value)


def compare(kind):
    """Returns the difference between weights of many devices and one, for each loss."""
    strategy, parts = make_strategy(kind)
    _, _, weights, mask = make_data()
    results = []
    for name, extra in itertools.product(LOSSES, EXTRAS):
        given = (
            weights if extra in ("weights", "both") else None,
            mask if extra in ("mask", "both") else None,
        )
        many, one = (
            train(each, parts, LOSSES[name], *given) for each in (strategy, None)
        )
        results.append(
            {
                "strategy": kind,
                "loss": name,
                "extra": extra,
                "apart": compare_weights.largest_difference(many, one),
            }
        )
    return results


if __name__ == "__main__":
    backend = keras.backend.backend()
    has_distribution = backend == "jax" or (
        backend == "torch" and version.parse(keras.__version__).release >= (3, 16)
    )
    if not has_distribution:
        sys.exit(f"Keras {keras.__version__} has no keras.distribution for {backend}.")
    arguments = parse_arguments()
    PROCESSES, PROCESS = {"jax": 2, "torch": DEVICES}[backend], arguments.process
    if PROCESS is None:
        command_line.start_processes(__file__, PROCESSES, "--out", arguments.out)
    if backend == "jax":
        import jax

        # Split the CPU into several devices. To use GPUs, remove both lines.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", DEVICES // PROCESSES)
    keras.distribution.initialize(arguments.coordinator, PROCESSES, PROCESS)
    results = [*compare("DataParallel"), *compare("ModelParallel")]
    if PROCESS > 0:
        sys.exit()
    for kind, rows in itertools.groupby(results, lambda result: result["strategy"]):
        apart = {(r["loss"], r["extra"]): f"{r['apart']:.1e}" for r in rows}
        display.print_table(
            f"{backend}, {kind}: difference between {DEVICES} devices and one",
            ("loss", *EXTRAS),
            [(name, *(apart[name, extra] for extra in EXTRAS)) for name in LOSSES],
        )
    path = arguments.out / f"distributed_keras_{backend}.json"
    display.save_json(results, path)
    print("Numbers:", path)
    # Written with `all` and `<`, so that NaN is an error too.
    if not all(r["apart"] < compare_weights.TOLERANCE for r in results):
        sys.exit(f"The weights differ by {compare_weights.TOLERANCE} or more.")

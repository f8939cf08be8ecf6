"""
Distributed training with JAX
=============================

Five training steps on many devices give the same weights as on one device. Keras's
DataParallel splits each batch among all devices. The loss is computed from the whole
batch, so every reduction gives the same result as on one device. To run it::

    KERAS_BACKEND=jax python examples/distributed_jax.py
    KERAS_BACKEND=jax python examples/distributed_jax.py --processes 2

The first command uses eight virtual devices in one process. The second uses two
processes with four devices each, as on two machines. Each process then passes its own
part of every batch.
"""

import command_line
import compare_weights
import jax
import keras
import numpy as np

from keras_smoothl1 import SmoothL1Loss

DEVICES = 8


def parse_arguments():
    parser = command_line.make_parser(__doc__)
    parser.add_argument("--processes", type=int, choices=(1, 2, 4, 8), default=1)
    parser.add_argument("--process", type=int, help="index of this process")
    parser.add_argument("--coordinator", help="address of the first process")
    return parser.parse_args()


def train(x, y, weights, reduction, many):
    """Returns the weights after five steps, on all devices or on one."""
    # No automatic sharding, because each process passes its own part.
    everywhere = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(everywhere if many else None)
    processes = jax.process_count() if many else 1

    def part(array):
        """Returns this process's part of each global batch."""
        if array is None:
            return None
        batches = array.reshape(compare_weights.STEPS, processes, -1, *array.shape[1:])
        own = batches[:, jax.process_index() if many else 0]
        return own.reshape(-1, *array.shape[1:])

    model = compare_weights.make_model()
    model.compile(
        keras.optimizers.SGD(compare_weights.learning_rate(reduction)),
        SmoothL1Loss(beta=1 / 9, reduction=reduction),
    )
    batch = compare_weights.GLOBAL_BATCH // processes
    data = {"x": part(x), "y": part(y), "sample_weight": part(weights)}
    model.fit(**data, batch_size=batch, shuffle=False, verbose=0)
    return [np.asarray(weight) for weight in model.get_weights()]


if __name__ == "__main__":
    command_line.require_backend("jax")
    arguments = parse_arguments()
    if arguments.processes > 1 and arguments.process is None:
        options = "--out", arguments.out, "--processes", str(arguments.processes)
        command_line.start_processes(__file__, arguments.processes, *options)
    # Split the CPU into several devices. To use GPUs, remove both lines.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES // arguments.processes)
    if arguments.coordinator:
        jax.distributed.initialize(
            arguments.coordinator, arguments.processes, arguments.process
        )
    compare_weights.compare_devices(
        f"JAX in {jax.process_count()} process{'es' * (arguments.processes > 1)}",
        jax.device_count(),
        train,
        arguments.out / f"distributed_jax_{jax.process_count()}.json",
        first=jax.process_index() == 0,
    )

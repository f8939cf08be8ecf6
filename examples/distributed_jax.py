"""
Many devices with JAX
=====================

Five steps on many devices, and in one process: the same weights.
Keras's DataParallel spreads each batch over all devices. The loss is that of the
whole batch, so that every reduction is what it is on one device. To run it::

    KERAS_BACKEND=jax python examples/distributed_jax.py
    KERAS_BACKEND=jax python examples/distributed_jax.py --processes 2

The first has eight virtual devices in one process; the second two processes, as on two
machines, with four devices each. There, each process passes its part of every batch.
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
    parser.add_argument("--process", type=int, help="which one of them this is")
    parser.add_argument("--coordinator", help="where the first one listens")
    return parser.parse_args()


def train(x, y, weights, reduction, many):
    """The weights after five steps, over all devices or on one."""
    # Off, since each process is given its own part already.
    everywhere = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(everywhere if many else None)
    processes = jax.process_count() if many else 1

    def part(array):
        """This process's part of each global batch."""
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
    # The devices are a CPU's; with GPUs leave both lines out.
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

"""
Distributed training with PyTorch
=================================

Five training steps in two processes give the same weights as in one.
DistributedDataParallel averages the gradients of the processes, which is correct for a
mean over parts of equal size. A sum must be multiplied by the number of processes.
Instead of "mean_with_sample_weight", use a sum with ``reduce_dims=-1``, divide it by
the sum of the weights of all processes, and multiply it by the number of processes. To
run it::

    KERAS_BACKEND=torch torchrun --nproc-per-node 2 examples/distributed_torch.py
"""

import sys

import command_line
import compare_weights
import numpy as np
import torch
import torch.distributed as processes
from torch.nn.parallel import DistributedDataParallel

from keras_smoothl1 import SmoothL1Loss


def loss_of_part(y, predicted, weights, reduction):
    """Returns a loss whose gradients are correct after the processes average them."""
    number = processes.get_world_size()
    if reduction == "mean_with_sample_weight" and weights is not None:
        total = weights.sum()
        processes.all_reduce(total)
        rows = SmoothL1Loss(beta=1 / 9, reduction="sum", reduce_dims=-1)
        return number * rows(y, predicted, weights) / total
    value = SmoothL1Loss(beta=1 / 9, reduction=reduction)(y, predicted, weights)
    return number * value if reduction == "sum" else value


def train(x, y, weights, reduction, many):
    """Returns the weights after five steps, in all processes or in one."""
    network = compare_weights.make_model()
    model = DistributedDataParallel(network) if many else network
    loss = SmoothL1Loss(beta=1 / 9, reduction=reduction)
    rate = compare_weights.learning_rate(reduction)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    size = compare_weights.GLOBAL_BATCH
    for step in range(compare_weights.STEPS):
        batch = np.arange(size) + step * size
        if many:
            parts = np.split(batch, processes.get_world_size())
            batch = parts[processes.get_rank()]
        inputs, targets, weight = (
            None if array is None else torch.from_numpy(array[batch])
            for array in (x, y, weights)
        )
        optimizer.zero_grad()
        predicted = model(inputs)
        if many:
            value = loss_of_part(targets, predicted, weight, reduction)
        else:
            value = loss(targets, predicted, weight)
        value.backward()
        optimizer.step()
    return network.get_weights()


if __name__ == "__main__":
    out = command_line.make_parser(__doc__).parse_args().out
    if not processes.is_torchelastic_launched():
        sys.exit("Start this example with torchrun; see --help.")
    command_line.require_backend("torch")
    processes.init_process_group("gloo")
    compare_weights.compare_devices(
        "PyTorch, one process per device",
        processes.get_world_size(),
        train,
        out / "distributed_torch.json",
        first=processes.get_rank() == 0,
    )
    processes.destroy_process_group()

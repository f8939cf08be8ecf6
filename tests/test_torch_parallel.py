"""Training with torch's tensor parallelism and FSDP2 matches a single process."""

import itertools
import socket

import numpy as np
import pytest
from helpers.autodiff import BACKEND

if BACKEND != "torch":
    pytest.skip("for torch only", allow_module_level=True)

import torch
import torch.multiprocessing
from keras.src.backend.common.masking import set_keras_mask

from keras_smoothl1 import SmoothL1Loss

STEPS, BATCH, LENGTH, OUTPUTS, PROCESSES = 5, 8, 6, 4, 2
SETTINGS = [
    {},
    {"reduction": "sum"},
    {"reduction": "mean_with_sample_weight"},
    {"reduce_dims": -1},
    {"beta": [0.05, 0.1, 0.2, 0.5]},
]


def make_batches():
    """Inputs, targets, weights (batch,) and masks (batch, time) of each step."""
    generator = torch.Generator().manual_seed(0)
    shape = STEPS, BATCH, LENGTH
    x = torch.randn(*shape, 8, generator=generator)
    y = x[..., :OUTPUTS] + 3 * torch.randn(*shape, OUTPUTS, generator=generator)
    weight = 2 * torch.rand(STEPS, BATCH, generator=generator)
    mask = torch.rand(shape, generator=generator) > 0.3
    return zip(x, y, weight, mask, strict=True)


def make_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, OUTPUTS)
    )


def train(network, loss, place, *, weighted, masked, factor=1):
    """Trains on each batch, after `place` has distributed it."""
    is_sum = loss.reduction == "sum"
    rate = 1 / (BATCH * LENGTH * OUTPUTS) if is_sum else 1.0
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    for batch in make_batches():
        x, y, weight, mask = place(*batch)
        predicted = network(x)
        if masked:
            set_keras_mask(predicted, mask)
        optimizer.zero_grad()
        (factor * loss(y, predicted, weight if weighted else None)).backward()
        optimizer.step()


def weights_of(network):
    from torch.distributed.tensor import DTensor

    return [
        (x.full_tensor() if isinstance(x, DTensor) else x).detach()
        for x in network.state_dict().values()
    ]


def train_tensor_parallel(mesh, loss, case):
    """Splits the output layer, the targets and the predictions."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    def place(x, y, weight, mask):
        weight, mask = (
            distribute_tensor(x, mesh, [Replicate()]) for x in (weight, mask)
        )
        return x, distribute_tensor(y, mesh, [Shard(-1)]), weight, mask

    network = make_network()
    plan = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    parallelize_module(network, mesh, {"2": plan})
    train(network, loss, place, **case)
    return network


def train_fsdp(mesh, loss, case):
    """Splits each batch between the processes, and averages the gradients."""
    from torch.distributed.fsdp import fully_shard

    def place(*batch):
        return [x.chunk(PROCESSES)[mesh.get_rank()] for x in batch]

    network = make_network()
    for module in (network[0], network[2], network):
        fully_shard(module, mesh=mesh)
    factor = PROCESSES if loss.reduction == "sum" else 1
    train(network, loss, place, **case, factor=factor)
    return network


def cases(engine):
    for settings, weighted, masked in itertools.product(
        SETTINGS, (False, True), (False, True)
    ):
        reduction = settings.get("reduction", "mean")
        # Averaging the parts is right only if all means divide by the same number.
        differs = (masked and reduction != "sum") or (
            weighted and "weight" in reduction
        )
        if engine is train_tensor_parallel or not differs:
            yield settings, {"weighted": weighted, "masked": masked}


def compare(rank, port, engine, failures):
    import torch.distributed
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES
    )
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for settings, case in cases(engine):
        loss = SmoothL1Loss(**{"beta": 1 / 9, **settings})
        single = make_network()
        train(single, loss, lambda *batch: batch, **case)
        actual = weights_of(engine(mesh, loss, case))
        difference = max(
            np.abs(a - b).max() for a, b in zip(actual, weights_of(single), strict=True)
        )
        if not difference < 1e-5:
            failures.put(f"{settings} {case}: {difference}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("engine", [train_tensor_parallel, train_fsdp])
def test_five_steps_in_two_processes_match_one_process(engine):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    failures = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(compare, (port, engine, failures), nprocs=PROCESSES)
    assert failures.empty(), failures.get()

"""Special kinds of torch tensors and traced programs give the results of plain tensors.

The tested sizes are on both sides of those at which the eager path changes.
"""

import pytest
from helpers.autodiff import BACKEND

if BACKEND != "torch":
    pytest.skip("for torch only", allow_module_level=True)

import socket

import torch
import torch.multiprocessing
from keras.src.backend.common.masking import set_keras_mask
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss

ROWS = [16, 2**15, 2**18 + 4]  # of 4 outputs: below 2^16 elements, above it, above 2^20
VARIANTS = {
    "plain": {},
    "weights": {},
    "mask": {},
    "reduce_dims": {"reduce_dims": -1},
    "no reduction": {"reduction": None},
    "betas": {"beta": [0.1, 0.2, 0.5, 2.4e-38]},
    "beta per row": {},
    "scalar beta": {},
}


class Subclass(torch.Tensor):
    """Has the storage and the dispatch keys of a plain tensor."""


class Wrapper(torch.Tensor):
    """Has no storage, and forwards each operation to the tensor that it wraps."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        args, kwargs = _pytree.tree_map_only(
            cls, lambda x: x.inner, (args, kwargs or {})
        )
        return _pytree.tree_map_only(torch.Tensor, cls, function(*args, **kwargs))


def inputs(variant, rows):
    """Targets, predictions, and weights, a mask or a beta if the variant has one."""
    generator = torch.Generator().manual_seed(rows)
    y_true, y_pred = torch.randn(2, rows, 4, generator=generator)
    weight = torch.rand(rows, generator=generator) * (torch.arange(rows) % 3 > 0)
    if variant == "weights":
        return y_true, y_pred, weight
    if variant == "beta per row":
        return y_true, y_pred, weight + 0.1
    if variant == "scalar beta":
        return y_true, y_pred, weight[1] + 0.1
    return (y_true, y_pred, weight > 0) if variant == "mask" else (y_true, y_pred)


def step(variant):
    """The loss and its gradients, as functions of the inputs."""
    loss = SmoothL1Loss(**VARIANTS[variant])

    def value(y_true, y_pred, extra=None):
        if variant in ("beta per row", "scalar beta"):
            return smooth_l1_loss(y_true, y_pred, extra)
        if variant == "mask":
            y_pred = y_pred.view_as(y_pred)
            set_keras_mask(y_pred, extra)
            extra = None
        return loss(y_true, y_pred, extra)

    return value, differentiated(value, wrt_beta=variant == "beta per row")


def differentiated(function, *, wrt_beta=False):
    """Returns a function that computes the value and the gradients of `function`."""

    def value_and_gradients(*arguments):
        inputs = arguments[1:] if wrt_beta else arguments[1:2]
        inputs = [x.detach().requires_grad_() for x in inputs]
        result = function(arguments[0], *inputs, *arguments[1 + len(inputs) :])
        # Scaled, as a backward pass may take a shortcut for incoming gradients of 1.
        return result, *torch.autograd.grad(3 * result.sum(), inputs)

    return value_and_gradients


def assert_close(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=2e-6, atol=1e-9)


def with_subclass(variant, example, arguments):
    wrapped = [x.as_subclass(Subclass) for x in arguments]
    return [x.as_subclass(torch.Tensor) for x in step(variant)[1](*wrapped)]


def with_wrapper(variant, example, arguments):
    return [x.inner for x in step(variant)[1](*map(Wrapper, arguments))]


def with_mem_tracker(variant, example, arguments):
    with MemTracker():
        return step(variant)[1](*arguments)


def with_make_fx(tracing_mode):
    def run(variant, example, arguments):
        graph = make_fx(step(variant)[1], tracing_mode=tracing_mode)
        return graph(*example)(*arguments)

    return run


def with_jit_trace(variant, example, arguments):
    traced = torch.jit.trace(step(variant)[0], example)
    return differentiated(traced, wrt_beta=variant == "beta per row")(*arguments)


def with_export(strict):
    def run(variant, example, arguments):
        class Module(torch.nn.Module):
            def forward(self, *x):
                return step(variant)[0](*x)

        batch = torch.export.Dim("batch")
        program = torch.export.export(
            Module(),
            example,
            dynamic_shapes=(tuple({0: batch} if x.ndim else {} for x in example),),
            strict=strict,
        )
        wrt_beta = variant == "beta per row"
        return differentiated(program.module(), wrt_beta=wrt_beta)(*arguments)

    return run


# The runner, and whether its program accepts another batch size.
RUNNERS = {
    "subclass": (with_subclass, True),
    "wrapper": (with_wrapper, True),
    "MemTracker": (with_mem_tracker, True),
    "make_fx real": (with_make_fx("real"), False),
    "make_fx fake": (with_make_fx("fake"), False),
    "make_fx symbolic": (with_make_fx("symbolic"), True),
    "jit.trace": (with_jit_trace, True),
    "export": (with_export(strict=False), True),
    "export strict": (with_export(strict=True), True),
}


@pytest.mark.parametrize("argument", ["sample_weight", "beta"])
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_the_number_of_rows_may_depend_on_data(argument):
    def run(y_true, y_pred, mask, rows):
        return smooth_l1_loss(
            y_true[mask], y_pred[mask], **{argument: rows[mask]}
        ).mean()

    y_true, y_pred, rows = torch.rand(10, 4), torch.rand(10, 4), torch.rand(10) + 0.1
    mask = torch.arange(10) < 4
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    for each in (mask, ~mask):
        arguments = y_true, y_pred, each, rows
        torch.testing.assert_close(compiled(*arguments), run(*arguments))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.trace(_method)?. is",
    # Shapes are compared once, when the loss is traced.
    "ignore::torch.jit.TracerWarning",
)
def test_results_match_plain_tensors(runner, variant, rows):
    run, any_batch = RUNNERS[runner]
    example = inputs(variant, rows)
    arguments = inputs(variant, rows + 1 if any_batch else rows)
    arguments = (3 * arguments[0], *arguments[1:])
    assert_close(run(variant, example, arguments), step(variant)[1](*arguments))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_fake_tensors_have_the_shapes_of_plain_tensors(variant, rows):
    expected = step(variant)[1](*inputs(variant, rows))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        arguments = [mode.from_tensor(x) for x in inputs(variant, rows)]
        actual = step(variant)[1](*arguments)
    for a, b in zip(actual, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def compare_dtensors(rank, port, failures):
    import torch.distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    for placement in (Shard(0), Shard(1), Replicate()):
        for variant in VARIANTS:
            for rows in ROWS:
                arguments = inputs(variant, rows)
                distributed = [
                    distribute_tensor(
                        x, mesh, [placement if x.ndim > 1 else Replicate()]
                    )
                    for x in arguments
                ]
                try:
                    actual = [x.full_tensor() for x in step(variant)[1](*distributed)]
                    assert_close(actual, step(variant)[1](*arguments))
                except Exception as error:
                    failures.put(f"{placement} {variant} {rows}: {error}")
    torch.distributed.destroy_process_group()


def test_dtensors_on_two_processes_match_plain_tensors():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    failures = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(compare_dtensors, (port, failures), nprocs=2)
    assert failures.empty(), failures.get()

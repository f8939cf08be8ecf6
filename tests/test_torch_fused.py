"""The walk in pieces gives what the plain operations give, and allocates one buffer."""

import keras
import numpy as np
import pytest
from autodiff import BACKEND

from keras_smoothl1 import SmoothL1Loss

if BACKEND != "torch":
    pytest.skip("the walk is for torch", allow_module_level=True)

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from keras_smoothl1 import kernels

SHAPE = (7, 300, 200)  # more than three pieces
MASK = np.random.default_rng(0).integers(0, 2, SHAPE[:2]).astype(bool)


def tensors():
    generator = torch.Generator().manual_seed(0)
    y_true, y_pred = torch.randn(2, *SHAPE, generator=generator)
    return y_true, y_pred.requires_grad_(), torch.rand(SHAPE, generator=generator)


def run(monkeypatch, loss, weight_of, mask, fused):
    y_true, y_pred, weight = tensors()
    calls = []
    walk = kernels.fused._walk

    def counted(*args, **kwargs):
        calls.append(1)
        return walk(*args, **kwargs)

    monkeypatch.setattr(kernels.fused, "_walk", counted)
    if not fused:
        monkeypatch.setattr(kernels.fused, "covers", lambda *args: False)
    if mask:
        keras.src.backend.set_keras_mask(y_pred, torch.tensor(MASK))
    value = loss(y_true, y_pred, weight_of(weight))
    (3 * value).backward()
    monkeypatch.undo()
    assert bool(calls) == fused
    return value.detach().numpy(), y_pred.grad.numpy()


def hiding(weight):
    weight = weight.clone()
    weight[:, ::2] = 0
    return weight


SETTINGS = [
    {"beta": 0.5},
    {"reduction": "sum"},
    {"reduction": "mean_with_sample_weight", "beta": 1 / 9},
    {"dtype": "float64"},
    {"dtype": "float16"},
]
# With a mask their groups have different sizes, which is not for the walk.
GROUPS = [{"reduction": "sum", "reduce_dims": (1, 2)}, {"reduce_dims": -1}]


@pytest.mark.parametrize(
    ("settings", "mask"),
    [(settings, False) for settings in SETTINGS + GROUPS]
    + [(settings, True) for settings in SETTINGS],
    ids=str,
)
@pytest.mark.parametrize(
    "weight_of",
    [
        lambda weight: None,
        lambda weight: weight[:, 0, 0].contiguous(),
        lambda weight: weight[:, :, 0].contiguous(),
        lambda weight: weight,
        hiding,
    ],
    ids=["none", "(B,)", "(B, T)", "full", "hiding"],
)
def test_the_walk_gives_the_numbers_of_the_plain_operations(
    monkeypatch, settings, weight_of, mask
):
    loss = SmoothL1Loss(**settings)
    value, gradient = run(monkeypatch, loss, weight_of, mask, fused=True)
    expected = run(monkeypatch, loss, weight_of, mask, fused=False)
    np.testing.assert_allclose(
        value, expected[0], rtol=1e-3 if loss.dtype == "float16" else 1e-6
    )
    np.testing.assert_allclose(gradient, expected[1], rtol=5e-7, atol=1e-30)


def test_each_pass_backward_gives_the_gradient_and_so_does_its_graph():
    y_true, y_pred, _ = tensors()
    value = SmoothL1Loss(0.5)(y_true, y_pred)
    (first,) = torch.autograd.grad(value, y_pred, retain_graph=True)
    (second,) = torch.autograd.grad(value, y_pred, retain_graph=True)
    (third,) = torch.autograd.grad(value, y_pred, create_graph=True)
    torch.testing.assert_close(second, first)
    torch.testing.assert_close(third, first)
    (bend,) = torch.autograd.grad(third.sum(), y_pred)
    quadratic = (y_pred - y_true).abs() < 0.5
    torch.testing.assert_close(bend, quadratic * 2.0 / y_pred.numel())


def test_gradients_accumulate():
    y_true, y_pred, _ = tensors()
    for _ in range(2):
        SmoothL1Loss()(y_true, y_pred).backward()
    twice = y_pred.grad
    y_pred.grad = None
    SmoothL1Loss()(y_true, y_pred).backward()
    torch.testing.assert_close(twice, 2 * y_pred.grad)


@pytest.mark.parametrize("beta", [1 / 9, [0.5, 2.0] * 100])
@pytest.mark.parametrize("asked", [True, False])
def test_elementwise_losses_are_those_of_the_plain_operations(monkeypatch, beta, asked):
    y_true, y_pred, upstream = tensors()
    loss = SmoothL1Loss(beta, reduction=None)
    x = y_pred.detach().requires_grad_(asked)
    value = loss(y_true, x)
    plain = y_pred.detach().requires_grad_(asked)
    monkeypatch.setattr(kernels.fused, "covers_errors", lambda *args: False)
    expected = loss(y_true, plain)
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    if asked:
        for each in (1, 2):  # the second pass starts again from the errors
            (first,) = torch.autograd.grad(value, x, upstream * each, retain_graph=True)
            (second,) = torch.autograd.grad(
                expected, plain, upstream * each, retain_graph=True
            )
            torch.testing.assert_close(first, second, rtol=0, atol=0)


class LargeTensors(TorchDispatchMode):
    """Counts the new tensors of at least half of y_pred's size."""

    def __init__(self, size):
        super().__init__()
        self.size, self.storages, self.operations = size, set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        if isinstance(result, torch.Tensor) and 2 * result.numel() >= self.size:
            self.storages.add(result.untyped_storage().data_ptr())
        return result


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_allocates_one_tensor_of_the_size_of_y_pred(weighted):
    """The guard of the fast path: no clock, but what the clock would show."""
    y_true, y_pred, weight = tensors()
    weight = weight[:, 0, 0].contiguous() if weighted else None
    loss = SmoothL1Loss()
    given = {x.untyped_storage().data_ptr() for x in (y_true, y_pred)}
    with LargeTensors(y_pred.numel()) as step:
        loss(y_true, y_pred, weight).backward()
    assert len(step.storages - given) == 1
    pieces = -(-y_pred.numel() // kernels.fused.PIECE)
    assert step.operations <= 40 + (25 if weighted else 15) * (pieces + 1)

"""Fails when torch moves or changes the internals that torch/internals.py uses."""

import pytest
from helpers.autodiff import BACKEND

if BACKEND != "torch":
    pytest.skip("for torch only", allow_module_level=True)

import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from keras_smoothl1.backends.torch import internals

X = torch.ones(3)


class Subclass(torch.Tensor):
    pass


class LoggingMode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def inference_tensor():
    with torch.inference_mode():
        return torch.ones(3)


@pytest.mark.parametrize(
    "x",
    [
        X,
        X.double(),
        X > 0,
        torch.ones(3, requires_grad=True),
        2 * torch.ones(3, requires_grad=True),
        torch.nn.Parameter(X),
        torch.ones(2, 3).T,
        X[::2],
        torch.ones(()),
        torch.ones(0),
        inference_tensor(),
    ],
)
def test_plain_cpu_tensors_are_recognized(x):
    assert internals.plain_device(x) == "cpu"


@pytest.mark.parametrize(
    "x",
    [
        X.as_subclass(Subclass),
        X.to_sparse(),
        X.to("meta"),
        FakeTensorMode().from_tensor(X),
        torch._efficientzerotensor(3),
        torch._to_functional_tensor(X),
        torch.complex(X, X).conj().imag,
        torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged),
    ],
    ids=[
        *("subclass", "sparse", "meta", "fake", "zero", "functional", "negative"),
        "nested",
    ],
)
def test_other_tensors_are_not_plain(x):
    assert internals.plain_device(x) is None


def is_plain_within(run):
    """Whether run(function) passes a plain tensor while no mode is active."""
    results = []

    def function(x):
        results.append(internals.no_mode_is_active() and internals.plain_device(x))
        return (x * x).sum()

    run(function)
    assert results
    return any(results)


def within(context):
    def run(function):
        with context:
            function(torch.ones(3))

    return run


def forward_mode(function):
    with forward_ad.dual_level():
        function(forward_ad.make_dual(torch.ones(3), torch.ones(3)))


@pytest.mark.parametrize(
    "run",
    [
        lambda f: f(torch.ones(3)),
        within(torch.no_grad()),
        within(torch.inference_mode()),
        within(torch.autocast("cpu")),
        within(torch.device("cpu")),
        within(torch.autograd.set_detect_anomaly(False)),
    ],
)
def test_contexts_that_change_no_operation_are_not_modes(run):
    assert is_plain_within(run)


@pytest.mark.parametrize(
    "run",
    [
        within(FakeTensorMode()),
        within(LoggingMode()),
        lambda f: torch.func.vmap(f)(torch.ones(2, 3)),
        lambda f: torch.func.grad(f)(torch.ones(3)),
        lambda f: torch.func.jvp(f, (torch.ones(3),), (torch.ones(3),)),
        lambda f: torch.func.functionalize(f)(torch.ones(3)),
        lambda f: torch.jit.trace(f, torch.ones(3), check_trace=False),
        lambda f: make_fx(f)(torch.ones(3)),
        lambda f: make_fx(f, tracing_mode="fake")(torch.ones(3)),
        lambda f: make_fx(f, tracing_mode="symbolic")(torch.ones(3)),
        forward_mode,
    ],
    ids=[
        *("fake tensors", "dispatch mode", "vmap", "grad", "jvp", "functionalize"),
        *("jit.trace", "make_fx", "make_fx fake", "make_fx symbolic", "dual tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is")
def test_modes_and_transformations_are_recognized(run):
    assert not is_plain_within(run)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_the_private_name_of_torchs_loss_is_the_public_loss(reduction):
    x, zeros = torch.linspace(-3, 3, 13), torch.zeros(13)
    actual = internals.smooth_l1_loss(x, zeros, {"none": 0, "sum": 2}[reduction], 1.0)
    expected = torch.nn.functional.smooth_l1_loss(x, zeros, reduction=reduction)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)

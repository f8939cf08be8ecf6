"""torch's sample inputs and operator checks for its losses, run with this package's.

torch tests its own kernels with them; they are in `torch.testing._internal`. Each
sample is passed to `smooth_l1_loss`, reduced by torch, and to `SmoothL1Loss`.
"""

import functools

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("torch's tests need torch tensors", allow_module_level=True)

import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.testing._internal import composite_compliance, optests
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.testing._internal.common_utils import noncontiguous_like

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss

NAMES = {
    "nn.functional.smooth_l1_loss": "SmoothL1Loss",
    "nn.functional.huber_loss": "HuberLoss",
    "nn.functional.mse_loss": "MSELoss",
    "nn.functional.l1_loss": "L1Loss",
}
OPS = {op.name.rpartition(".")[2]: op for op in op_db if op.name in NAMES}
MODULES = {info.name.removeprefix("nn."): info for info in module_db}
MODULES = {name: MODULES[name] for name in NAMES.values()}
ABOVE_ALL_ERRORS = 2.0**10
BELOW_ALL_ERRORS = 2.0**-100


def beta_and_scale(name, kwargs):
    match name:
        case "smooth_l1_loss" | "SmoothL1Loss":
            return kwargs.get("beta", 1.0), 1.0
        case "huber_loss" | "HuberLoss":
            delta = kwargs.get("delta", 1.0)
            return delta, delta
        case "mse_loss" | "MSELoss":
            return ABOVE_ALL_ERRORS, 2 * ABOVE_ALL_ERRORS
        case "l1_loss" | "L1Loss":
            return BELOW_ALL_ERRORS, 1.0


def our_function(name, kwargs):
    beta, scale = beta_and_scale(name, kwargs)
    reduce = {"none": lambda x: x, "sum": torch.sum, "mean": torch.mean}
    reduce = reduce[kwargs.get("reduction", "mean")]

    def loss(y_pred, y_true):
        return scale * reduce(smooth_l1_loss(y_true, y_pred, beta))

    return loss if scale == 1 else rounded_once(loss)


def our_class(name, kwargs):
    beta, scale = beta_and_scale(name, kwargs)
    reduction = kwargs.get("reduction", "mean")

    def loss(y_pred, y_true):
        dtype = keras.backend.standardize_dtype(y_pred.dtype)
        return scale * SmoothL1Loss(beta, reduction, dtype=dtype)(y_true, y_pred)

    return loss if scale == 1 else rounded_once(loss)


def rounded_once(loss):
    """Scales a loss in float32. In float16 it would also be rounded before that."""

    def in_float32(y_pred, y_true):
        if y_pred.dtype in (torch.float16, torch.bfloat16):
            return loss(y_pred.float(), y_true).to(y_pred.dtype)
        return loss(y_pred, y_true)

    return in_float32


ROUTES = {"function": our_function, "class": our_class}


class Sample:
    """A sample of torch, created again for each test."""

    def __init__(self, name, index, route, dtype):
        self.name, self.index, self.route, self.dtype = name, index, route, dtype

    def make(self):
        """Returns torch's loss, its reference, our loss, and the inputs of all."""
        all_samples = samples(self.name, self.dtype, requires_grad=True)
        theirs, reference, kwargs, inputs = all_samples[self.index]
        return theirs, reference, ROUTES[self.route](self.name, kwargs), inputs

    def id(self):
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}-{descriptions(self.name)[self.index]}-{self.route}-{dtype}"


@functools.cache
def descriptions(name):
    indexed = enumerate(samples(name, torch.float32))
    return [describe(i, kwargs, y_pred) for i, (_, _, kwargs, (y_pred, _)) in indexed]


def describe(index, kwargs, y_pred):
    """Returns an id for a sample. It has no delta, which is a random number."""
    shape = "x".join(map(str, y_pred.shape)) or "scalar"
    options = [f"{key}={value}" for key, value in kwargs.items() if key != "delta"]
    return "-".join([str(index), shape, *options])


def samples(name, dtype, requires_grad=False):
    generate = op_samples if name in OPS else module_samples
    return list(generate(name, dtype, requires_grad))


def op_samples(name, dtype, requires_grad):
    op = OPS[name]
    for sample in op.sample_inputs("cpu", dtype, requires_grad=requires_grad):
        theirs = functools.partial(op, **sample.kwargs)
        reference = op.ref and functools.partial(numpy_reference, op.ref, sample.kwargs)
        yield theirs, reference, sample.kwargs, (sample.input, *sample.args)


def numpy_reference(reference, kwargs, *inputs):
    arrays = (x.detach().resolve_neg().numpy() for x in inputs)
    return torch.from_numpy(np.asarray(reference(*arrays, **kwargs)))


def module_samples(name, dtype, requires_grad):
    info = MODULES[name]
    module_inputs = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=True
    )
    for sample in module_inputs:
        kwargs = sample.constructor_input.kwargs
        module = info.module_cls(**kwargs)
        reference = functools.partial(sample.reference_fn, module)
        yield module, reference, kwargs, sample.forward_input.args


def each_sample(*dtypes):
    """Parametrizes a test over torch's samples, the routes and the dtypes."""
    cases = [
        Sample(name, index, route, dtype)
        for name, db in [*OPS.items(), *MODULES.items()]
        for dtype in sorted(dtypes or {*db.dtypes}, key=str)
        for index in range(len(descriptions(name)))
        for route in ROUTES
    ]
    return pytest.mark.parametrize("sample", cases, ids=Sample.id)


LAYOUTS = {
    "contiguous": lambda x: x,
    "noncontiguous": noncontiguous_like,
    # Like the imaginary part of a conjugate: the negative of the values in memory.
    "negative": lambda x: torch._neg_view(-x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_sample()
def test_values_and_slopes_match_torch(sample, layout):
    theirs, reference, ours, inputs = sample.make()
    inputs = [LAYOUTS[layout](x.detach()).requires_grad_() for x in inputs]
    expected, actual = theirs(*inputs), ours(*inputs)
    assert_close(actual, expected)
    if reference and sample.dtype in (torch.float32, torch.float64):
        assert_close(actual, reference(*inputs))
    slope = torch.randn_like(expected)
    assert_close(
        torch.autograd.grad(actual, inputs, slope),
        torch.autograd.grad(expected, inputs, slope),
    )


@each_sample(torch.float64)
def test_first_derivatives(sample):
    _, _, ours, inputs = sample.make()
    assert gradcheck(
        ours,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
    )


@each_sample(torch.float64)
def test_second_derivatives(sample):
    _, _, ours, inputs = sample.make()
    assert gradgradcheck(
        ours,
        inputs,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
    )


@each_sample(torch.float32)
def test_subclasses_of_tensors(sample):
    _, _, ours, inputs = sample.make()
    composite_compliance.check_with_mode(ours, inputs, {}, assert_close)
    composite_compliance.check_all_permutations(ours, inputs, {}, assert_close)
    composite_compliance.check_backward_formula(
        ours, inputs, {}, assert_equal_fn=assert_close
    )
    composite_compliance.check_forward_ad_formula(
        ours, inputs, {}, assert_equal_fn=assert_close
    )


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@each_sample(torch.float32)
def test_traced_programs(sample, mode):
    _, _, ours, inputs = sample.make()
    optests.make_fx_check(ours, inputs, {}, tracing_mode=mode, randomize_data=True)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@each_sample(torch.float32)
def test_compiled_programs(sample, dynamic):
    _, _, ours, inputs = sample.make()
    optests.aot_autograd_check(ours, inputs, {}, dynamic=dynamic)


def error_inputs():
    for name, op in OPS.items():
        if op.error_inputs_func:
            for index, _ in enumerate(op.error_inputs("cpu")):
                yield pytest.param(name, index, id=f"{name}-{index}")


@pytest.mark.parametrize(("name", "index"), error_inputs())
def test_errors(name, index):
    error = list(OPS[name].error_inputs("cpu"))[index]
    sample = error.sample_input
    with pytest.raises(error.error_type, match=error.error_regex):
        our_class(name, sample.kwargs)(sample.input, *sample.args)

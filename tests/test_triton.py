"""The kernel for GPUs: its results match the reference, and its machine code is lean.

Tests of results need a GPU, or TRITON_INTERPRET=1, with which Triton runs the kernel on
CPU tensors. The machine code is compiled for GPUs that need not be present.
"""

import functools

import keras
import pytest
from helpers.autodiff import BACKEND
from helpers.pairwise import pairwise

if BACKEND != "torch":
    pytest.skip("for torch only", allow_module_level=True)

import torch

pytest.importorskip("triton")

from helpers import machine_code
from keras.src.backend.common.masking import set_keras_mask
from triton.runtime import driver

from keras_smoothl1 import SmoothL1Error, SmoothL1Loss, backends, smooth_l1_loss
from keras_smoothl1.backends.base import Backend
from keras_smoothl1.backends.torch import gpu
from keras_smoothl1.backends.torch import triton as kernels

runs = pytest.mark.skipif(not gpu, reason="needs a GPU, or TRITON_INTERPRET=1")
compiles = pytest.mark.skipif(
    kernels.INTERPRETED, reason="with TRITON_INTERPRET=1 nothing is compiled"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
# The axes of a tensor (batch, height, width, outputs).
WEIGHT_AXES = {
    "scalar": (),
    "image": (0,),
    "pixel": (0, 1, 2),
    "element": (0, 1, 2, 3),
    "output": (3,),
    "image and output": (0, 3),
    "image and column": (0, 2),
    "row and output": (1, 3),
}
REFERENCE = Backend()


def randn(shape, dtype=torch.float32):
    # Generated on the CPU, for the same numbers on every device.
    return torch.randn(shape).to(DEVICE, dtype)


def make_weight(axes, shape, *, is_mask):
    own_shape = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    weight = (torch.rand(own_shape) - 0.3).clamp(min=0).to(DEVICE)
    return weight > 0 if is_mask else weight


def in_layout(x, layout):
    """The same tensor in another memory order, or with gaps in memory."""
    if layout == "channels first":
        return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    if layout == "reversed":
        return x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    if layout == "strided":
        return torch.stack([x, x], dim=-1)[..., 0]
    return x


def make_grad_output(kind, like):
    if kind == "random":
        return randn(like.shape, like.dtype)
    ones = torch.ones_like(like) if kind == "ones" else like.new_ones(())
    return ones.expand(like.shape)


@runs
@pytest.mark.parametrize("dtype", DTYPES)
@pairwise(
    shape=[(5, 3, 2, 4), (2, 40, 3, 21), (3, 1, 1, 1), (2, 3, 700, 3)],
    layout=["contiguous", "channels first", "reversed", "strided"],
    weight=[None, *WEIGHT_AXES],
    is_mask=[False, True],
    beta=["float", "tuple", "tensor", *WEIGHT_AXES],
    divisor=[None, 7, 3.0, 0.0],
    grad_output=["random", "ones", "one, broadcast"],
)
def test_values_and_gradients_match_the_reference(
    dtype, shape, layout, weight, is_mask, beta, divisor, grad_output
):
    dtype = DTYPES[dtype]
    compute_dtype = torch.promote_types(dtype, torch.float32)
    y_true = randn(shape, dtype)
    y_pred = in_layout(randn(shape, dtype), layout).requires_grad_()
    if weight is not None:
        weight = make_weight(WEIGHT_AXES[weight], shape, is_mask=is_mask)
        weight = weight if is_mask else weight.to(compute_dtype)
    if beta in WEIGHT_AXES:
        beta = make_weight(WEIGHT_AXES[beta], shape, is_mask=False).to(compute_dtype)
        beta = beta + 0.2
    else:
        beta = {
            "float": 0.3,
            "tuple": (0.2, *(1.5,) * (shape[-1] - 1)),
            "tensor": torch.tensor(0.3, dtype=compute_dtype, device=DEVICE),
        }[beta]
    if isinstance(divisor, float):
        divisor = torch.tensor(divisor, dtype=compute_dtype, device=DEVICE)
    inputs = beta, weight, divisor
    assert kernels.supports(y_true, y_pred, *inputs)
    output = kernels.weighted_losses(y_true, y_pred, *inputs)
    upcast = y_true.to(compute_dtype), y_pred.to(compute_dtype)
    if divisor is None:
        expected = REFERENCE.weighted_losses(*upcast, beta, weight)
    else:
        expected = REFERENCE.weighted_sum(*upcast, beta, weight, divisor=divisor)
    eps = torch.finfo(compute_dtype).eps
    torch.testing.assert_close(output, expected, rtol=16 * eps, atol=eps)
    incoming = make_grad_output(grad_output, output)
    gradient, again, expected = (
        torch.autograd.grad(x, y_pred, incoming, retain_graph=True)[0]
        for x in (output, output, expected)
    )
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient, expected, rtol=4 * eps, atol=eps**2)
    torch.testing.assert_close(again, expected, rtol=4 * eps, atol=eps**2)
    assert gradient.dtype == dtype
    if layout != "strided":
        assert gradient.stride() == y_pred.stride()


@runs
@pytest.mark.parametrize("divisor", [None, 3])
def test_elements_beyond_the_range_of_int32_are_indexed_in_int64(monkeypatch, divisor):
    monkeypatch.setattr(kernels, "MAX_INT32", 0)
    y_true, y_pred = randn((2, 3000, 7)), randn((2, 3000, 7))
    weight = make_weight((0,), y_pred.shape, is_mask=False)
    output = kernels.weighted_losses(y_true, y_pred, (0.2,) * 7, weight, divisor)
    expected = REFERENCE.weighted_losses(y_true, y_pred, (0.2,) * 7, weight)
    expected = expected if divisor is None else expected.sum() / divisor
    torch.testing.assert_close(output, expected)


@runs
@pytest.mark.skipif(DEVICE == "cpu", reason="needs the memory of a GPU")
def test_more_than_2_to_the_31_elements_are_summed_correctly():
    size = 2**31 + 5
    y_true = torch.zeros(size, dtype=torch.float16, device=DEVICE)
    y_pred = torch.full_like(y_true, 2.0).requires_grad_()
    with torch.no_grad():
        y_pred[-1] = 60_000.0
    loss = SmoothL1Loss(reduction="sum")(y_true, y_pred)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.5 * (size - 1) + 59_999.5, rel=1e-6)
    assert bool((y_pred.grad == 1).all())


@runs
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_without_a_cast_and_rounded_once(dtype, monkeypatch):
    dtypes = []
    run = kernels._run

    def spy(y_pred, y_true, *arguments, **settings):
        dtypes.extend((y_pred.dtype, y_true.dtype))
        return run(y_pred, y_true, *arguments, **settings)

    monkeypatch.setattr(kernels, "_run", spy)
    y_true, y_pred = randn((64, 64), DTYPES[dtype]), randn((64, 64), DTYPES[dtype])
    y_pred.requires_grad_()
    # Without the scale most of this gradient would be 0 in float16.
    scale = 2.0**16
    loss = SmoothL1Loss(0.5)(y_true, y_pred)
    (scale * loss).backward()
    assert set(dtypes) == {DTYPES[dtype]}
    exact_pred = y_pred.detach().double().requires_grad_()
    exact = SmoothL1Loss(0.5, dtype="float64")(y_true.double(), exact_pred)
    (scale * exact).backward()
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-6)
    # Triton's interpreter truncates where a GPU rounds to bfloat16.
    truncates = kernels.INTERPRETED and dtype == "bfloat16"
    rtol = torch.finfo(y_pred.dtype).eps if truncates else 0
    expected = exact_pred.grad.to(y_pred.dtype)
    torch.testing.assert_close(y_pred.grad, expected, rtol=rtol, atol=0)


@runs
@pytest.mark.parametrize("needs_grad_of", ["y_true", "weight"])
def test_half_precision_with_other_gradients_uses_the_general_path(needs_grad_of):
    y_true, y_pred = randn((8, 4), torch.bfloat16), randn((8, 4), torch.bfloat16)
    weight = torch.rand(8).to(DEVICE)
    inputs = {"y_true": y_true, "y_pred": y_pred, "weight": weight}
    exact = {name: x.double() for name, x in inputs.items()}
    for x in (inputs, exact):
        x[needs_grad_of].requires_grad_()
    SmoothL1Loss()(*inputs.values()).backward()
    SmoothL1Loss(dtype="float64")(*exact.values()).backward()
    x = inputs[needs_grad_of]
    torch.testing.assert_close(
        x.grad, exact[needs_grad_of].grad.to(x.dtype), rtol=1e-2, atol=1e-6
    )


@runs
def test_many_elements_in_half_precision_are_counted_exactly():
    y_true, y_pred = randn((70, 1000), torch.float16), randn((70, 1000), torch.float16)
    mask = torch.rand(70).to(DEVICE) > 0.2
    loss = SmoothL1Loss()
    set_keras_mask(y_pred, mask)
    exact = smooth_l1_loss(y_true.double(), y_pred.double())[mask].mean()
    assert float(loss(y_true, y_pred)) == pytest.approx(float(exact), rel=1e-5)
    metric = SmoothL1Error()
    metric.update_state(y_true, y_pred)
    assert float(metric.result()) == pytest.approx(float(exact), rel=1e-5)


@runs
def test_the_backward_pass_is_differentiable():
    y_true, y_pred = randn((4, 3)).double(), randn((4, 3)).double().requires_grad_()
    weight = torch.rand(4).to(DEVICE).double()
    for reduction in ("mean_with_sample_weight", "sum", None):
        loss = SmoothL1Loss(0.5, reduction=reduction, dtype="float64")
        assert torch.autograd.gradgradcheck(
            lambda x, loss=loss: loss(y_true, x, weight), y_pred, atol=1e-4
        )


@runs
def test_second_derivatives_use_the_unrounded_error():
    # In float16 the error would be 1, equal to beta, where the slope is constant.
    y_true = torch.full((4,), 2.0**-12, dtype=torch.float16, device=DEVICE)
    y_pred = torch.ones_like(y_true).requires_grad_()
    loss = SmoothL1Loss(1.0, reduction="sum")(y_true, y_pred)
    (gradient,) = torch.autograd.grad(loss, y_pred, create_graph=True)
    (second,) = torch.autograd.grad(gradient.float().sum(), y_pred)
    assert second.tolist() == [1.0] * 4


@runs
def test_predictions_saved_in_another_layout_have_the_same_gradient():
    y_true = randn((2, 5, 3, 4), torch.float16)
    y_pred = in_layout(randn((2, 5, 3, 4), torch.float16), "channels first")
    loss, gradients = SmoothL1Loss(0.5, reduction="sum"), []
    for pack in (lambda x: x, lambda x: x.clone(memory_format=torch.contiguous_format)):
        x = y_pred.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            (100 * loss(y_true, x)).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@runs
@pytest.mark.parametrize("shape", [(2**17,), (2, 2**16)])
@pytest.mark.parametrize("has_mask", [False, True])
def test_the_mean_of_many_tiny_losses_is_accurate(shape, has_mask):
    # Each loss is a normal number, but its share in the mean is subnormal.
    error = 2.0**-62 * 1.5
    y_pred = torch.full(shape, error, device=DEVICE)
    mask = torch.ones(shape, dtype=torch.bool, device=DEVICE) if has_mask else None
    for settings in ({}, {"reduce_dims": -1, "reduction": None}):
        loss = SmoothL1Loss(1.0, **settings)
        if has_mask:
            set_keras_mask(y_pred, mask)
        output = loss(torch.zeros_like(y_pred), y_pred).double()
        expected = torch.full_like(output, error**2 / 2)
        torch.testing.assert_close(output, expected, rtol=2e-6, atol=0)


@runs
def test_torch_compile_has_no_graph_breaks_in_half_precision():
    y_true, y_pred = randn((8, 4), torch.bfloat16), randn((8, 4), torch.bfloat16)
    loss = SmoothL1Loss(0.5)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(y_true, y_pred), loss(y_true, y_pred))


@runs
def test_half_precision_moved_by_keras_is_computed_in_float32():
    # No kernel upcasts on the device to which Keras moves it.
    y_pred = torch.full((300,), 1000.0, dtype=torch.float16)
    with keras.device("cpu"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends.torch, "_is_plain_on", lambda *_: False)
        patch.setattr(backends.torch.gpu, "supports", lambda *_, **__: False)
        loss = SmoothL1Loss()(torch.zeros_like(y_pred), y_pred)
    assert float(loss) == 999.5


@runs
def test_the_kernel_is_compiled_once_for_each_kind_of_arguments(monkeypatch):
    launches = []

    class Kernel:
        """A stand-in for the kernel: a launch returns the compiled kernel."""

        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return self.launch

        def launch(self, *arguments, **options):
            launches.append(self.name)
            return Kernel("compiled")

    monkeypatch.setattr(kernels, "_kernel", Kernel("any"))
    monkeypatch.setattr(kernels, "_compiled", {})
    for dtype in (torch.float32, torch.float32, torch.float64, torch.float32):
        inputs = randn((9, 3), dtype), randn((9, 3), dtype)
        kernels.weighted_losses(*inputs, 0.5, None, None)
    assert launches == ["any", "compiled", "any", "compiled"]


@runs
@pytest.mark.parametrize("shape", ["batch, 1, 1", "batch, steps, 1", "1, steps, 1"])
def test_the_kernel_is_not_compiled_for_each_size(monkeypatch, shape):
    monkeypatch.setattr(kernels, "_compiled", {})
    for steps in range(40, 50):
        sizes = {"batch": 3, "steps": steps, "1": 1}
        weight = torch.ones([sizes[name] for name in shape.split(", ")]).to(DEVICE)
        inputs = randn((3, steps, 4)), randn((3, steps, 4))
        kernels.weighted_losses(*inputs, 0.5, weight, None)
    assert len(kernels._compiled) == 1


@runs
@pytest.mark.parametrize("is_mask", [False, True])
def test_an_infinite_incoming_gradient_of_a_masked_element_gives_0(is_mask):
    y_pred = torch.tensor([1.0, torch.nan], device=DEVICE, requires_grad=True)
    weight = torch.tensor([1.0, 0.0], device=DEVICE)
    weight = weight > 0 if is_mask else weight
    inputs = torch.zeros_like(y_pred), y_pred, 0.5, weight, None
    kernels.weighted_losses(*inputs).sqrt().sum().backward()
    assert y_pred.grad[1] == 0


@runs
def test_sums_are_deterministic():
    y_true, y_pred = randn((1000, 333)), randn((1000, 333))
    losses = {float(SmoothL1Loss()(y_true, y_pred)) for _ in range(5)}
    assert len(losses) == 1


@runs
@pytest.mark.skipif(DEVICE == "cpu", reason="only a GPU runs asynchronously")
@pytest.mark.parametrize("reduction", ["mean", "mean_with_sample_weight", "sum", None])
@pytest.mark.parametrize("beta", [1 / 9, 1.0, [0.1, 0.2, 0.3, 0.4]])
@pytest.mark.parametrize("has_weight", [False, True])
# torch warns that this debug mode is a prototype.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_does_not_synchronize_with_the_gpu(reduction, beta, has_weight):
    y_true, y_pred = randn((64, 32, 4)), randn((64, 32, 4)).requires_grad_()
    weight = torch.rand(64).to(DEVICE) if has_weight else None
    loss = SmoothL1Loss(beta, reduction=reduction)
    grad_output = loss(y_true, y_pred, weight)  # makes the copies that are needed once
    try:
        torch.cuda.set_sync_debug_mode("error")
        loss(y_true, y_pred, weight).backward(grad_output)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@compiles
@pytest.mark.parametrize("target", machine_code.TARGETS)
@pytest.mark.parametrize("variant", machine_code.VARIANTS)
def test_machine_code_reads_and_writes_each_element_once(target, variant):
    settings = machine_code.VARIANTS[variant]
    counts, elements = machine_code.instructions(target, **settings)
    size = machine_code.SIZES[settings.get("dtype", "fp32")]
    in_16_bytes = 16 // size
    # A full tile reads and writes 16 bytes at once, and a partial one single elements.
    tensors = 3 if variant == "weight per element" else 2
    wide_loads = counts["wide load"] - tensors * elements / in_16_bytes
    assert wide_loads in ((0, 1) if variant == "beta per output" else (0,))
    # Several elements share one weight or one beta.
    shared = {
        "weight per image": 4,
        "mask per pixel": 1.25 * elements,
        "beta per output": elements,
    }
    assert counts["load"] <= tensors * elements + shared.get(variant, 0)
    assert counts["wide store"] == elements / in_16_bytes
    assert counts["store"] == elements + 2  # one for the sum of each tile
    # Correctly rounded divisions: one per element, and two per tile.
    assert 2 * elements <= counts["division"] <= 2 * (elements + 3)
    assert counts["spill"] == 0


@compiles
def test_a_launch_compiles_the_kernel_for_its_arguments(monkeypatch):
    class Driver:
        """A GPU that is not there."""

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

        def get_current_target(self):
            return machine_code.TARGETS["sm_90"]

    class Kernel:
        def __getitem__(self, grid):
            return functools.partial(kernel.warmup, grid=grid)

    kernel = kernels._kernel
    monkeypatch.setattr(driver, "_active", Driver())
    monkeypatch.setattr(kernels, "_kernel", Kernel())
    monkeypatch.setattr(kernels, "_compiled", {})
    y_true, y_pred, weight = randn((9, 3)), randn((9, 3)), torch.ones(9, 1)
    kernels._run(y_pred, y_true, weight, 0.5, 27, needs_output=True, needs_grad=True)
    (compiled,) = kernels._compiled.values()
    assert "st.global" in compiled.asm["ptx"]

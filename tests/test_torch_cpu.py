"""Processing CPU tensors in blocks gives the results of the plain operations."""

import numpy as np
import pytest
from helpers.autodiff import BACKEND
from keras.src.backend.common.masking import set_keras_mask

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss

if BACKEND != "torch":
    pytest.skip("for torch only", allow_module_level=True)

import torch

from keras_smoothl1 import backends
from keras_smoothl1.backends.torch import aten, cpu, internals

SHAPE = (7, 300, 200)
BLOCK_SIZE = 2**17  # more than three blocks per tensor
MASK = np.random.default_rng(0).integers(0, 2, SHAPE[:2]).astype(bool)


def tensors():
    generator = torch.Generator().manual_seed(0)
    y_true, y_pred = torch.randn(2, *SHAPE, generator=generator)
    return y_true, y_pred.requires_grad_(), torch.rand(SHAPE, generator=generator)


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    for module in (cpu, aten):
        monkeypatch.setattr(module, "BLOCK_SIZE", BLOCK_SIZE)


def run(monkeypatch, loss, weight_of, mask, fused):
    y_true, y_pred, weight = tensors()
    calls = []

    def counted(function):
        def counting(*args, **kwargs):
            calls.append(1)
            return function(*args, **kwargs)

        return counting

    with monkeypatch.context() as patch:
        patch.setattr(cpu, "_forward", counted(cpu._forward))
        patch.setattr(aten, "losses", counted(aten.losses))
        if not fused:
            patch.setattr(cpu, "supports", lambda *args: False)
        if mask:
            set_keras_mask(y_pred, torch.tensor(MASK))
        value = loss(y_true, y_pred, weight_of(weight))
        (3 * value).backward(weight if value.dim() else None)
    assert bool(calls) == fused
    return value.detach().numpy(), y_pred.grad.numpy()


def with_zeros(weight):
    weight = weight.clone()
    weight[:, ::2] = 0
    return weight


BETAS = [0.5, 2.0] * (SHAPE[-1] // 2)
SETTINGS = [
    {"beta": 0.5},
    {"beta": BETAS},
    {"reduction": "sum"},
    {"reduction": "mean_with_sample_weight", "beta": 1 / 9},
    {"reduction": None, "beta": 1 / 9},
    {"reduction": None, "beta": BETAS},
    {"dtype": "float64"},
    {"dtype": "float16"},
]
# With a mask, their groups have different sizes, which blocks do not support.
GROUPS = [{"reduction": "sum", "reduce_dims": (1, 2)}, {"reduce_dims": -1}]


@pytest.mark.parametrize(
    ("settings", "mask"),
    [(settings, False) for settings in SETTINGS + GROUPS]
    + [(settings, True) for settings in SETTINGS],
    ids=lambda x: str(x).replace(str(BETAS), "[...]"),
)
@pytest.mark.parametrize(
    "weight_of",
    [
        lambda weight: None,
        lambda weight: weight[:, 0, 0].contiguous(),
        lambda weight: weight[:, :, 0],
        lambda weight: weight,
        with_zeros,
    ],
    ids=["none", "(B,)", "(B, T)", "full", "zeros"],
)
def test_blocks_give_the_results_of_the_plain_operations(
    monkeypatch, settings, weight_of, mask
):
    loss = SmoothL1Loss(**settings)
    weight = weight_of(tensors()[2])
    # The elements of a row share one weight, and need all betas. With a weight per
    # element, a row is one element.
    in_blocks = loss.beta != tuple(BETAS) or weight is None or weight.ndim < 3
    value, gradient = run(monkeypatch, loss, weight_of, mask, fused=in_blocks)
    expected = run(monkeypatch, loss, weight_of, mask, fused=False)
    np.testing.assert_allclose(
        value, expected[0], rtol=1e-3 if loss.dtype == "float16" else 1e-6
    )
    np.testing.assert_allclose(gradient, expected[1], rtol=5e-7, atol=1e-30)


@pytest.mark.parametrize("reduction", ["mean", None])
def test_results_do_not_depend_on_the_memory_layout(monkeypatch, reduction):
    loss, size = SmoothL1Loss(0.5, reduction), SHAPE[0] * SHAPE[1] * SHAPE[2]

    def value_and_gradient(layout):
        y_true, y_pred, _ = tensors()
        value = loss(layout(y_true), layout(y_pred))
        value.sum().backward()
        return value.movedim(0, -1) if value.dim() else value, y_pred.grad

    value, gradient = value_and_gradient(lambda x: x.movedim(0, -1))
    expected = value_and_gradient(lambda x: x)
    torch.testing.assert_close(value.sum(), expected[0].sum())
    torch.testing.assert_close(gradient, expected[1], rtol=1e-7, atol=1 / size**2)


@pytest.mark.parametrize(
    ("error", "beta"),
    [(1e-22, 1e-10), (1e-30, 1.0), (3e19, 1e20), (1e30, 1e36), (0.0, 1.0), (0.3, 1.0)],
)
@pytest.mark.parametrize("size", [2**12, 2 * BLOCK_SIZE])
@pytest.mark.parametrize("reduction", ["sum", None])
def test_results_are_accurate_if_squares_are_out_of_range(error, beta, size, reduction):
    y_pred = torch.full((size,), error, requires_grad=True)
    value = SmoothL1Loss(beta, reduction)(torch.zeros_like(y_pred), y_pred).sum()
    value.backward()
    error, beta = float(np.float32(error)), float(np.float32(beta))
    expected = size * (error / beta) * (error / 2)
    np.testing.assert_allclose(value.item(), expected, rtol=1e-6, atol=1e-40)
    np.testing.assert_allclose(y_pred.grad, error / beta, rtol=1e-7)


@pytest.mark.parametrize("others", [0.0, 0.3, np.nan, np.inf])
def test_one_tiny_loss_among_others_is_accurate(others):
    y_pred = torch.full((2**10,), others)
    y_pred[7] = 1e-20
    losses = SmoothL1Loss(1e-3, None)(torch.zeros_like(y_pred), y_pred)
    assert losses[7].item() == pytest.approx(5e-38, rel=2e-7)


def test_repeated_and_differentiable_backward_passes_agree():
    y_true, y_pred, _ = tensors()
    value = SmoothL1Loss(0.5)(y_true, y_pred)
    (first,) = torch.autograd.grad(value, y_pred, retain_graph=True)
    (second,) = torch.autograd.grad(value, y_pred, retain_graph=True)
    (third,) = torch.autograd.grad(value, y_pred, create_graph=True)
    torch.testing.assert_close(second, first)
    torch.testing.assert_close(third, first)
    (curvature,) = torch.autograd.grad(third.sum(), y_pred)
    quadratic = (y_pred - y_true).abs() < 0.5
    torch.testing.assert_close(curvature, quadratic * 2.0 / y_pred.numel())


def test_gradients_accumulate():
    y_true, y_pred, _ = tensors()
    for _ in range(2):
        SmoothL1Loss()(y_true, y_pred).backward()
    twice = y_pred.grad
    y_pred.grad = None
    SmoothL1Loss()(y_true, y_pred).backward()
    torch.testing.assert_close(twice, 2 * y_pred.grad)


@pytest.mark.parametrize("beta", [0.5, (0.25, 2.0)])
@pytest.mark.parametrize("reduction", ["mean", None])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(beta, reduction, weighted):
    y_true, y_pred = torch.randn(2, 5, 2, dtype=torch.float64)
    weight = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0]) if weighted else None
    loss = SmoothL1Loss(beta, reduction, dtype="float64")
    assert torch.autograd.gradcheck(
        lambda x: loss(y_true, x, weight), y_pred.requires_grad_()
    )


@pytest.mark.parametrize("beta", [0.5, (0.25, 2.0)])
def test_losses_may_be_modified_in_place(beta):
    y_pred = torch.ones(BLOCK_SIZE + 2, 2, requires_grad=True)
    losses = SmoothL1Loss(beta, reduction=None)(torch.zeros(BLOCK_SIZE + 2, 2), y_pred)
    losses.mul_(2).sum().backward()
    np.testing.assert_allclose(y_pred.grad[:, 0], 2)


@pytest.mark.parametrize("reduction", ["mean", None])
def test_a_vectorized_jacobian_equals_one_row_by_row(reduction):
    y_true, y_pred = torch.randn(2, 3, 2)
    loss = SmoothL1Loss(0.5, reduction)
    vectorized, row_by_row = (
        torch.autograd.functional.jacobian(
            lambda x: loss(y_true, x), y_pred, vectorize=vectorize
        )
        for vectorize in (True, False)
    )
    torch.testing.assert_close(vectorized, row_by_row)


@pytest.mark.parametrize("reduction", ["mean", None])
@pytest.mark.parametrize("weighted", [False, True])
def test_targets_and_weights_may_come_from_inference_mode(reduction, weighted):
    with torch.inference_mode():
        y_true, weight = torch.zeros(3, 2), torch.ones(3) if weighted else None
    y_pred = torch.full((3, 2), 3.0, requires_grad=True)
    SmoothL1Loss(reduction=reduction)(y_true, y_pred, weight).sum().backward()
    share = 1 / 6 if reduction == "mean" else 1.0
    torch.testing.assert_close(y_pred.grad, torch.full((3, 2), share))


def test_sparse_predictions_may_come_from_inference_mode():
    with torch.inference_mode():
        y_pred = torch.tensor([[0.0, 3.0], [1.0, 0.0]]).to_sparse()
    assert SmoothL1Loss()(torch.zeros(2, 2), y_pred) == 0.75


def test_a_tensor_beta_may_come_from_inference_mode():
    with torch.inference_mode():
        beta = torch.ones(3)
    y_pred = torch.full((3, 2), 3.0, requires_grad=True)
    smooth_l1_loss(torch.zeros(3, 2), y_pred, beta).sum().backward()
    torch.testing.assert_close(y_pred.grad, torch.ones(3, 2))


def test_sums_of_expanded_weights_are_accurate_to_2e_6():
    weight = torch.full((2**11, 1, 2**8, 1), 0.1).expand(2**11, 8, 2**8, 8)
    loss = SmoothL1Loss(reduction="mean_with_sample_weight")
    y_pred = torch.full(weight.shape, 1.5)
    torch.testing.assert_close(
        loss(torch.zeros_like(y_pred), y_pred, weight),
        torch.tensor(1.0),
        rtol=2e-6,
        atol=0,
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 1, 1), (7, 300, 1)])
def test_elements_that_share_a_weight_are_processed_in_blocks(monkeypatch, shape):
    monkeypatch.setattr(cpu, "BLOCK_SIZE", 1000)
    y_true, y_pred, _ = tensors()
    weight = torch.rand(shape)
    value = SmoothL1Loss(0.5, "sum")(y_true, y_pred, weight)
    value.backward()
    losses = torch.nn.functional.smooth_l1_loss(
        y_pred, y_true, beta=0.5, reduction="none"
    )
    torch.testing.assert_close(value, (losses * weight).sum())
    slopes = ((y_pred - y_true) / 0.5).clamp(-1, 1)
    torch.testing.assert_close(y_pred.grad, slopes * weight)


def row_weights(kind, y_pred):
    """Weights of rows, and whether torch's own loss gives the weighted sum exactly."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.rand(len(y_pred), generator=generator)
    if kind == "mask":
        return weight > 0.3, True
    if kind == "negative":
        return -weight, False
    if kind == "zero":
        return weight * (weight > 0.3), True
    assert kind == "hidden NaN"
    y_pred[0] = torch.nan
    weight[0] = 0
    return weight, False


@pytest.mark.parametrize("kind", ["mask", "negative", "zero", "hidden NaN"])
def test_torchs_own_loss_gives_the_same_small_weighted_sum(kind):
    y_true, y_pred = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))
    weight, is_exact = row_weights(kind, y_pred)
    weight = weight[:, None]
    by_torch, by_blocks = (y_pred.clone().requires_grad_() for _ in range(2))
    value, actual_exact = aten.loss_of_one_block(
        y_true, by_torch, weight, beta=0.5, divisor=10.0
    )
    assert actual_exact == is_exact
    expected = cpu._weighted(by_blocks, (y_true, weight, 0.5, 10.0))
    public = cpu.weighted_sum(y_true, by_torch, beta=0.5, weight=weight, divisor=10.0)
    torch.testing.assert_close(public, expected)
    if is_exact:
        torch.testing.assert_close(value, public, rtol=0, atol=0)
    for loss in (public, expected):
        loss.backward()
    torch.testing.assert_close(by_torch.grad, by_blocks.grad)


@pytest.mark.parametrize("size", [1e-20, 1e-3])
def test_a_small_weighted_sum_of_tiny_losses_is_accurate(size):
    # The square of the smaller error is subnormal.
    y_pred = torch.full((64, 16), size)
    weight = torch.full((64, 1), 3.0)
    arguments = {"beta": 1e-3, "weight": weight, "divisor": 1024.0}
    value = float(cpu.weighted_sum(torch.zeros_like(y_pred), y_pred, **arguments))
    assert value == pytest.approx(1.5 * size**2 / 1e-3, rel=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("error", "beta", "grad_output"), [(1e6, 8e6, 1e33), (1.6e-10, 0.9e-6, 1e-34)]
)
def test_gradients_are_accurate_for_extreme_incoming_gradients(
    error, beta, grad_output, stride
):
    # torch's own gradient multiplies first, and would overflow or lose digits here.
    y_pred = torch.full((515 * stride,), error)[::stride].requires_grad_()
    losses = SmoothL1Loss(beta, None)(torch.zeros_like(y_pred), y_pred)
    losses.backward(torch.full_like(losses, grad_output))
    exact = np.float32(error) / np.float32(beta) * np.float32(grad_output)
    np.testing.assert_allclose(y_pred.grad, exact, rtol=3e-7)


@pytest.fixture
def torch_calls(monkeypatch):
    """Treats plain CPU tensors as on a GPU. Returns the calls of torch's own loss."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return smooth_l1_loss(*arguments)

    smooth_l1_loss = internals.smooth_l1_loss
    monkeypatch.setattr(backends.torch, "HAS_GPU", True)
    monkeypatch.setattr(backends.torch, "gpu", None)
    monkeypatch.setattr(cpu, "supports", lambda *args: False)
    monkeypatch.setattr(internals, "is_plain_gpu_tensor", internals.is_plain_cpu_tensor)
    monkeypatch.setattr(internals, "smooth_l1_loss", counted)
    return calls


@pytest.mark.parametrize(
    ("settings", "uses_torch"),
    [
        ({"beta": 1 / 9}, True),
        ({"beta": 1 / 9, "reduction": "sum"}, True),
        ({"beta": 2.0, "reduction": "sum", "reduce_dims": -1}, True),
        ({"reduction": None}, True),
        # A square may underflow here, and the losses are not checked.
        ({"beta": 1 / 9, "reduction": None}, False),
        ({"beta": 1e-2}, False),
        ({"beta": 1e10}, False),
        ({"beta": [0.5, 2.0] * 100}, False),
        ({"beta": 0.5, "reduction": None, "reduce_dims": -1}, False),
    ],
    ids=str,
)
def test_on_a_gpu_torchs_own_loss_is_used_if_no_check_is_needed(
    torch_calls, settings, uses_torch
):
    y_true, y_pred, _ = tensors()
    y_true, y_pred = y_true[0], y_pred[0].detach().requires_grad_()
    loss = SmoothL1Loss(**settings)
    value = loss(y_true, y_pred)
    value.sum().backward()
    assert bool(torch_calls) == uses_torch
    exact_pred = y_pred.detach().double().requires_grad_()
    settings = {**loss.get_config(), "dtype": "float64"}
    exact = SmoothL1Loss(**settings)(y_true.double(), exact_pred)
    exact.sum().backward()
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(y_pred.grad.double(), exact_pred.grad, rtol=5e-7, atol=0)


def test_on_a_gpu_a_target_that_requires_grad_uses_the_general_path(torch_calls):
    with torch.inference_mode():
        y_pred = torch.zeros(300)
    y_true = torch.full((300,), 3.0, requires_grad=True)
    SmoothL1Loss()(y_true, y_pred).backward()
    assert not torch_calls
    torch.testing.assert_close(y_true.grad, torch.full((300,), 1 / 300))


def test_on_a_gpu_torchs_own_loss_is_not_used_if_weights_hide_nan(torch_calls):
    y_true, y_pred, _ = tensors()
    weight = torch.ones(len(y_true))
    y_true[0], weight[0] = torch.nan, 0
    assert torch.isfinite(SmoothL1Loss()(y_true, y_pred, weight))
    assert not torch_calls

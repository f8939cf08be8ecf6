"""Processing CPU tensors in blocks gives the results of the plain operations."""

import numpy as np
import pytest
from helpers.autodiff import BACKEND
from helpers.pairwise import pairwise
from keras.src.backend.common.masking import set_keras_mask

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss

if BACKEND != "torch":
    pytest.skip("for torch only", allow_module_level=True)

import torch

from keras_smoothl1.backends.torch import aten, cpu

SHAPE = (7, 300, 200)
BLOCK_SIZE = 2**17  # more than three blocks per tensor
MASK = np.random.default_rng(0).integers(0, 2, SHAPE[:2]).astype(bool)


def tensors():
    generator = torch.Generator().manual_seed(0)
    y_true, y_pred = torch.randn(2, *SHAPE, generator=generator)
    return y_true, y_pred.requires_grad_(), torch.rand(SHAPE, generator=generator)


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK_SIZE", BLOCK_SIZE)


def run(monkeypatch, loss, weight_of, mask, fused):
    y_true, y_pred, weight = tensors()
    calls = []

    def counted(function):
        def counting(*args, **kwargs):
            calls.append(1)
            return function(*args, **kwargs)

        return counting

    with monkeypatch.context() as patch:
        for kernel in (aten, cpu):
            patch.setattr(kernel, "weighted_losses", counted(kernel.weighted_losses))
            if not fused:
                patch.setattr(kernel, "supports", lambda *args: False)
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


@pytest.mark.parametrize("size", [1e-20, 1e-3])
def test_a_small_weighted_sum_of_tiny_losses_is_accurate(size):
    # The square of the smaller error is subnormal.
    y_pred = torch.full((64, 16), size)
    value = SmoothL1Loss(1e-3)(torch.zeros_like(y_pred), y_pred, torch.full((64,), 3.0))
    assert float(value) == pytest.approx(1.5 * size**2 / 1e-3, rel=1e-6)


@pairwise(
    dtype=["float32", "float64"],
    beta=[2**-10, 1 / 16, 0.5, 1.0, 2.0, 1000.0],
    size=[255, 257, 5000, BLOCK_SIZE + 1],
    stride=[1, 2],
    reduction=["mean", "sum", None],
    incoming=[1e-37, 1e-20, 1.0, 300.0, 1e20, 3e38],
    weight=[None, 1e-37, 1e-20, 1.0, 300.0, 1e20, 3e38],
)
def test_gradients_are_exact_for_extreme_weights_and_incoming_gradients(
    dtype, beta, size, stride, reduction, incoming, weight
):
    # torch's own gradient multiplies by the incoming gradient before it divides by
    # beta, and that of its mean divides by the size before it multiplies.
    generator = np.random.default_rng(0)
    scale = 10.0 ** generator.integers(-37, 2, size)
    error = (beta * generator.normal(size=size) * scale).astype(dtype)
    y_pred = torch.tensor(np.repeat(error, stride))[::stride].requires_grad_()
    weights = np.ones(size, dtype)
    if weight is not None:
        weights[::3] = weight
    arguments = () if weight is None else (torch.tensor(weights),)
    value = SmoothL1Loss(beta, reduction, dtype=dtype)(
        torch.zeros_like(y_pred), y_pred, *arguments
    )
    value.backward(torch.full_like(value, incoming))
    slope = np.clip(error.astype(np.longdouble) / np.asarray(beta, dtype), -1, 1)
    share = np.asarray(incoming, dtype).astype(np.longdouble)
    share = share / (size if reduction == "mean" else 1)
    expected = slope * weights * share
    limits = np.finfo(dtype)
    is_normal = (abs(expected) >= limits.tiny) & (abs(expected) <= limits.max)
    is_normal &= abs(slope) >= limits.tiny
    assert is_normal.any() or incoming == 1e-37
    unit = np.spacing(abs(expected[is_normal]).astype(dtype))
    errors = abs(y_pred.grad.numpy()[is_normal] - expected[is_normal])
    assert (errors <= 4 * unit).all()


@pytest.mark.parametrize(
    ("dtype", "weights", "incoming", "expected"),
    [
        ("float32", [1e-35] * 3, 65536.0, [0, 1 / 3, -1 / 3]),
        ("float32", [1e30, -1e30, 1e-10], 1e-20, [0, -1e40, -1]),
        ("float64", [1e-300] * 3, 1e100, [0, 1 / 3, -1 / 3]),
        ("float64", [1e-300] * 3, 1e-100, [0, 1 / 3, -1 / 3]),
        ("float64", [1e200] * 3, 1e200, [0, 1 / 3, -1 / 3]),
    ],
)
def test_gradients_of_a_weighted_mean_stay_in_range(dtype, weights, incoming, expected):
    y_pred = torch.tensor([0.0, 1.0, -2.0], dtype=getattr(torch, dtype))
    weights = torch.tensor(weights, dtype=y_pred.dtype)
    loss = SmoothL1Loss(0.5, "mean_with_sample_weight", dtype=dtype)
    value = loss(torch.zeros_like(y_pred), y_pred.requires_grad_(), weights)
    incoming = torch.full_like(value, incoming)
    first, second = (
        torch.autograd.grad(value, y_pred, incoming, retain_graph=True)[0]
        for _ in range(2)
    )
    exact = torch.tensor(expected, dtype=torch.float64) * incoming.double()
    torch.testing.assert_close(first, exact.to(y_pred.dtype))
    torch.testing.assert_close(second, exact.to(y_pred.dtype))


@pytest.mark.parametrize("size", [8, 2 * BLOCK_SIZE])
@pytest.mark.parametrize("incoming", [0.5, 10.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_large_incoming_gradient_scales_the_gradient(size, incoming, weighted):
    y_pred = torch.linspace(-1, 1, size, requires_grad=True)
    weight = torch.linspace(0, 1, size) if weighted else torch.ones(size)
    loss = SmoothL1Loss(0.5)(torch.zeros(size), y_pred, *[weight] * weighted)
    (incoming * loss).backward()
    slope = (y_pred.detach() / 0.5).clamp(-1, 1)
    expected = slope * weight * incoming / size
    torch.testing.assert_close(y_pred.grad, expected, rtol=5e-7, atol=0)


@pytest.mark.parametrize("beta", [0.5, [0.5, 0.5]])
@pytest.mark.parametrize("needs_grad", ["y_pred", "y_true and y_pred"])
@pytest.mark.parametrize("as_mask", [False, True])
def test_an_infinite_incoming_gradient_of_a_masked_element_gives_0(
    beta, needs_grad, as_mask
):
    mask = torch.tensor([[True, True], [True, False]])
    y_true = torch.tensor([[0.0, 0.0], [0.0, torch.nan]])
    y_true.requires_grad_("y_true" in needs_grad)
    y_pred = torch.tensor([[1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    weights = {"mask": mask} if as_mask else {"sample_weight": mask.float()}
    smooth_l1_loss(y_true, y_pred, beta, **weights).sqrt().sum().backward()
    assert y_pred.grad[1, 1] == 0
    assert torch.isfinite(y_pred.grad).all()


@pytest.mark.parametrize("incoming", [0.0, np.inf, np.nan])
@pytest.mark.parametrize("reduction", ["sum", None])
def test_an_incoming_gradient_that_is_0_or_not_finite_is_multiplied(
    incoming, reduction
):
    y_pred = torch.tensor([0.25, -3.0], requires_grad=True)
    loss = SmoothL1Loss(0.5, reduction)(torch.zeros(2), y_pred, torch.ones(2))
    loss.backward(torch.full_like(loss, incoming))
    expected = torch.tensor([0.5, -1.0]) * incoming
    torch.testing.assert_close(y_pred.grad, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("settings", "size", "by_torch"),
    [
        ({}, 300, True),
        ({"reduction": "sum", "reduce_dims": -1}, 300, True),
        ({"reduction": None}, 2**21, True),
        ({"reduction": None, "reduce_dims": -1}, 300, True),
        ({}, 2**21, False),
        ({"beta": 0.5}, 300, False),
        ({"beta": [1.0] * 300}, 300, False),
    ],
    ids=lambda x: str(x)[:40],
)
def test_torchs_own_loss_is_used_for_a_beta_of_1(monkeypatch, settings, size, by_torch):
    calls, by_aten = [], aten.weighted_losses
    monkeypatch.setattr(
        aten, "weighted_losses", lambda *inputs: calls.append(1) or by_aten(*inputs)
    )
    y_pred = torch.full((size,), 3.0, requires_grad=True)
    loss = SmoothL1Loss(**settings)(torch.zeros(size), y_pred)
    loss.sum().backward()
    assert bool(calls) == by_torch


@pytest.mark.parametrize(
    ("settings", "incoming", "is_kept"),
    [
        ({"beta": 0.5}, 1.0, True),
        ({"beta": 0.5}, 10.0, True),
        ({"beta": 0.5, "reduction": "sum"}, -0.25, True),
        ({"beta": 0.5, "reduction": "sum"}, 10.0, False),
        ({"beta": 0.5, "reduction": None}, 0.5, True),
        ({"beta": 1.0}, 1.0, False),
    ],
    ids=str,
)
def test_a_target_may_change_before_the_backward_pass_if_the_gradient_is_kept(
    settings, incoming, is_kept
):
    y_true, y_pred = torch.zeros(300), torch.full((300,), 0.25, requires_grad=True)
    weight = () if settings["beta"] == 1 else (torch.ones(300),)
    loss = SmoothL1Loss(**settings)(y_true, y_pred, *weight)
    y_true.fill_(9.0)
    if not is_kept:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward(torch.full_like(loss, incoming))
        return
    loss.backward(torch.full_like(loss, incoming))
    share = 1 / 300 if "reduction" not in settings else 1.0
    torch.testing.assert_close(y_pred.grad, torch.full((300,), 0.5 * incoming * share))

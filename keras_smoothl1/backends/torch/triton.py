"""PyTorch on a GPU: losses, their sum and the gradient in one pass over memory.

A step of torch's own mean reads or writes seven whole tensors, and the reference about
three times as many. This kernel reads y_true and y_pred and writes the gradient. All
intermediate results stay in registers. float16 and bfloat16 are upcast when they are
read. The host never waits for the GPU. The results must match the reference in
`Backend`, which is used for all inputs that `supports` rejects.

All tensors are flat, in the memory order of y_pred. Weights and betas that elements
share are read through a `Pattern`.
"""

import functools
import math
import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from keras_smoothl1.backends.torch import autograd, internals
from keras_smoothl1.typing import Beta

# If this variable is 1 when a kernel is defined, Triton interprets the kernel on a CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TILE_SIZE = 2048  # elements per program
THREADS = 256  # per program
SMALL = 16  # the largest number that is compiled into the kernel
OPTIONS = {
    "num_warps": THREADS // (64 if torch.version.hip else 32),
    # Each operation is rounded separately, as in the reference.
    "enable_fp_fusion": False,
}
MAX_INT32 = 2**31 - 1
HALF_DTYPES = (torch.float16, torch.bfloat16)
DTYPES = (*HALF_DTYPES, torch.float32, torch.float64)


class Pattern(NamedTuple):
    """How the elements of a flat tensor share the entries of another one.

    The entry of an element is `index // run % period`. Small numbers are compiled into
    the kernel: the period is then None if there is only one. Otherwise both are None,
    and are arguments of the kernel, so that it is not compiled anew for each size.
    """

    run: int | None
    period: int | None
    has_long_runs: bool  # at least as long as a tile, which has one or two entries


class Settings(NamedTuple):
    """The properties of a launch that are compiled into the kernel."""

    tile_size: int
    dtype: Any  # of the computation
    index_dtype: Any
    weight: Pattern
    betas: Pattern
    grad_by_element: bool  # whether grad_output has an entry per element, or only one
    is_sum: bool
    divides_sum: bool  # if it is complete: the quotient of a part could be subnormal
    skips_grad_of_one: bool  # because the gradient was computed in the forward pass


# --- The kernel

# A kernel that is compiled for one of their values works for all.
NUMBERS = [
    *("divisor", "size"),
    *("weight_run", "weight_period", "betas_run", "betas_period"),
]


@triton.jit(do_not_specialize=NUMBERS)
def _kernel(
    y_true,
    y_pred,
    weight,
    betas,
    divisors,
    grad_output,
    output,
    gradient,
    beta: tl.float64,
    divisor: tl.int64,
    size: tl.int64,
    weight_run: tl.int64,
    weight_period: tl.int64,
    betas_run: tl.int64,
    betas_period: tl.int64,
    settings: tl.constexpr,
):
    """Computes one tile per program.

    Writes the losses, or the sum of the tile, to `output`, and the gradient to
    `gradient`. Either may be None. `betas` and `divisors` are tensors that replace the
    numbers `beta` and `divisor`.
    """
    tensors = (y_true, y_pred, weight, betas, divisors, grad_output, output, gradient)
    shared = (weight_run, weight_period, betas_run, betas_period)
    numbers = (beta, divisor, size, shared)
    start = tl.program_id(0).to(settings.index_dtype) * settings.tile_size
    is_needed = True
    if settings.skips_grad_of_one:
        is_needed = tl.load(grad_output) != 1
    if is_needed:
        # Unmasked loads are vectorized, whatever the size.
        if start + settings.tile_size <= size:
            _tile(tensors, numbers, start, False, settings)
        else:
            _tile(tensors, numbers, start, True, settings)


@triton.jit
def _tile(tensors, numbers, start, is_partial: tl.constexpr, settings: tl.constexpr):
    y_true, y_pred, weight, betas, divisors, grad_output, output, gradient = tensors
    beta, divisor, size, shared = numbers
    weight_run, weight_period, betas_run, betas_period = shared
    dtype: tl.constexpr = settings.dtype
    index = start + tl.arange(0, settings.tile_size)
    mask = None
    end = start + settings.tile_size
    if is_partial:
        mask = index < size
        end = size.to(settings.index_dtype)
    bounds = (start, end)
    error = _load(y_pred, index, mask).to(dtype) - _load(y_true, index, mask).to(dtype)
    factor = None
    if weight is not None:
        entries = (weight_run, weight_period)
        w = _load_shared(weight, index, mask, bounds, entries, settings.weight)
        error = tl.where(w != 0, error, 0)
        # A boolean weight is a mask, and masked errors are 0 already.
        if w.dtype != tl.int1:
            factor = w.to(dtype)
    bound = tl.full((1,), beta, dtype)
    if betas is not None:
        entries = (betas_run, betas_period)
        bound = _load_shared(betas, index, mask, bounds, entries, settings.betas)
        bound = bound.to(dtype)
    # Clips by comparisons, which preserve NaN.
    clipped = tl.where(error > bound, bound, tl.where(error < -bound, -bound, error))
    slope = _divide(clipped, bound, dtype)
    divided_by = divisor.to(dtype)
    if divisors is not None:
        divided_by = tl.load(divisors).to(dtype)
    if output is not None:
        losses = slope * (error - 0.5 * clipped)
        if factor is not None:
            losses = losses * factor
        if settings.is_sum:
            if mask is not None:
                losses = tl.where(mask, losses, 0)
            total = tl.sum(losses)
            if settings.divides_sum:
                total = _divide_no_nan(total, divided_by, dtype)
            tl.store(output + tl.program_id(0), total)
        else:
            tl.store(output + index, losses, mask)
    if gradient is not None:
        scale = tl.full((1,), 1, dtype)
        if grad_output is not None:
            if settings.grad_by_element:
                scale = _load(grad_output, index, mask).to(dtype)
            else:
                scale = tl.load(grad_output).to(dtype)
        if factor is None:
            result = slope * _divide_no_nan(scale, divided_by, dtype)
        else:
            # In float64, no product of float32 numbers is out of range. In any dtype, a
            # weight is at most as large as the sum of weights by which it is divided.
            inverse = _divide_no_nan(1.0, divided_by.to(tl.float64), tl.float64)
            result = factor.to(tl.float64) * inverse
            result = result * scale.to(tl.float64) * slope.to(tl.float64)
        if weight is not None:
            # The incoming gradient of a masked element may be infinite.
            result = tl.where(w != 0, result, 0)
        tl.store(gradient + index, result.to(dtype), mask)


@triton.jit
def _load_shared(x, index, mask, bounds, numbers, pattern: tl.constexpr):
    """Loads the entries of x that belong to the elements of a tile."""
    start, end = bounds
    run, period = numbers
    if pattern.has_long_runs:
        run = run.to(start.dtype)
        first = start // run
        is_first = index < (first + 1) * run
        last = (end - 1) // run % period
        result = tl.where(is_first, tl.load(x + first % period), tl.load(x + last))
    else:
        entry = index
        if pattern.run is None:
            entry = index // run.to(start.dtype) % period.to(start.dtype)
        else:
            entry = index // pattern.run
            if pattern.period is not None:
                entry = entry % pattern.period
        result = _load(x, entry, mask)
    return result


@triton.jit
def _load(x, index, mask):
    return tl.load(x + index) if mask is None else tl.load(x + index, mask, 1)


@triton.jit
def _divide(x, y, dtype: tl.constexpr):
    # In float32, Triton's / can be off by two units in the last place.
    return tl.div_rn(x, y) if dtype == tl.float32 else x / y


@triton.jit
def _divide_no_nan(x, y, dtype: tl.constexpr):
    return tl.where(y == 0, 0.0, _divide(x, tl.where(y == 0, 1.0, y), dtype))


# --- The launch

_compiled: dict[Any, Any] = {}


def _run(
    y_pred: torch.Tensor,
    y_true: torch.Tensor,
    weight: torch.Tensor | None,
    beta: float | torch.Tensor,
    divisor: int | torch.Tensor | None,
    *,
    needs_output: bool = False,
    needs_grad: bool = False,
    grad_output: torch.Tensor | None = None,
    gradient_of_one: torch.Tensor | None = None,
) -> tuple[Any, Any]:
    """Returns the losses, or their sum / divisor, and the gradient.

    `gradient_of_one` is the gradient for a `grad_output` of 1. It is overwritten only
    if `grad_output` is not 1.
    """
    shape, size = y_pred.shape, y_pred.numel()
    programs = -(-size // TILE_SIZE)
    dtype = torch.promote_types(y_pred.dtype, torch.float32)
    betas, beta = (beta, 1.0) if isinstance(beta, torch.Tensor) else (None, beta)
    divisors, number = (
        (divisor, 1) if isinstance(divisor, torch.Tensor) else (None, divisor or 1)
    )
    weight, weight_numbers, weight_pattern = _shared(weight, shape)
    betas, betas_numbers, betas_pattern = _shared(betas, shape)
    # The incoming gradient of a sum, or of losses that are summed, is one number.
    grad_by_element = grad_output is not None and any(grad_output.stride())
    if grad_output is not None and grad_by_element:
        grad_output = grad_output.contiguous()
    output, gradient = None, gradient_of_one
    if needs_output:
        output_shape = shape if divisor is None else (programs,)
        output = y_pred.new_empty(output_shape, dtype=dtype)
    if needs_grad:
        gradient = y_pred.new_empty(shape)
    tensors = (
        *(y_true.contiguous(), y_pred.contiguous(), weight, betas, divisors),
        *(grad_output, output, gradient),
    )
    settings = Settings(
        tile_size=TILE_SIZE,
        dtype=tl.float64 if dtype is torch.float64 else tl.float32,
        index_dtype=tl.int32 if size + TILE_SIZE <= MAX_INT32 else tl.int64,
        weight=weight_pattern,
        betas=betas_pattern,
        grad_by_element=grad_by_element,
        is_sum=divisor is not None,
        divides_sum=programs == 1,
        skips_grad_of_one=gradient_of_one is not None,
    )
    numbers = beta, number, size, *weight_numbers, *betas_numbers
    _launch(programs, tensors, numbers, settings)
    if output is None or divisor is None:
        return output, gradient
    if programs == 1:
        return output.view(()), gradient
    total = output.sum()
    if divisors is not None:
        return torch.where(divisors == 0, 0, total / divisors), gradient
    return total if number == 1 else total / number, gradient


def _launch(
    programs: int,
    tensors: tuple[torch.Tensor | None, ...],
    numbers: tuple[Any, ...],
    settings: Settings,
) -> None:
    """Launches the kernel, reusing one that was compiled for similar arguments.

    Triton's own lookup takes most of the time of a small call.
    """
    kinds = (x if x is None else (x.dtype, x.data_ptr() % 16 == 0) for x in tensors)
    y_pred: Any = tensors[1]
    key = y_pred.device, settings, *kinds
    arguments = *tensors, *numbers, settings
    with torch.cuda.device_of(y_pred):
        if kernel := _compiled.get(key):
            kernel[programs, 1, 1](*arguments)
        else:
            _compiled[key] = _kernel[programs, 1, 1](*arguments, **OPTIONS)


def _shared(
    x: torch.Tensor | None, shape: torch.Size
) -> tuple[torch.Tensor | None, tuple[int, int], Pattern]:
    """Returns the entries of a tensor that is broadcast to shape, and their pattern."""
    per_element = (1, 1), Pattern(1, None, has_long_runs=False)
    if x is None:
        return None, *per_element
    numbers = _run_and_period(tuple(x.shape), tuple(shape))
    if numbers is None:
        return x.expand(shape).contiguous(), *per_element
    run, period = numbers
    repeats = run * period < math.prod(shape)
    if run <= SMALL and (period <= SMALL or not repeats):
        pattern = Pattern(run, period if repeats else None, has_long_runs=False)
    else:
        pattern = Pattern(None, None, has_long_runs=run >= TILE_SIZE)
    return x.contiguous(), numbers, pattern


@functools.lru_cache(maxsize=512)
def _run_and_period(
    own_shape: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[int, int] | None:
    """Returns run and period, or None if own axes and shared axes alternate."""
    own_axes = [axis for axis, size in enumerate(own_shape) if size > 1]
    if not own_axes:
        return math.prod(shape), 1
    first, end = own_axes[0], own_axes[-1] + 1
    if own_shape[first:end] != shape[first:end]:
        return None
    return math.prod(shape[end:]), math.prod(own_shape)


@functools.cache
def _cached_betas(
    beta: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Returns betas as a tensor, which is copied to the GPU once.

    The tensor is never freed, because a captured CUDA graph may keep reading it.
    """
    return torch.tensor(beta, dtype=dtype, device=device)


# --- The functions for the backend, and their gradient


def supports(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    beta: Beta | torch.Tensor,
    weight: torch.Tensor | None,
    divisor: int | torch.Tensor | None,
) -> bool:
    """Whether these are plain GPU tensors, of which only y_pred may require a gradient.

    A tensor of betas is a scalar, or has the rank of y_pred.
    """
    betas = beta if isinstance(beta, torch.Tensor) else None
    divisors = divisor if isinstance(divisor, torch.Tensor) else None
    return (
        internals.common_device(y_pred, y_true, weight, betas, divisors) == DEVICE
        and _compiles_for(y_pred.device)
        and y_pred.dtype in DTYPES
        and y_true.dtype in DTYPES
        and (y_pred.dtype is torch.float64) == (y_true.dtype is torch.float64)
        and (betas is None or betas.dim() in (0, y_pred.dim()))
    )


def upcasts(x: Any) -> bool:
    """Whether the kernel can read x in float16 or bfloat16 and upcast it to float32."""
    return (
        isinstance(x, torch.Tensor)
        and x.dtype in HALF_DTYPES
        and internals.no_mode_is_active()
        and internals.plain_device(x) == DEVICE
    )


@functools.lru_cache
def _compiles_for(device: torch.device) -> bool:
    """Whether Triton supports the GPU: Volta or newer."""
    return INTERPRETED or torch.cuda.get_device_capability(device) >= (7, 0)


def weighted_losses(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    beta: Beta | torch.Tensor,
    weight: torch.Tensor | None,
    divisor: int | torch.Tensor | None,
) -> torch.Tensor:
    """Returns the losses, or their sum / divisor if there is a divisor."""
    if isinstance(beta, tuple):
        dtype = torch.promote_types(y_pred.dtype, torch.float32)
        betas = _cached_betas(beta, dtype, y_pred.device)
        beta = betas.view((1,) * (y_pred.dim() - 1) + (-1,))
    if y_pred.is_contiguous():
        return _weighted(y_pred, (y_true, weight, beta, divisor))
    # Copies neither y_pred nor its gradient if the memory of y_pred has no gaps.
    order = sorted(range(y_pred.dim()), key=lambda axis: -y_pred.stride(axis))
    y_true, y_pred, weight, beta = (
        x.permute(order) if isinstance(x, torch.Tensor) and x.dim() else x
        for x in (y_true, y_pred, weight, beta)
    )
    result = _weighted(y_pred, (y_true, weight, beta, divisor))
    if divisor is not None:
        return result
    return result.permute([order.index(axis) for axis in range(len(order))])


def _weighted(y_pred: torch.Tensor, arguments: tuple[Any, ...]) -> torch.Tensor:
    if torch.is_grad_enabled() and y_pred.requires_grad:
        return _Weighted.apply(y_pred, arguments)
    return _run(y_pred.detach(), *arguments, needs_output=True)[0]


class _Weighted(torch.autograd.Function):
    # Only two arguments, because each one costs a microsecond or two.
    @staticmethod
    def forward(
        ctx: Any, y_pred: torch.Tensor, arguments: tuple[Any, ...]
    ) -> torch.Tensor:
        # Tensors are saved, and numbers stored: a stored tensor would not be freed.
        ctx.numbers = [None if isinstance(x, torch.Tensor) else x for x in arguments]
        tensors = (x if isinstance(x, torch.Tensor) else None for x in arguments)
        ctx.save_for_backward(y_pred, *tensors)
        # A sum over all elements is often the final loss, whose incoming gradient is 1.
        # So its gradient is computed in the same launch.
        output, ctx.gradient = _run(
            y_pred.detach(),
            *arguments,
            needs_output=True,
            needs_grad=arguments[-1] is not None,
        )
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        # The reference to the gradient is dropped, because autograd reuses a buffer
        # without a copy only if nothing else refers to it. A second backward pass
        # computes the gradient again.
        gradient, ctx.gradient = ctx.gradient, None
        y_pred, *tensors = ctx.saved_tensors
        y_true, weight, beta, divisor = (
            number if tensor is None else tensor
            for number, tensor in zip(ctx.numbers, tensors, strict=True)
        )
        arguments = y_pred, y_true, weight, beta, divisor
        if (
            torch.is_grad_enabled()
            or not internals.no_mode_is_active()
            or internals.plain_device(grad_output) != DEVICE
        ):
            return autograd.gradient(grad_output, *arguments), None
        _, gradient = _run(
            *arguments,
            needs_grad=gradient is None,
            grad_output=grad_output,
            gradient_of_one=gradient,
        )
        return gradient, None

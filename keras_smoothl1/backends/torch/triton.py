"""PyTorch on a GPU: losses, sums and the gradient in one pass over memory.

A step of torch's own mean reads or writes seven whole tensors, and the reference about
three times as many. This kernel reads y_true and y_pred and writes the gradient. All
intermediate results stay in registers. float16 and bfloat16 are upcast when they are
read. The host never waits for the GPU. The results must match the reference in
`Backend`, which is used for all inputs that `supports` rejects.

The kernel works on a matrix. Its rows are the groups of elements that are summed, or
that share a weight.
"""

import functools
import math
import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from keras_smoothl1.backends.torch import autograd, internals
from keras_smoothl1.typing import Axes, Beta

# If this variable is 1 when a kernel is defined, Triton interprets the kernel on a CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TILE_SIZE = 2048  # elements per program
THREADS = 256  # per program
OPTIONS = {
    "num_warps": THREADS // (64 if torch.version.hip else 32),
    # Each operation is rounded separately, as in the reference.
    "enable_fp_fusion": False,
}
SHORT_RUN = 256  # elements that share a weight; shorter runs do not become rows
SMALL = 2**20  # up to this many elements, launch overhead exceeds computation
MAX_INT32 = 2**31 - 1
HALF_DTYPES = (torch.float16, torch.bfloat16)
DTYPES = (*HALF_DTYPES, torch.float32, torch.float64)

_is_plain = (
    internals.is_plain_cpu_tensor if INTERPRETED else internals.is_plain_gpu_tensor
)


# --- The kernel


@triton.jit(do_not_specialize=["divisor"])
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
    rows,
    row_size,
    splits,
    weight_repeats,
    weight_run: tl.constexpr,
    weight_period: tl.constexpr,
    betas_run: tl.constexpr,
    betas_period: tl.constexpr,
    weight_by_row: tl.constexpr,
    sums: tl.constexpr,
    sums_by_row: tl.constexpr,
    divides_sums: tl.constexpr,
    static_row_size: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    index_dtype: tl.constexpr,
    dtype: tl.constexpr,
    grad_by_element: tl.constexpr,
    skips_grad_of_one: tl.constexpr,
):
    """Computes one tile per program: several whole rows, or one split of a row.

    Writes the losses, or their sum per row or per tile, to `output`, and the gradient
    to `gradient`. Either may be None.
    """
    program = tl.program_id(0)
    split = program % splits
    first_row = (program // splits).to(index_dtype) * tile_rows
    first_column = split.to(index_dtype) * tile_columns
    size = row_size if static_row_size is None else static_row_size
    row = first_row + tl.arange(0, tile_rows)[:, None]
    column = first_column + tl.arange(0, tile_columns)[None, :]
    tensors = (y_true, y_pred, weight, betas, divisors, grad_output, output, gradient)
    numbers = (beta, divisor, weight_repeats)
    indices = (program, row * splits + split, row, row * size + column)
    is_needed = True
    if skips_grad_of_one:
        is_needed = tl.load(grad_output) != 1
    if is_needed:
        if (first_row + tile_rows <= rows) & (first_column + tile_columns <= size):
            # Unmasked loads are vectorized, whatever the sizes.
            _tile(
                tensors,
                numbers,
                indices,
                (None, None),
                weight_run,
                weight_period,
                betas_run,
                betas_period,
                weight_by_row,
                sums,
                sums_by_row,
                divides_sums,
                grad_by_element,
                dtype,
            )
        else:
            _tile(
                tensors,
                numbers,
                indices,
                (row < rows, (row < rows) & (column < size)),
                weight_run,
                weight_period,
                betas_run,
                betas_period,
                weight_by_row,
                sums,
                sums_by_row,
                divides_sums,
                grad_by_element,
                dtype,
            )


@triton.jit
def _tile(
    tensors,
    numbers,
    indices,
    masks,
    weight_run: tl.constexpr,
    weight_period: tl.constexpr,
    betas_run: tl.constexpr,
    betas_period: tl.constexpr,
    weight_by_row: tl.constexpr,
    sums: tl.constexpr,
    sums_by_row: tl.constexpr,
    divides_sums: tl.constexpr,
    grad_by_element: tl.constexpr,
    dtype: tl.constexpr,
):
    y_true, y_pred, weight, betas, divisors, grad_output, output, gradient = tensors
    beta, divisor, weight_repeats = numbers
    program, row_sum, row, index = indices
    row_mask, mask = masks
    error = _load(y_pred, index, mask).to(dtype) - _load(y_true, index, mask).to(dtype)
    factor = None
    if weight is not None:
        if weight_by_row:
            w = _load(weight, row, row_mask)
        else:
            entry = _broadcast_index(index, weight_run, weight_period, weight_repeats)
            w = _load(weight, entry, mask)
        error = tl.where(w != 0, error, 0)
        # A boolean weight is a mask, and masked errors are 0 already.
        if w.dtype != tl.int1:
            factor = w.to(dtype)
    bound = tl.full((1, 1), beta, dtype)
    if betas is not None:
        entry = _broadcast_index(index, betas_run, betas_period, None)
        bound = _load(betas, entry, mask).to(dtype)
    # Clips by comparisons, which preserve NaN.
    clipped = tl.where(error > bound, bound, tl.where(error < -bound, -bound, error))
    slope = _divide(clipped, bound, dtype)
    divided_by = divisor.to(dtype)
    if divisors is not None:
        divided_by = _load_by_row(divisors, row, row_mask, sums_by_row).to(dtype)
    if output is not None:
        losses = _times(slope * (error - 0.5 * clipped), factor)
        if sums:
            if mask is not None:
                losses = tl.where(mask, losses, 0)
            if sums_by_row:
                total = tl.sum(losses, 1, keep_dims=True)
                if divides_sums:
                    total = _divide_no_nan(total, divided_by, dtype)
                tl.store(output + row_sum, total, row_mask)
            else:
                total = tl.sum(losses)
                if divides_sums:
                    total = _divide_no_nan(total, divided_by, dtype)
                tl.store(output + program, total)
        else:
            tl.store(output + index, losses, mask)
    if gradient is not None:
        scale = _divide_no_nan(1.0, divided_by, dtype)
        if grad_output is not None:
            if grad_by_element:
                scale = _load(grad_output, index, mask).to(dtype)
            else:
                scale = _load_by_row(grad_output, row, row_mask, sums_by_row).to(dtype)
            scale = _divide_no_nan(scale, divided_by, dtype)
        tl.store(gradient + index, _times(scale, factor) * slope, mask)


@triton.jit
def _load_by_row(x, row, row_mask, sums_by_row: tl.constexpr):
    return _load(x, row, row_mask) if sums_by_row else tl.load(x)


@triton.jit
def _broadcast_index(index, run: tl.constexpr, period: tl.constexpr, repeats):
    """Returns the index of an element's entry in a tensor that is broadcast.

    run: the number of consecutive elements that share an entry; None for 1.
    period: the number of entries before they repeat; None if they do not repeat.
    repeats: how often each period is repeated; None if there is only one period.
    """
    entry = index
    if run is not None:
        entry = entry // run
    if period is not None:
        if repeats is None:
            entry = entry % period
        else:
            entry = entry // (period * repeats) * period + entry % period
    return entry


@triton.jit
def _load(x, index, mask):
    return tl.load(x + index) if mask is None else tl.load(x + index, mask, 1)


@triton.jit
def _times(x, factor):
    return x if factor is None else x * factor


@triton.jit
def _divide(x, y, dtype: tl.constexpr):
    # In float32, Triton's / can be off by two units in the last place.
    return tl.div_rn(x, y) if dtype == tl.float32 else x / y


@triton.jit
def _divide_no_nan(x, y, dtype: tl.constexpr):
    return tl.where(y == 0, 0.0, _divide(x, tl.where(y == 0, 1.0, y), dtype))


# --- The launch


class _Plan(NamedTuple):
    """The parameters of a launch that depend only on the layout of its tensors."""

    order: tuple[int, ...] | None  # the axes in memory order; None to keep their order
    sums_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    expands_weight: bool
    expands_betas: bool
    programs: int
    numbers: tuple[int | None, ...]  # arguments of the kernel: rows to weight_repeats
    constants: tuple[Any, ...]  # arguments of the kernel: weight_run to index_dtype
    compiled: dict[Any, Any]  # compiled kernels, by their other parameters


@functools.lru_cache(maxsize=512)
def _plan(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    weight_shape: tuple[int, ...] | None,
    betas_shape: tuple[int, ...] | None,
    kept_axes: int | None,
) -> _Plan:
    rank, kept = len(shape), kept_axes or 0
    order = _memory_order(shape, strides, kept)
    if order is not None:
        shape = tuple(shape[axis] for axis in order)
        weight_shape, betas_shape = (
            x if x is None else tuple(x[axis] for axis in order)
            for x in (weight_shape, betas_shape)
        )
    size, sums_shape = math.prod(shape), shape[:kept] + (1,) * (rank - kept)
    pattern = _pattern(weight_shape, shape)
    run, period, repeats = pattern or (None, None, None)
    # The kernel has no repeats for betas. If they are needed, betas are expanded to one
    # per element.
    betas_pattern = _pattern(betas_shape, shape)
    expands_betas = betas_shape is not None and (
        betas_pattern is None or betas_pattern[2] is not None
    )
    if betas_shape is None:
        # A single beta in a tensor has a period of 1: the entry is always 0.
        betas_run, betas_period = None, 1
    elif betas_pattern is None or expands_betas:
        betas_run, betas_period = None, None
    else:
        betas_run, betas_period, _ = betas_pattern
    rows = math.prod(sums_shape)
    if not kept and period is None and run is not None and run > SHORT_RUN:
        rows = size // run
    row_size = size // rows
    weight_by_row = period is None and run == row_size
    if weight_by_row:
        run = None
    tile_columns = min(TILE_SIZE, _next_power_of_2(row_size))
    tile_rows = min(TILE_SIZE // tile_columns, _next_power_of_2(rows))
    splits = -(-row_size // tile_columns)
    programs = -(-rows // tile_rows) * splits
    output_shape = shape if kept_axes is None else (programs,)
    return _Plan(
        order=order,
        sums_shape=sums_shape,
        output_shape=(rows, splits) if kept else output_shape,
        expands_weight=weight_shape is not None and pattern is None,
        expands_betas=expands_betas,
        programs=programs,
        numbers=(rows, row_size, splits, repeats),
        constants=(
            run,
            period,
            betas_run,
            betas_period,
            weight_by_row,
            kept_axes is not None,  # sums
            kept > 0,  # sums_by_row
            # Only complete sums are divided: the quotient of a part could be subnormal.
            (splits if kept else programs) == 1,  # divides_sums
            # With a constant size, the compiler can use wide loads for short rows.
            row_size if rows > 1 and row_size <= SHORT_RUN else None,
            tile_rows,
            tile_columns,
            tl.int32 if size + TILE_SIZE <= MAX_INT32 else tl.int64,
        ),
        compiled={},
    )


def _memory_order(
    shape: tuple[int, ...], strides: tuple[int, ...], kept: int
) -> tuple[int, ...] | None:
    """Returns the axes of a dense tensor in memory order.

    None if the axes are in memory order already, if the memory has gaps, or if the
    first `kept` axes would move.
    """
    order = tuple(sorted(range(len(shape)), key=lambda axis: -strides[axis]))
    expected = 1
    for axis in reversed(order):
        if shape[axis] > 1 and strides[axis] != expected:
            return None
        expected *= shape[axis]
    own = tuple(range(len(shape)))
    return None if order == own or order[:kept] != own[:kept] else order


def _pattern(
    own_shape: tuple[int, ...] | None, shape: tuple[int, ...]
) -> tuple[int | None, int | None, int | None] | None:
    """Returns the run, period and repeats that broadcast own_shape to shape.

    They are defined in `_broadcast_index`. None if they cannot express the pattern.
    """
    if own_shape is None:
        return None
    # Sizes of groups of adjacent axes, last group first. Groups of broadcast axes and
    # groups of other axes alternate.
    sizes = [1]
    for size, own_size in zip(reversed(shape), reversed(own_shape), strict=True):
        is_own = len(sizes) % 2 == 0
        if size > 1 and is_own != (own_size > 1):
            sizes.append(1)
        sizes[-1] *= size
    if len(sizes) > 4:
        return None
    run = sizes[0] if sizes[0] > 1 else None
    period = sizes[1] if len(sizes) > 2 else None
    return run, period, sizes[2] if len(sizes) > 3 else None


def _next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


@functools.cache
def _cached_beta_tensor(
    beta: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Returns betas as a tensor, which is copied to the GPU once.

    The tensor is never freed, because a captured CUDA graph may keep reading it.
    """
    return torch.tensor(beta, dtype=dtype, device=device)


def _run(
    y_pred: torch.Tensor,
    y_true: torch.Tensor,
    weight: torch.Tensor | None,
    beta: Beta | torch.Tensor,
    divisor: int | torch.Tensor,
    kept_axes: int | None,
    *,
    needs_output: bool = False,
    needs_grad: bool = False,
    grad_output: torch.Tensor | None = None,
    gradient_of_one: torch.Tensor | None = None,
) -> tuple[Any, Any]:
    """Returns the losses or their sums, and the gradient.

    The sums are over all axes except the first `kept_axes`; None means no sum.
    `gradient_of_one` is the gradient for a `grad_output` of 1. It is reused as the
    buffer of the result if its layout fits, and is overwritten only if `grad_output` is
    not 1.
    """
    is_float64 = y_pred.dtype is torch.float64
    dtype = torch.float64 if is_float64 else torch.float32
    betas: Any = None
    if isinstance(beta, tuple):
        shape = (1,) * (y_pred.dim() - 1) + (len(beta),)
        beta, betas = 1.0, _cached_beta_tensor(beta, dtype, y_pred.device).view(shape)
    elif isinstance(beta, torch.Tensor):
        beta, betas = 1.0, beta
    plan = _plan(
        y_pred.shape,
        y_pred.stride(),
        None if weight is None else weight.shape,
        None if betas is None or betas.numel() == 1 else betas.shape,
        kept_axes,
    )
    order = plan.order
    if order is not None:
        y_pred, y_true = y_pred.permute(order), y_true.permute(order)
        weight = weight if weight is None else weight.permute(order)
        if betas is not None and betas.numel() > 1:
            betas = betas.permute(order)
        if gradient_of_one is not None:
            gradient_of_one = gradient_of_one.permute(order)
        if grad_output is not None and kept_axes is None:
            grad_output = grad_output.permute(order)
    if gradient_of_one is not None and not gradient_of_one.is_contiguous():
        # y_pred was restored from a saved tensor with a different layout.
        gradient_of_one = None
    y_pred, y_true = y_pred.contiguous(), y_true.contiguous()
    if weight is not None:
        weight = weight.expand(y_pred.shape) if plan.expands_weight else weight
        weight = weight.contiguous()
    if betas is not None:
        betas = betas.expand(y_pred.shape) if plan.expands_betas else betas
        betas = betas.contiguous()
    divisors = None
    if isinstance(divisor, torch.Tensor):
        divisors, divisor = divisor, 1
        if kept_axes:
            divisors = divisors.expand(plan.sums_shape).contiguous()
    grad_by_element = False
    if grad_output is not None:
        # The incoming gradient from a sum or mean is a broadcast scalar.
        grad_by_element = kept_axes is None and any(grad_output.stride())
        if kept_axes or grad_by_element:
            grad_output = grad_output.contiguous()
    output, gradient = None, gradient_of_one
    if needs_output:
        output = y_pred.new_empty(plan.output_shape, dtype=dtype)
    if needs_grad and gradient is None:
        gradient = torch.empty_like(y_pred)
    tensors = (y_true, y_pred, weight, betas, divisors, grad_output, output, gradient)
    constants = (
        tl.float64 if is_float64 else tl.float32,
        grad_by_element,
        gradient_of_one is not None,
    )
    with torch.cuda.device_of(y_pred):
        _launch(plan, tensors, (beta, divisor), constants, y_pred.device)
    if output is not None and kept_axes is not None:
        if plan.output_shape[-1] > 1:
            output = output.sum(-1)
            if divisors is not None:
                quotients = output / divisors.view(output.shape)
                output = torch.where(divisors.view(output.shape) == 0, 0, quotients)
            elif divisor > 1:
                output = output / divisor
        output = output.view(plan.sums_shape)
    elif output is not None and order is not None:
        output = _reordered(output, order)
    if gradient is not None and order is not None:
        gradient = _reordered(gradient, order)
    return output, gradient


def _launch(
    plan: _Plan,
    tensors: tuple[torch.Tensor | None, ...],
    numbers: tuple[Any, ...],
    constants: tuple[Any, ...],
    device: torch.device,
) -> None:
    """Launches the kernel, reusing one that was compiled for similar arguments.

    Triton's own lookup takes most of the time of a small call.
    """
    key = (
        *(None if x is None else (x.dtype, x.data_ptr() % 16 == 0) for x in tensors),
        device,
        constants,
    )
    arguments = (*tensors, *numbers, *plan.numbers, *plan.constants, *constants)
    grid = plan.programs, 1, 1
    kernel = plan.compiled.get(key)
    if kernel is None:
        plan.compiled[key] = _kernel[grid](*arguments, **OPTIONS)
    else:
        kernel[grid](*arguments)


def _reordered(x: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    return x.permute([order.index(axis) for axis in range(len(order))])


# --- The functions for the backend, and their gradient


def supports(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    beta: Beta | torch.Tensor,
    weight: torch.Tensor | None,
    *,
    axes: Axes | None = None,
    divisor: int | torch.Tensor = 1,
) -> bool:
    """Whether these are plain GPU tensors, of which only y_pred may require a gradient.

    `axes` must be the last axes.
    """
    return (
        internals.no_mode_is_active()
        and _is_plain(y_pred)
        and _is_plain(y_true)
        and _compiles_for(y_pred.device)
        and y_pred.dtype in DTYPES
        and y_true.dtype in DTYPES
        and (y_pred.dtype is torch.float64) == (y_true.dtype is torch.float64)
        and not y_true.requires_grad
        and y_pred.numel() > 0
        and y_true.device == y_pred.device
        and (weight is None or _is_constant(weight, y_pred))
        and (isinstance(divisor, int) or _is_constant(divisor, y_pred))
        and (
            isinstance(beta, float | tuple)
            or (_is_constant(beta, y_pred) and beta.dim() in (0, y_pred.dim()))
        )
        and (axes is None or axes == tuple(range(y_pred.dim()))[-len(axes) :])
    )


def upcasts(x: Any) -> bool:
    """Whether the kernel can read x in float16 or bfloat16 and upcast it to float32."""
    return (
        isinstance(x, torch.Tensor)
        and x.dtype in HALF_DTYPES
        and internals.no_mode_is_active()
        and _is_plain(x)
    )


@functools.lru_cache
def _compiles_for(device: torch.device) -> bool:
    """Whether Triton supports the GPU: Volta or newer."""
    return INTERPRETED or torch.cuda.get_device_capability(device) >= (7, 0)


def _is_constant(x: torch.Tensor, y_pred: torch.Tensor) -> bool:
    return _is_plain(x) and not x.requires_grad and x.device == y_pred.device


def weighted_losses(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    *,
    beta: Beta | torch.Tensor,
    weight: torch.Tensor | None,
) -> torch.Tensor:
    return _weighted(y_pred, (y_true, weight, beta, 1, None))


def weighted_sum(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    *,
    beta: Beta | torch.Tensor,
    weight: torch.Tensor | None,
    axes: Axes | None,
    divisor: int | torch.Tensor,
) -> torch.Tensor:
    kept_axes = 0 if axes is None else y_pred.dim() - len(axes)
    sums = _weighted(y_pred, (y_true, weight, beta, divisor, kept_axes))
    return sums.view(()) if axes is None else sums


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
        y_true, weight, beta, divisor, ctx.kept_axes = arguments
        ctx.numbers = beta, divisor
        tensors = (x if isinstance(x, torch.Tensor) else None for x in ctx.numbers)
        ctx.save_for_backward(y_pred, y_true, weight, *tensors)
        # A sum over all elements is often the final loss, whose incoming gradient is 1.
        # So its gradient is computed in the same launch.
        output, ctx.gradient = _run(
            y_pred.detach(),
            *arguments,
            needs_output=True,
            needs_grad=ctx.kept_axes == 0,
        )
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        # The reference to the gradient is dropped, because autograd reuses a buffer
        # without a copy only if nothing else refers to it. A second backward pass
        # computes the gradient again.
        gradient, ctx.gradient = ctx.gradient, None
        y_pred, y_true, weight, *tensors = ctx.saved_tensors
        beta, divisor = (
            number if tensor is None else tensor
            for number, tensor in zip(ctx.numbers, tensors, strict=True)
        )
        arguments = y_pred, y_true, weight, beta, divisor
        if (
            torch.is_grad_enabled()
            or not internals.no_mode_is_active()
            or not _is_plain(grad_output)
        ):
            slope = autograd.weighted_slope(*arguments)
            return (grad_output * slope).to(y_pred.dtype), None
        if gradient is not None and _may_be_scaled(gradient):
            return gradient.mul_(grad_output), None
        _, gradient = _run(
            *arguments,
            ctx.kept_axes,
            needs_grad=True,
            grad_output=grad_output,
            gradient_of_one=gradient,
        )
        return gradient, None


def _may_be_scaled(gradient: torch.Tensor) -> bool:
    """Whether to scale the gradient in place with torch, without this kernel.

    In a 16-bit dtype, it would be rounded twice. For a large tensor, this kernel is
    faster, because it returns at once if grad_output is 1.
    """
    return gradient.dtype.itemsize > 2 and gradient.numel() <= SMALL

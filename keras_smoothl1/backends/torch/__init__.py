"""PyTorch: selects the first kernel that supports a call."""

import importlib.util
import math
import os
import pathlib
import shutil
import sysconfig
from typing import Any

import keras
import torch

from keras_smoothl1.backends.base import Backend
from keras_smoothl1.backends.torch import aten, autograd, cpu, internals, nested
from keras_smoothl1.keras_internals import get_torch_device
from keras_smoothl1.typing import Axes, Beta, Size

HAS_GPU = torch.cuda.is_available()


def _triton_compiles() -> bool:
    """Whether there is a GPU and Triton finds a C compiler and Python's headers."""
    # The same search as Triton's, which compiles the launcher of a kernel from C.
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    header = pathlib.Path(sysconfig.get_path("include"), "Python.h")
    return HAS_GPU and header.exists() and any(map(shutil.which, compilers))


def _triton_is_installed() -> bool:
    spec = importlib.util.find_spec("triton")
    # A leftover folder without code is found as a namespace package without an origin.
    return spec is not None and spec.origin is not None


gpu: Any = None
if _triton_is_installed() and (
    os.environ.get("TRITON_INTERPRET") == "1" or _triton_compiles()
):
    from keras_smoothl1.backends.torch import triton as gpu

# An interpreted kernel is under test: it comes first, and `aten` is left out.
KERNELS: Any = (gpu, cpu) if gpu and gpu.INTERPRETED else (aten, gpu, cpu)
KERNELS = [kernel for kernel in KERNELS if kernel]


class TorchBackend(Backend):
    xp: Any = torch

    def smooth_l1(self, error: torch.Tensor, beta: Beta | torch.Tensor) -> torch.Tensor:
        if autograd.supports():
            return autograd.value_and_slope(error, beta)[0]
        return super().smooth_l1(error, beta)

    def beta_tensor(
        self, beta: Beta | torch.Tensor, error: torch.Tensor
    ) -> torch.Tensor:
        return autograd.beta_tensor(beta, error)

    def weighted_losses(
        self,
        y_true: torch.Tensor,
        y_pred: torch.Tensor,
        beta: Beta | torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        losses = _run_kernel(y_true, y_pred, beta, weight, None)
        if losses is not None:
            return losses
        y_true, y_pred, weight = map(_upcast, (y_true, y_pred, weight))
        return super().weighted_losses(y_true, y_pred, beta, weight)

    def weighted_sum(
        self,
        y_true: torch.Tensor,
        y_pred: torch.Tensor,
        beta: Beta | torch.Tensor,
        weight: torch.Tensor | None = None,
        *,
        axes: Axes | None = None,
        divisor: int | torch.Tensor = 1,
    ) -> torch.Tensor:
        if axes is None:
            total = _run_kernel(y_true, y_pred, beta, weight, divisor)
            if total is not None:
                return total
        return super().weighted_sum(
            y_true, y_pred, beta, weight, axes=axes, divisor=divisor
        )

    def sum(self, x: torch.Tensor, axes: Axes | None = None) -> torch.Tensor:
        return autograd.sum_over(x, axes)

    def where_or_zero(self, condition: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.where(condition, x, 0)

    def zero_where_missing(
        self, error: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        if internals.no_mode_is_active() and not weight.requires_grad:
            # A weight that has no gradient needs no loss where it is 0.
            return self.where_or_zero(weight != 0, error)
        return super().zero_where_missing(error, weight)

    def static_range(self, x: torch.Tensor) -> tuple[float, float] | None:
        # Reading values from a GPU would block.
        if (
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or x.device.type != "cpu"
            or x.numel() == 0
        ):
            return None
        x = x.detach()
        try:
            if x.dim() == 0:
                return float(x), float(x)
            smallest, largest = torch.aminmax(x)
            return float(smallest), float(largest)
        except RuntimeError:  # a traced tensor, or a batched one under vmap
            return None

    def as_number(self, x: torch.Tensor) -> torch.Tensor | float:
        is_constant = (
            x.dim() == 0
            and not x.requires_grad
            and internals.no_mode_is_active()
            and internals.plain_device(x) == "cpu"
        )
        return x.item() if is_constant else x

    def size(self, x: torch.Tensor, axes: Axes | None = None) -> Size:
        sizes = x.shape if axes is None else [x.shape[axis] for axis in axes]
        size = math.prod(sizes)
        # A torch.SymInt stays symbolic in a tensor. As an int, it would become the size
        # of the traced example.
        return size if isinstance(size, int) else x.new_full((), size)

    def input_dtype(self, x: Any, dtype: str) -> str:
        # Keras may move x to a device on which no kernel upcasts.
        if (
            gpu
            and dtype == "float32"
            and gpu.upcasts(x)
            and _is_plain_on(get_torch_device(), x)
        ):
            return keras.backend.standardize_dtype(x.dtype)
        return dtype

    def needs_no_conversion(self, x: Any, dtype: str) -> bool:
        return (
            isinstance(x, torch.Tensor)
            and x.dtype is getattr(torch, dtype)
            and not torch.compiler.is_compiling()
            and _is_plain_on(get_torch_device(), x)
        )

    def same_dtype_and_device(self, x: Any, y: torch.Tensor) -> bool:
        return (
            isinstance(x, torch.Tensor)
            and x.dtype == y.dtype
            and x.device == y.device
            and x.layout == torch.strided
            and not _is_unsaveable(x)
        )

    def to_dense(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if _is_unsaveable(x):
            x = x.clone()
        return x if x.layout == torch.strided else x.to_dense()

    def is_ragged(self, x: Any) -> bool:
        return isinstance(x, torch.Tensor) and x.is_nested

    def ragged_values(
        self, x: Any, y_pred: torch.Tensor, name: str, *, per_row: bool = False
    ) -> torch.Tensor:
        return nested.values(x, y_pred, name, per_row=per_row)

    def with_rows_of(self, y_pred: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        return nested.with_rows_of(y_pred, losses)


def _run_kernel(*inputs: Any) -> torch.Tensor | None:
    """Returns the result of the first kernel that supports the inputs, if any."""
    for kernel in KERNELS:
        if kernel.supports(*inputs):
            return kernel.weighted_losses(*inputs)
    return None


def _is_unsaveable(x: torch.Tensor) -> bool:
    """Whether autograd refuses to save x, which was made in torch.inference_mode()."""
    return (
        not torch.compiler.is_compiling()
        and x.is_inference()
        and not torch.is_inference_mode_enabled()
    )


def _is_plain_on(device: str, x: torch.Tensor) -> bool:
    """Whether x is a plain tensor on the device to which Keras moves tensors."""
    return internals.plain_device(x) == device and (
        device == "cpu" or x.get_device() == torch.cuda.current_device()
    )


def _upcast(x: Any) -> Any:
    """Converts float16 and bfloat16, which `input_dtype` may have kept, to float32."""
    if isinstance(x, torch.Tensor) and x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return x

"""The private names of torch that the package needs, each with its reason.

- The dispatch keys of a tensor, and those that torch's modes add to each call. In two
  comparisons they say that a tensor is a plain one on a CPU, and that neither
  torch.func, FakeTensorMode, make_fx, torch.jit.trace nor any other mode that changes
  how operations are dispatched is active. There is no public function for that. A
  subclass may have the keys of a plain tensor, so the class is compared, too.
- The level of forward-mode autodiff: the keys of a dual tensor are a plain one's, too.
- torch's own kernels of this loss, which can write to a buffer, and its own loss as
  torch.nn.functional calls it. The function there cannot, and takes twice as long.

tests/test_torch_internals.py fails when torch moves or changes any of them.
"""

from typing import Any

import torch
from torch.autograd import forward_ad

__all__ = [
    "PLAIN_CLASSES",
    "forward_mode_is_active",
    "is_plain_cpu_tensor",
    "is_plain_gpu_tensor",
    "no_mode_is_active",
    "smooth_l1",
    "smooth_l1_loss",
    "smooth_l1_slope",
]

smooth_l1: Any = torch.ops.aten.smooth_l1_loss.out
smooth_l1_loss: Any = torch._C._nn.smooth_l1_loss
smooth_l1_slope: Any = torch.ops.aten.smooth_l1_loss_backward.grad_input


def _keys(*keys: Any) -> int:
    """A set of dispatch keys, as an int, which compares fast."""
    result = torch._C.DispatchKeySet(keys[0])
    for key in keys[1:]:
        result = result | torch._C.DispatchKeySet(key)
    return result.raw_repr()


_Key: Any = torch._C.DispatchKey
# Looked up once: each is asked several times in a small call.
_keys_of: Any = torch._C._dispatch_keys
_keys_of_modes: Any = torch._C._dispatch_tls_local_include_set
PLAIN_CLASSES = (torch.Tensor, torch.nn.Parameter)
# Not read from a new tensor here: a mode may be active during the import. The second of
# each pair is that of torch.inference_mode().
_PLAIN_CPU = (
    _keys(_Key.CPU, _Key.ADInplaceOrView, _Key.AutogradCPU, _Key.AutocastCPU),
    _keys(_Key.CPU, _Key.AutocastCPU),
)
# ROCm's tensors have the same keys.
_PLAIN_GPU = (
    _keys(_Key.CUDA, _Key.ADInplaceOrView, _Key.AutogradCUDA, _Key.AutocastCUDA),
    _keys(_Key.CUDA, _Key.AutocastCUDA),
)
_NO_MODE = (
    _keys(_Key.BackendSelect, _Key.ADInplaceOrView),
    _keys(_Key.BackendSelect),
)


def is_plain_cpu_tensor(x: torch.Tensor) -> bool:
    """Whether x holds numbers in strides on a CPU, and stands for nothing else."""
    return type(x) in PLAIN_CLASSES and _keys_of(x).raw_repr() in _PLAIN_CPU


def is_plain_gpu_tensor(x: torch.Tensor) -> bool:
    """Whether x holds numbers in strides on a GPU, and stands for nothing else."""
    return type(x) in PLAIN_CLASSES and _keys_of(x).raw_repr() in _PLAIN_GPU


def no_mode_is_active() -> bool:
    """Whether operations run at once and unmodified, with nothing recording them."""
    return (
        # First, since torch.compile cannot trace the rest.
        not torch.compiler.is_compiling()
        and _keys_of_modes().raw_repr() in _NO_MODE
        and not forward_mode_is_active()
    )


def forward_mode_is_active() -> bool:
    """Whether tensors may have a tangent: in a dual level, or under torch.func.jvp."""
    return bool(forward_ad._current_level >= 0)

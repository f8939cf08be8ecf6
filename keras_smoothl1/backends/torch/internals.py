"""The private names of torch that the package uses, with the reason for each.

- `_dispatch_keys` of a tensor, and `_dispatch_tls_local_include_set`, the keys that
  torch's modes add to each call. Two comparisons show that a tensor is a plain CPU
  or GPU tensor, and that no mode that changes the dispatch of operations is active
  (torch.func, FakeTensorMode, make_fx, torch.jit.trace and others). No public function
  reports this. A subclass may have the keys of a plain tensor, so the class is compared
  as well.
- `forward_ad._current_level`: the level of forward-mode differentiation. A dual tensor
  has the keys of a plain one.
- `torch._C._are_functorch_transforms_active`: whether the code runs in a function that
  torch.func transforms. torch.compile can trace it, unlike the keys above.
- `torch._C._nn.smooth_l1_loss`, which torch.nn.functional calls. The public function
  takes twice as long.

tests/test_torch_internals.py fails if torch moves or changes any of them.
"""

from typing import Any

import torch
from torch.autograd import forward_ad

__all__ = [
    "PLAIN_CLASSES",
    "common_device",
    "forward_mode_is_active",
    "no_mode_is_active",
    "plain_device",
    "smooth_l1_loss",
    "transforms_are_active",
]

transforms_are_active: Any = torch._C._are_functorch_transforms_active
smooth_l1_loss: Any = torch._C._nn.smooth_l1_loss


def _keys(*keys: Any) -> int:
    """A set of dispatch keys as an int, which is fast to compare."""
    result = torch._C.DispatchKeySet(keys[0])
    for key in keys[1:]:
        result = result | torch._C.DispatchKeySet(key)
    return result.raw_repr()


_Key: Any = torch._C.DispatchKey
# Looked up once, because a small call uses them several times.
_keys_of: Any = torch._C._dispatch_keys
_keys_of_modes: Any = torch._C._dispatch_tls_local_include_set
PLAIN_CLASSES = (torch.Tensor, torch.nn.Parameter)
# Constants rather than the keys of a new tensor, because a mode may be active during
# the import. The second entry of each device is for torch.inference_mode().
_DEVICES = {
    _keys(_Key.CPU, _Key.ADInplaceOrView, _Key.AutogradCPU, _Key.AutocastCPU): "cpu",
    _keys(_Key.CPU, _Key.AutocastCPU): "cpu",
    # ROCm's tensors have the same keys.
    _keys(
        _Key.CUDA, _Key.ADInplaceOrView, _Key.AutogradCUDA, _Key.AutocastCUDA
    ): "cuda",
    _keys(_Key.CUDA, _Key.AutocastCUDA): "cuda",
}
_NO_MODE = (
    _keys(_Key.BackendSelect, _Key.ADInplaceOrView),
    _keys(_Key.BackendSelect),
)


def plain_device(x: torch.Tensor) -> str | None:
    """Returns "cpu" or "cuda" for an ordinary strided tensor, otherwise None.

    A subclass, a wrapper and a tracer are not ordinary.
    """
    return _DEVICES.get(_keys_of(x).raw_repr()) if type(x) in PLAIN_CLASSES else None


def common_device(y_pred: torch.Tensor, *constants: torch.Tensor | None) -> str | None:
    """Returns "cpu" or "cuda" if kernels can take these tensors, otherwise None.

    They must be plain tensors on one device, while no mode is active. Only y_pred may
    require a gradient, and it must not be empty.
    """
    if not no_mode_is_active() or y_pred.numel() == 0:
        return None
    device = plain_device(y_pred)
    for x in constants:
        if x is not None and (
            plain_device(x) != device
            or x.requires_grad
            or x.get_device() != y_pred.get_device()
        ):
            return None
    return device


def no_mode_is_active() -> bool:
    """Whether operations are executed immediately, and not modified or traced."""
    return (
        # First, because torch.compile cannot trace the other expressions.
        not torch.compiler.is_compiling()
        and _keys_of_modes().raw_repr() in _NO_MODE
        and not forward_mode_is_active()
    )


def forward_mode_is_active() -> bool:
    """Whether tensors can have tangents: in a dual level, or under torch.func.jvp."""
    return bool(forward_ad._current_level >= 0)

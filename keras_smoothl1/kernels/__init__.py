"""What differs between backends: the loss with its closed-form slope, and exact sums.

- `smooth_l1(error, beta)` returns one loss for each error. `beta` is a number, a tuple
  of numbers for the entries of the last axis, or a scalar tensor, and then the loss is
  differentiable by it.
- `total(x, axes)` sums over axes, which stay as size 1, or over all of them to a scalar
  if they are None. 2^24 float32 numbers are right to 2e-6.
- `compiled(function, static)` compiles a function where that makes it faster: on JAX.
- `kept(error, counts)` is the error where it counts, and 0 elsewhere, even for NaN.
- `quotient(x, y)` is x / y, and 0 where y is.
- `weighted_total(error, beta, weight, axes, divisor)`, on TensorFlow alone, is the
  total of the weighted losses over a number, in fewer passes; None elsewhere, and where
  it does not apply.
- `fused`, on torch alone, makes losses and gradient in one walk over the tensors. None
  elsewhere.
- `known_value(x)` is the number in a scalar tensor, or None where it is not known yet.
- `alike(x, y)` says that x needs no conversion where y needs none.
- `xp` is the backend's own array module, for `reference` and for what must keep float64
  (see there why `keras.ops` does not).

The backend is the one that Keras has chosen and imported already; no other is touched.
"""

import importlib
from typing import Any

import keras

from keras_smoothl1.validation import SMALLEST_NORMAL, Tensor

_backend = keras.backend.backend()
_kernel: Any = importlib.import_module(
    f"{__name__}."
    + (_backend if _backend in ("jax", "tensorflow", "torch") else "evaluation")
)
fused: Any = (
    importlib.import_module(f"{__name__}.torch_fused") if _backend == "torch" else None
)
compiled = getattr(_kernel, "compiled", lambda function, static: function)
known_value = _kernel.known_value
alike = getattr(_kernel, "alike", lambda x, y: False)
total = _kernel.total
xp = _kernel.xp
_weighted_total = getattr(_kernel, "weighted_total", None)


def kept(error: Tensor, counts: Tensor) -> Tensor:
    if hasattr(_kernel, "kept"):
        return _kernel.kept(error, counts)
    return xp.where(counts, error, xp.zeros_like(error))


def quotient(x: Tensor, y: Tensor) -> Tensor:
    if hasattr(_kernel, "quotient"):
        return _kernel.quotient(x, y)
    nothing = y == 0
    result = x / xp.where(nothing, xp.ones_like(y), y)
    return xp.where(nothing, xp.zeros_like(result), result)


def weighted_total(
    error: Tensor,
    beta: Any,
    weight: Tensor | None,
    axes: tuple[int, ...] | None,
    divisor: int,
) -> Tensor | None:
    covered = isinstance(beta, float | tuple) and not _is_tiny(beta, error)
    if _weighted_total is None or not covered:
        return None
    sums: Tensor = _weighted_total(error, beta, weight, axes, divisor)
    return sums


def smooth_l1(error: Tensor, beta: Any) -> Tensor:
    if _is_tiny(beta, error):
        return _smooth_l1_of_tiny_beta(error, beta)
    return _kernel.smooth_l1(error, beta)


def _is_tiny(beta: Any, error: Tensor) -> bool:
    """Whether beta / 2 is no normal number; XLA and TensorFlow would flush it to 0."""
    if not isinstance(beta, float | tuple):
        return False
    smallest = beta if isinstance(beta, float) else min(beta)
    return smallest / 2 < SMALLEST_NORMAL[keras.backend.standardize_dtype(error.dtype)]


def _smooth_l1_of_tiny_beta(error: Tensor, beta: float | tuple[float, ...]) -> Tensor:
    # The loss of k times the error with k times beta is k times the loss, and from an
    # error of 1 on such a beta / 2 is far below the last digit.
    dtype = keras.backend.standardize_dtype(error.dtype)
    numbers = beta if isinstance(beta, tuple) else (beta,)
    scales = [2.0**60 if n / 2 < SMALLEST_NORMAL[dtype] else 1.0 for n in numbers]
    scaled_beta = [n * k for n, k in zip(numbers, scales, strict=True)]
    one = len(numbers) == 1
    scale = keras.ops.convert_to_tensor(scales[0] if one else scales, dtype=dtype)
    far = (xp.abs(error) >= 1) & (scale > 1)
    near = xp.where(far, xp.zeros_like(error), error) * scale
    loss = _kernel.smooth_l1(near, scaled_beta[0] if one else scaled_beta)
    return xp.where(far, xp.abs(error), loss / scale)

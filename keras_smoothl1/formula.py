"""The formula of the Smooth L1 loss, and its derivatives.

With d = y_pred - y_true (Girshick, Fast R-CNN, https://arxiv.org/abs/1504.08083, where
beta = 1 / sigma²):

    value(d)     = d² / (2 beta)     if |d| < beta
                 = |d| - beta / 2    otherwise

    slope(d)     = d / beta          if |d| < beta
                 = sign(d)           otherwise

    curvature(d) = 1 / beta          if |d| < beta
                 = 0                 otherwise

d² is never formed: it leaves the range of the dtype long before the loss does. With
c = clip(d, -beta, beta) both branches are one: slope = c / beta, and
value = slope · (d - c / 2). Since the quotient of an error below beta rounds to less
than 1, |slope| < 1 tells the branches apart, too.

The derivatives by beta are -slope² / 2 for the value, and -slope · curvature for the
slope.

Every kernel must match these to the promised 1.5 units in the last place. They are
written for `keras.ops` and run on whatever backend Keras has. `xp` may also be numpy,
jax.numpy, torch or tensorflow, which know the same functions by the same names: they
are faster, and `keras.ops.where`, `minimum` and `maximum` round float64 to float32 on
NumPy and torch.
"""

from typing import Any

import numpy as np
from keras import ops

from keras_smoothl1.typing import Beta, Tensor

SMALLEST_NORMAL = {
    dtype: float(np.finfo(dtype).tiny) for dtype in ("float32", "float64")
}


def value_and_slope(
    error: Tensor, beta: Tensor, *, xp: Any = ops
) -> tuple[Tensor, Tensor]:
    clipped = xp.minimum(xp.maximum(error, -beta), beta)
    # The divisor is beta, but no compiler knows: XLA and TensorFlow's graph optimizer
    # would multiply by 1 / beta instead, which is rounded once more and may exceed 1.
    slope = clipped / xp.maximum(clipped, beta)
    return slope * (error - 0.5 * clipped), slope


# Autodiff gets the next two right, in any mode and to any order: neither branch sees
# what belongs to the other, so none multiplies infinity by 0.


def value(error: Tensor, beta: Tensor, *, xp: Any = ops) -> Tensor:
    is_linear, near, divisor = _branches(error, beta, xp)
    far = xp.abs(error) - 0.5 * beta
    return xp.where(is_linear, far, near / divisor * (0.5 * near))


def slope(error: Tensor, beta: Tensor, *, xp: Any = ops) -> Tensor:
    is_linear, near, divisor = _branches(error, beta, xp)
    return xp.where(is_linear, xp.sign(error), near / divisor)


def _branches(error: Tensor, beta: Tensor, xp: Any) -> tuple[Tensor, Tensor, Tensor]:
    # So that neither a NaN error nor a NaN beta is linear: its slope would be a number.
    is_linear = xp.abs(error) >= beta
    near = xp.where(is_linear, xp.zeros_like(error), error)
    # Chosen per element, so that no compiler multiplies by 1 / beta here, either.
    return is_linear, near, xp.where(is_linear, xp.ones_like(error), beta)


def curvature(slope: Tensor, beta: Tensor, *, xp: Any = ops) -> Tensor:
    quadratic = xp.abs(slope) < 1
    return xp.where(quadratic, xp.ones_like(slope), xp.zeros_like(slope)) / beta


def value_by_beta(slope: Tensor) -> Tensor:
    return -0.5 * slope * slope


def slope_by_beta(slope: Tensor, curvature: Tensor) -> Tensor:
    return -slope * curvature


def half_underflows(beta: Beta, dtype: str) -> bool:
    """Whether beta / 2 is no normal number, which XLA and TensorFlow flush to 0."""
    smallest = min(beta) if isinstance(beta, tuple) else beta
    return smallest / 2 < SMALLEST_NORMAL[dtype]

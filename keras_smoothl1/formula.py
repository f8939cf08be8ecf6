"""The formula of the Smooth L1 loss, and its derivatives.

With d = y_pred - y_true (Girshick, Fast R-CNN, https://arxiv.org/abs/1504.08083, where
beta = 1 / sigma²):

    value(d)     = d² / (2 beta)     if |d| < beta
                 = |d| - beta / 2    otherwise

    slope(d)     = d / beta          if |d| < beta
                 = sign(d)           otherwise

    curvature(d) = 1 / beta          if |d| < beta
                 = 0                 otherwise

d² is never computed, because it leaves the range of the dtype long before the loss
does. With c = clip(d, -beta, beta), both branches have the same form: slope = c / beta
and value = slope · (d - c / 2). If |d| < beta, |d / beta| rounds to less than 1, so
|slope| < 1 also distinguishes the branches.

The derivatives with respect to beta are -slope² / 2 for the value, and
-slope · curvature for the slope.

Every kernel must be within 1.5 units in the last place of the exact result, as these
functions are. They are written for `keras.ops` and run on any backend of Keras. `xp`
may also be numpy, jax.numpy, torch or tensorflow, which have functions of the same
names. They are faster than `keras.ops`, whose `where`, `minimum` and `maximum` also
round float64 to float32 on NumPy and torch.
"""

from typing import Any

import numpy as np
from keras import ops

from keras_smoothl1.typing import Tensor

# beta / 2 and 1 / beta must be normal numbers: XLA and TensorFlow flush others to 0.
BETA_RANGE = {
    dtype: (2 * float(np.finfo(dtype).tiny), 1 / float(np.finfo(dtype).tiny))
    for dtype in ("float32", "float64")
}


def value_and_slope(
    error: Tensor, beta: Tensor, *, xp: Any = ops
) -> tuple[Tensor, Tensor]:
    # TensorFlow differentiates these operations where it loses the custom gradient. If
    # both arguments of minimum and maximum are equal, it does so by the first, so that
    # an error of beta belongs to the linear branch.
    clipped = xp.minimum(beta, xp.maximum(-beta, error))
    # The divisor equals beta, but compilers cannot infer that. With a constant divisor,
    # XLA and TensorFlow's graph optimizer would multiply by 1 / beta, which adds a
    # rounding error, and the slope could exceed 1.
    slope = clipped / xp.maximum(clipped, beta)
    return slope * (error - 0.5 * clipped), slope


# Automatic differentiation of the next two functions is correct in any mode and to any
# order. Where the quadratic branch is not selected, it computes with 0 and 1, so
# infinity is never multiplied by 0.


def value(error: Tensor, beta: Tensor, *, xp: Any = ops) -> Tensor:
    is_linear, near, divisor = _branches(error, beta, xp)
    far = xp.abs(error) - 0.5 * beta
    return xp.where(is_linear, far, near / divisor * (0.5 * near))


def slope(error: Tensor, beta: Tensor, *, xp: Any = ops) -> Tensor:
    is_linear, near, divisor = _branches(error, beta, xp)
    return xp.where(is_linear, xp.sign(error), near / divisor)


def _branches(error: Tensor, beta: Tensor, xp: Any) -> tuple[Tensor, Tensor, Tensor]:
    # False for a NaN error or a NaN beta: the linear branch would give a finite slope.
    is_linear = xp.abs(error) >= beta
    near = xp.where(is_linear, xp.zeros_like(error), error)
    # The divisor is selected per element, so that no compiler multiplies by 1 / beta.
    return is_linear, near, xp.where(is_linear, xp.ones_like(error), beta)


def curvature(slope: Tensor, beta: Tensor, *, xp: Any = ops) -> Tensor:
    quadratic = xp.abs(slope) < 1
    return xp.where(quadratic, xp.ones_like(slope), xp.zeros_like(slope)) / beta


def value_grad_beta(slope: Tensor) -> Tensor:
    return -0.5 * slope * slope


def slope_grad_beta(slope: Tensor, curvature: Tensor) -> Tensor:
    return -slope * curvature

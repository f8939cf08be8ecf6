"""The formula of the Smooth L1 loss, its slope and its bend.

With d = y_pred - y_true (Girshick, Fast R-CNN, https://arxiv.org/abs/1504.08083, where
beta = 1 / sigma²):

    value(d) = d² / (2 beta)     if |d| < beta
             = |d| - beta / 2    otherwise

    slope(d) = d / beta          if |d| < beta
             = sign(d)           otherwise

    bend(d)  = 1 / beta          if |d| < beta
             = 0                 otherwise

With c = clip(d, -beta, beta) both branches are one: slope = c / beta, and
value = slope · (d - c / 2). d² is never formed: it leaves the range of the dtype long
before the loss does.

Every kernel must match these to the promised 1.5 units in the last place. They are
written for `keras.ops` and run on whatever backend Keras has. `xp` may also be numpy,
jax.numpy, torch or tensorflow, which know the same functions by the same names: they
are faster, and `keras.ops.where`, `minimum` and `maximum` round float64 to float32 on
NumPy and torch.
"""

from typing import Any

from keras import ops

from keras_smoothl1.validation import Tensor


def value_and_slope(
    error: Tensor, beta: Tensor, xp: Any = ops
) -> tuple[Tensor, Tensor]:
    clipped = xp.minimum(xp.maximum(error, -beta), beta)
    # The divisor is beta, but no compiler knows: XLA and TensorFlow's graph optimizer
    # would multiply by 1 / beta instead, which is rounded once more and may exceed 1.
    slope = clipped / xp.maximum(clipped, beta)
    return slope * (error - 0.5 * clipped), slope


def value(error: Tensor, beta: Tensor, xp: Any = ops) -> Tensor:
    return value_and_slope(error, beta, xp)[0]


def slope(error: Tensor, beta: Tensor, xp: Any = ops) -> Tensor:
    return value_and_slope(error, beta, xp)[1]


def bend(error: Tensor, beta: Tensor, xp: Any = ops) -> Tensor:
    quadratic = xp.abs(error) < beta
    return xp.where(quadratic, xp.ones_like(error), xp.zeros_like(error)) / beta

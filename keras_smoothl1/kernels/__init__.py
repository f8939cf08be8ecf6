"""The elementwise loss, differentiated by its closed-form slope, for Keras's backend.

`smooth_l1(error, beta)` returns one loss for each error. `beta` is a number, a tuple of
numbers for the entries of the last axis, or a scalar tensor, and then the loss is
differentiable by it. `xp` is the backend's own array module, for `reference` and for
what must keep float64 (see there why `keras.ops` does not).

The backend is the one that Keras has chosen and imported already; no other is touched.
"""

import importlib
from typing import Any

import keras

_backend = keras.backend.backend()
_kernel: Any = importlib.import_module(
    f"{__name__}."
    + (_backend if _backend in ("jax", "tensorflow", "torch") else "evaluation")
)
smooth_l1 = _kernel.smooth_l1
xp = _kernel.xp

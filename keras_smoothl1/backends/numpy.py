"""NumPy: the reference with NumPy's own functions, which preserve float64.

`keras.ops.where`, `minimum` and `maximum` round to float32 on this backend. It has no
automatic differentiation.
"""

from typing import Any

import numpy

from keras_smoothl1.backends.base import Backend


class NumpyBackend(Backend):
    xp: Any = numpy

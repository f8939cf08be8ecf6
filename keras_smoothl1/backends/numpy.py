"""NumPy: the reference in NumPy's own functions, which keep float64.

There is no autodiff. `keras.ops.where`, `minimum` and `maximum` round to float32.
"""

from typing import Any

import numpy

from keras_smoothl1.backends.base import Backend


class NumpyBackend(Backend):
    xp: Any = numpy

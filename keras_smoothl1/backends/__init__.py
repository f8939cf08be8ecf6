"""The differences between backends, behind one interface: see `base.Backend`.

`backend` is the `Backend` for the current backend of Keras, which is already imported.
No other backend is imported.
"""

import keras

from keras_smoothl1.backends.base import Backend

__all__ = ["Backend", "backend"]


def _backend_of_keras() -> Backend:
    name = keras.backend.backend()
    if name == "jax":
        from keras_smoothl1.backends.jax import JaxBackend

        return JaxBackend()
    if name == "numpy":
        from keras_smoothl1.backends.numpy import NumpyBackend

        return NumpyBackend()
    if name == "tensorflow":
        from keras_smoothl1.backends.tensorflow import TensorFlowBackend

        return TensorFlowBackend()
    if name == "torch":
        from keras_smoothl1.backends.torch import TorchBackend

        return TorchBackend()
    return Backend()


backend = _backend_of_keras()

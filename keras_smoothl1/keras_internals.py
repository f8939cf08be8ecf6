"""The private names of Keras that the package uses.

- `get_keras_mask`: layers attach a mask to their output. Where tensors accept no new
  attributes, as on JAX, Keras keeps masks in a table that only this function can read.
- `scale_loss_for_distribution`: under `tf.distribute`, Keras divides each mean by the
  number of replicas, and undoes this before reporting. With another divisor, the
  gradients would not be those of the reported loss.
- `get_stateless_scope`: shows whether Keras computes values or only infers shapes.
- `get_torch_device`: the device to which Keras moves torch tensors. Letting Keras
  convert a tensor that is already there takes longer than all other preparations of a
  small call.

tests/test_keras_internals.py fails if Keras moves or changes any of them.
"""

import keras

# From the defining module: keras.src.backend no longer exports it in Keras 3.16.
from keras.src.backend.common.masking import get_keras_mask
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.losses.loss import scale_loss_for_distribution

if keras.backend.backend() == "torch":
    try:
        from keras.src.backend.torch.ops.core import get_device as get_torch_device
    except ImportError:  # before Keras 3.16
        from keras.src.backend.torch.core import get_device as get_torch_device

__all__ = [
    "get_keras_mask",
    "get_stateless_scope",
    "get_torch_device",
    "scale_loss_for_distribution",
]

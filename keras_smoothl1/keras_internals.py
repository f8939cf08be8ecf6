"""What a loss needs from Keras and has no public name there.

- `get_keras_mask`: layers leave the mask of a tensor on the tensor. Backends whose
  tensors take no attributes, JAX and its tracers among them, keep it in a table that
  only this function knows.
- `scale_loss_for_distribution`: under `tf.distribute`, Keras divides each mean by the
  number of replicas, and multiplies again before it reports. A loss that divided in
  another way would train with another step than it reports.
- `get_stateless_scope`: whether Keras computes something, or asks for shapes alone.
- `get_torch_device`: to which device Keras moves the tensors of torch. Asking Keras to
  move one that is there takes longer than all else that is done before the loss.

tests/test_keras_internals.py fails when Keras moves or changes any of them.
"""

import keras

# Where it is defined: Keras 3.16 no longer hands it on to keras.src.backend.
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

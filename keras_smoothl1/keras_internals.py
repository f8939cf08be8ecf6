"""The two things that a loss needs from Keras and that have no public name there.

- `get_keras_mask`: layers leave the mask of a tensor on the tensor. Backends whose
  tensors take no attributes, JAX and its tracers among them, keep it in a table that
  only this function knows.
- `scale_loss_for_distribution`: under `tf.distribute`, Keras divides each mean by the
  number of replicas, and multiplies again before it reports. A loss that divided in
  another way would train with another step than it reports.

tests/test_keras_internals.py fails when Keras moves or changes either.
"""

# Where it is defined: Keras 3.16 no longer hands it on to keras.src.backend.
from keras.src.backend.common.masking import get_keras_mask
from keras.src.losses.loss import scale_loss_for_distribution

__all__ = ["get_keras_mask", "scale_loss_for_distribution"]

"""The private name of TensorFlow that the package needs.

- The tangents of tensors. `tf.custom_gradient` gives a rule for reverse mode alone, and
  what is computed beside it has a tangent of 0 for `tf.autodiff.ForwardAccumulator`. No
  public function says whether one is at work.

tests/test_tensorflow_internals.py fails when TensorFlow moves or changes it.
"""

import tensorflow as tf
from tensorflow.python.eager import forwardprop_util

__all__ = ["have_tangents"]


def have_tangents(tensors: list[tf.Tensor]) -> bool:
    """Whether a `tf.autodiff.ForwardAccumulator` follows any of the tensors."""
    return bool(forwardprop_util.pack_tangents(tensors).tangents)

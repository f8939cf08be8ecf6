"""The private name of TensorFlow that the package uses.

- `forwardprop_util.pack_tangents`: the tangents of tensors. `tf.custom_gradient`
  defines a gradient for reverse mode only; `tf.autodiff.ForwardAccumulator` would
  compute a tangent of 0. No public function reports whether an accumulator is active.

tests/test_tensorflow_internals.py fails if TensorFlow moves or changes it.
"""

import tensorflow as tf
from tensorflow.python.eager import forwardprop_util

__all__ = ["have_tangents"]


def have_tangents(tensors: list[tf.Tensor]) -> bool:
    """Whether a `tf.autodiff.ForwardAccumulator` watches any of the tensors."""
    return bool(forwardprop_util.pack_tangents(tensors).tangents)

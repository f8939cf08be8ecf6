"""The private names of TensorFlow that the package uses.

- `should_record_backprop`: whether a tape watches a tensor. For a tf.function that is
  called eagerly, TensorFlow computes the gradients with respect to all inputs. They
  double the time of a step with weights.
- `pack_tangents`: whether a forward accumulator watches a tensor. A tape cannot
  differentiate the tangent of a tf.function.
- `get_gradient_function`, `Operation._gradient_function` and `Operation._clear_attr`:
  in a graph, `tf.custom_gradient` stores the name of the gradient in an attribute of an
  operation. A graph that was imported, or saved without custom gradients, still has the
  attribute but not the gradient, and cannot be differentiated at all. Here, only the
  operation in Python has the gradient. TensorFlow uses the same field for functions.

tests/test_tensorflow_internals.py fails if TensorFlow moves or changes them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager.forwardprop_util import pack_tangents
from tensorflow.python.eager.record import should_record_backprop
from tensorflow.python.framework.ops import get_gradient_function

__all__ = ["custom_gradient", "have_tangents", "is_watched"]


def is_watched(x: tf.Tensor) -> bool:
    """Whether a `tf.GradientTape` watches an eager tensor."""
    return bool(should_record_backprop([x]))


def have_tangents(inputs: Sequence[Any]) -> bool:
    """Whether a `tf.autodiff.ForwardAccumulator` watches any tensor of the inputs."""
    tensors = [x for x in inputs if tf.is_tensor(x)]
    return bool(pack_tangents(tensors).tangents)


def custom_gradient(function: Callable[..., Any]) -> Callable[..., tf.Tensor]:
    """Like `tf.custom_gradient`, for a function that returns one tensor.

    A graph that is saved or imported is differentiated by its operations.
    """
    with_gradient = tf.custom_gradient(function)

    @functools.wraps(function)
    def call(*tensors: tf.Tensor) -> tf.Tensor:
        result = with_gradient(*tensors)
        if not tf.executing_eagerly():
            result.op._gradient_function = get_gradient_function(result.op)
            result.op._clear_attr("_gradient_op_type")
        return result

    return call

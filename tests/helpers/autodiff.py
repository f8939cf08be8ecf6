"""Gradients by the autodiff of Keras's backend."""

import keras
import numpy as np

BACKEND = keras.backend.backend()


def value_and_gradients(function, *inputs):
    """The value of function(*inputs), and the gradients of the sum of its entries."""
    if BACKEND == "jax":
        import jax

        inputs = [keras.ops.convert_to_tensor(x) for x in inputs]
        value = function(*inputs)
        gradients = jax.grad(
            lambda *x: function(*x).sum(), argnums=tuple(range(len(inputs)))
        )(*inputs)
    elif BACKEND == "torch":
        inputs = [
            keras.ops.convert_to_tensor(x).detach().requires_grad_() for x in inputs
        ]
        value = function(*inputs)
        value.sum().backward()
        gradients = [x.grad for x in inputs]
    else:
        import tensorflow as tf

        inputs = [tf.constant(x) for x in inputs]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = function(*inputs)
        gradients = tape.gradient(value, inputs)
    return to_numpy(value), [to_numpy(gradient) for gradient in gradients]


def to_numpy(x):
    if BACKEND == "torch":
        x = x.detach()
    if keras.backend.standardize_dtype(x.dtype) == "bfloat16":  # NumPy has none
        x = keras.ops.cast(x, "float32")
    return np.asarray(keras.ops.convert_to_numpy(x))

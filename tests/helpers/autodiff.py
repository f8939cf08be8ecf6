"""Derivatives by the automatic differentiation of the backend."""

import keras
import numpy as np

BACKEND = keras.backend.backend()


def value_and_gradients(function, *inputs):
    """Returns function(*inputs), and the gradient of its sum wrt each input."""
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
    if keras.backend.standardize_dtype(x.dtype) == "bfloat16":  # not a NumPy dtype
        x = keras.ops.cast(x, "float32")
    return np.asarray(keras.ops.convert_to_numpy(x))


def derivative(mode, function, direction):
    """Returns a function of x: a directional derivative of a scalar function.

    "forward" gives the first derivative along the direction, a scalar. The other modes
    give the product of the Hessian and the direction, in the shape of x.
    """
    forward, reverse = AUTODIFF[BACKEND]()
    direction = keras.ops.convert_to_tensor(direction)
    if mode == "forward":
        return forward(function, direction)
    if mode == "forward over reverse":
        return forward(reverse(function), direction)
    if mode == "reverse over forward":
        return reverse(forward(function, direction))
    assert mode == "reverse twice"
    gradient = reverse(function)
    return reverse(lambda x: keras.ops.sum(gradient(x) * direction))


def _jax_autodiff():
    import jax

    def forward(function, direction):
        return lambda x: jax.jvp(function, (x,), (direction,))[1]

    return forward, jax.grad


def _torch_autodiff():
    import torch

    def forward(function, direction):
        return lambda x: torch.func.jvp(function, (x,), (direction,))[1]

    return forward, torch.func.grad


def _tensorflow_autodiff():
    import tensorflow as tf

    def forward(function, direction):
        def tangent(x):
            with tf.autodiff.ForwardAccumulator(x, direction) as accumulator:
                value = function(x)
            return accumulator.jvp(value)

        return tangent

    def reverse(function):
        def gradient(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = function(x)
            return tape.gradient(value, x)

        return gradient

    return forward, reverse


AUTODIFF = {
    "jax": _jax_autodiff,
    "tensorflow": _tensorflow_autodiff,
    "torch": _torch_autodiff,
}

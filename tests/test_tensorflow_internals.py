"""Fails when TensorFlow moves or changes a private name that the package uses."""

import pytest
from helpers.autodiff import BACKEND

if BACKEND != "tensorflow":
    pytest.skip("for TensorFlow only", allow_module_level=True)

import tensorflow as tf

from keras_smoothl1.backends.tensorflow import internals


@internals.custom_gradient
def seven(x):
    """The identity, with a gradient that is not that of its operations."""
    return x + 0, lambda grad_output: 7 * grad_output


def test_a_tape_watches_a_tensor_and_what_is_computed_from_it():
    x, other = tf.ones([2]), tf.ones([2])
    with tf.GradientTape() as tape:
        tape.watch(x)
        assert internals.is_watched(x)
        assert internals.is_watched(2 * x)
        assert not internals.is_watched(other)
    assert not internals.is_watched(x)


def test_a_forward_accumulator_watches_a_tensor():
    x, other = tf.ones([2]), tf.ones([2])
    with tf.autodiff.ForwardAccumulator(x, tf.ones([2])):
        assert internals.have_tangents([None, 0.5, other, x])
        assert internals.have_tangents([2 * x])
        assert not internals.have_tangents([other])
    assert not internals.have_tangents([x])


@pytest.mark.parametrize("in_graph", ["nothing", "loss", "gradient", "loss by XLA"])
def test_a_custom_gradient_applies_eagerly_and_in_graphs(in_graph):
    loss = {
        "loss": tf.function(seven),
        "loss by XLA": tf.function(seven, jit_compile=True),
    }.get(in_graph, seven)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = loss(x)
        return tape.gradient(y, x)

    run = tf.function(gradient) if in_graph == "gradient" else gradient
    assert run(tf.constant(1.0)) == 7


def test_a_graph_without_its_gradient_is_differentiated_by_its_operations():
    graph = tf.function(seven, [tf.TensorSpec([])]).get_concrete_function().graph
    definition = graph.as_graph_def()

    @tf.function
    def imported(x):
        names = graph.inputs[0].op.name, graph.outputs[0].name
        return tf.graph_util.import_graph_def(definition, {names[0]: x}, names[1:])[0]

    x = tf.constant(1.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = imported(x)
    assert tape.gradient(y, x) == 1

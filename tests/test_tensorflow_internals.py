"""The private name of TensorFlow is where the package looks for it."""

import pytest
from helpers.autodiff import BACKEND

if BACKEND != "tensorflow":
    pytest.skip("TensorFlow's alone", allow_module_level=True)

import tensorflow as tf

from keras_smoothl1.backends.tensorflow import internals


def test_a_tensor_has_a_tangent_while_an_accumulator_follows_it():
    x, other = tf.ones([2]), tf.ones([2])
    assert not internals.have_tangents([x])
    with tf.autodiff.ForwardAccumulator(x, tf.ones([2])):
        assert internals.have_tangents([other, x])
        assert internals.have_tangents([2 * x])
        assert not internals.have_tangents([other])
        assert not internals.have_tangents([])
    assert not internals.have_tangents([x])


def test_a_tensor_of_a_graph_has_a_tangent_if_the_graph_makes_one():
    found = []

    @tf.function(autograph=False)
    def run(x):
        found.append(internals.have_tangents([x]))
        with tf.autodiff.ForwardAccumulator(x, tf.ones([2])):
            found.append(internals.have_tangents([x]))

    run(tf.ones([2]))
    assert found == [False, True]

"""Fails when TensorFlow moves or changes the private name that the package uses."""

import pytest
from helpers.autodiff import BACKEND

if BACKEND != "tensorflow":
    pytest.skip("for TensorFlow only", allow_module_level=True)

import tensorflow as tf

from keras_smoothl1.backends.tensorflow import internals


def test_a_tensor_has_a_tangent_while_an_accumulator_watches_it():
    x, other = tf.ones([2]), tf.ones([2])
    assert not internals.have_tangents([x])
    with tf.autodiff.ForwardAccumulator(x, tf.ones([2])):
        assert internals.have_tangents([other, x])
        assert internals.have_tangents([2 * x])
        assert not internals.have_tangents([other])
        assert not internals.have_tangents([])
    assert not internals.have_tangents([x])


def test_a_graph_tensor_has_a_tangent_if_the_graph_watches_it():
    results = []

    @tf.function(autograph=False)
    def run(x):
        results.append(internals.have_tangents([x]))
        with tf.autodiff.ForwardAccumulator(x, tf.ones([2])):
            results.append(internals.have_tangents([x]))

    run(tf.ones([2]))
    assert results == [False, True]

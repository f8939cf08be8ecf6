"""Fails when Keras moves or changes the internals that keras_internals uses."""

import keras
import numpy as np
import pytest
from helpers.autodiff import BACKEND, to_numpy

from keras_smoothl1 import SmoothL1Loss
from keras_smoothl1.keras_internals import get_keras_mask, scale_loss_for_distribution


def test_the_mask_of_a_masking_layer_can_be_read():
    y = keras.layers.Masking()(np.array([[[1.0], [0.0]]], "float32"))
    np.testing.assert_array_equal(to_numpy(get_keras_mask(y)), [[True, False]])


def test_the_mask_of_other_tensors_is_none():
    assert get_keras_mask(keras.ops.ones((2,))) is None
    assert get_keras_mask(np.ones(2)) is None


def test_the_loss_is_not_scaled_without_a_strategy():
    assert to_numpy(scale_loss_for_distribution(keras.ops.ones(()))) == 1


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute needs TensorFlow")
@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_with_sample_weight", None])
def test_tf_distribute_scales_the_loss_like_those_of_keras(reduction):
    import tensorflow as tf

    y_pred = np.arange(6, dtype="float32").reshape(3, 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    with strategy.scope():
        ours = SmoothL1Loss(reduction=reduction, reduce_dims=-1, keepdims=False)
        huber = keras.losses.Huber(reduction=reduction)
        np.testing.assert_allclose(
            to_numpy(ours(y_pred * 0, y_pred)),
            to_numpy(huber(y_pred * 0, y_pred)),
            rtol=1e-6,
        )

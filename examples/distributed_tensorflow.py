"""
Distributed training with TensorFlow
====================================

Five training steps on two devices give the same weights as on one. MirroredStrategy
gives each device a part of every batch, and adds the gradients. Keras divides means by
the number of devices first, which is correct for parts of equal size, and leaves sums
unchanged. With "mean_with_sample_weight", each device would divide by the sum of the
weights in its part. Instead, use a sum with ``reduce_dims=-1``, and divide the weights
by their sum over the batch. To run it::

    KERAS_BACKEND=tensorflow python examples/distributed_tensorflow.py
"""

import command_line
import compare_weights
import keras
import numpy as np
import tensorflow as tf

from keras_smoothl1 import SmoothL1Loss


def train(x, y, weights, reduction, many):
    """Returns the weights after five steps, on two devices or on one."""
    loss = SmoothL1Loss(beta=1 / 9, reduction=reduction)
    parts = (x, y) if weights is None else (x, y, weights)
    batches = tf.data.Dataset.from_tensor_slices(parts).batch(
        compare_weights.GLOBAL_BATCH, drop_remainder=True
    )
    if many and reduction == "mean_with_sample_weight" and weights is not None:
        loss = SmoothL1Loss(beta=1 / 9, reduction="sum", reduce_dims=-1)
        batches = batches.map(lambda x, y, w: (x, y, w / tf.reduce_sum(w)))

    devices = ["CPU:0", "CPU:1"] if many else ["CPU:0"]
    with tf.distribute.MirroredStrategy(devices).scope():
        model = compare_weights.make_model()
        rate = compare_weights.learning_rate(reduction)
        model.compile(keras.optimizers.SGD(rate), loss)
    model.fit(batches, shuffle=False, verbose=0)  # Keras cannot shuffle a dataset
    return [np.asarray(weight) for weight in model.get_weights()]


if __name__ == "__main__":
    command_line.require_backend("tensorflow")
    out = command_line.make_parser(__doc__).parse_args().out
    # Split the CPU into two devices. To use GPUs, remove this call.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    devices = len(tf.config.list_logical_devices("CPU"))
    path = out / "distributed_tensorflow.json"
    compare_weights.compare_devices("TensorFlow", devices, train, path)

"""The Smooth L1 loss for Keras 3, on TensorFlow, PyTorch and JAX."""

from keras_smoothl1.losses import SmoothL1Loss, smooth_l1_loss
from keras_smoothl1.metrics import SmoothL1Error
from keras_smoothl1.version import __version__

__all__ = ["SmoothL1Error", "SmoothL1Loss", "__version__", "smooth_l1_loss"]

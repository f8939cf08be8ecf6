"""The Smooth L1 loss for Keras 3, on TensorFlow, PyTorch and JAX."""

import itertools
import sys

from keras_smoothl1.version import __version__

# `python -m keras_smoothl1` must run, and report the problem, even if Keras cannot be
# imported because its default backend is missing. While Python looks for the module to
# run, argv[0] is "-m".
if sys.argv[:1] != ["-m"] or ("-m", __name__) not in itertools.pairwise(sys.orig_argv):
    from keras_smoothl1.losses import SmoothL1Loss, smooth_l1_loss
    from keras_smoothl1.metrics import SmoothL1Error

__all__ = ["SmoothL1Error", "SmoothL1Loss", "__version__", "smooth_l1_loss"]

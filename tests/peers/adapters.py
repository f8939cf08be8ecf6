"""Replaces Keras's own losses with this package's loss, and records the calls.

With d = y_pred - y_true and SmoothL1(d, beta):

    d²              = 2 beta SmoothL1(d, beta)    if |d| < beta
    |d|             = SmoothL1(d, beta)           up to beta / 2, as beta goes to 0
    Huber(d, delta) = delta SmoothL1(d, delta)

The betas are powers of two, so that scaling by them does not round. Keras's losses
average over the last axis first, hence `reduce_dims=-1`.
"""

import sys
from types import FunctionType

import keras
from keras.src.losses import losses
from keras.src.metrics import regression_metrics

from keras_smoothl1 import SmoothL1Error, SmoothL1Loss, smooth_l1_loss

ABOVE_ALL_ERRORS = 2.0**30
BELOW_ALL_ERRORS = 2.0**-100

# The name of each method below that ran, or was traced in a compiled step.
calls = []


def record(method):
    calls.append(method)


if keras.backend.backend() == "torch":
    import torch

    # Otherwise each call would recompile the step, as the list has grown.
    record = torch.compiler.assume_constant_result(record)


@keras.saving.register_keras_serializable("peers")
def mean_squared_error(y_true, y_pred):
    record("mean_squared_error")
    beta = ABOVE_ALL_ERRORS
    loss = smooth_l1_loss(y_true, y_pred, beta=beta, reduce_dims=-1, keepdims=False)
    return 2 * beta * loss


def my_mean_squared_error(y_true, y_pred):
    return mean_squared_error(y_true, y_pred)


@keras.saving.register_keras_serializable("peers")
def mean_absolute_error(y_true, y_pred):
    record("mean_absolute_error")
    beta = BELOW_ALL_ERRORS
    return smooth_l1_loss(y_true, y_pred, beta=beta, reduce_dims=-1, keepdims=False)


class ScaledLoss(SmoothL1Loss):
    """A loss with the constructor of Keras's own losses, times a constant."""

    default_name = None
    beta_and_scale = None
    reduce_last = True

    def __init__(self, reduction="sum_over_batch_size", name=None, dtype=None):
        beta, self.scale = self.beta_and_scale
        super().__init__(
            beta,
            reduction,
            reduce_dims=-1 if self.reduce_last else None,
            keepdims=False,
            name=name or self.default_name,
            dtype=dtype,
        )

    def __call__(self, y_true, y_pred, sample_weight=None):
        record(f"{type(self).__name__}.__call__")
        return self.scale * super().__call__(y_true, y_pred, sample_weight)

    def get_config(self):
        record(f"{type(self).__name__}.get_config")
        config = super().get_config()
        # The class determines the other settings.
        return {key: config[key] for key in ("reduction", "name", "dtype")}


@keras.saving.register_keras_serializable("peers")
class MeanSquaredError(ScaledLoss):
    default_name = "mean_squared_error"
    beta_and_scale = ABOVE_ALL_ERRORS, 2 * ABOVE_ALL_ERRORS


@keras.saving.register_keras_serializable("peers")
class MeanAbsoluteError(ScaledLoss):
    default_name = "mean_absolute_error"
    beta_and_scale = BELOW_ALL_ERRORS, 1.0


@keras.saving.register_keras_serializable("peers")
class Huber(ScaledLoss):
    default_name = "huber_loss"

    def __init__(self, delta=1.0, **kwargs):
        self.beta_and_scale = delta, delta
        super().__init__(**kwargs)

    def get_config(self):
        return {"delta": self.beta, **super().get_config()}


class SquaredError(ScaledLoss):
    """ExampleLoss of loss_test.py, which does not average over the last axis."""

    default_name = "example_loss"
    beta_and_scale = MeanSquaredError.beta_and_scale
    reduce_last = False


class ScaledError(SmoothL1Error):
    default_name = None
    beta_and_scale = None

    def __init__(self, name=None, dtype=None):
        beta, self.scale = self.beta_and_scale
        super().__init__(beta, name=name or self.default_name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        record(f"{type(self).__name__}.update_state")
        super().update_state(y_true, y_pred, sample_weight)

    def result(self):
        return self.scale * super().result()

    def get_config(self):
        record(f"{type(self).__name__}.get_config")
        return {"name": self.name, "dtype": self.dtype}


@keras.saving.register_keras_serializable("peers")
class MetricOfSquaredError(ScaledError):
    default_name = "mean_squared_error"
    beta_and_scale = MeanSquaredError.beta_and_scale


@keras.saving.register_keras_serializable("peers")
class MetricOfAbsoluteError(ScaledError):
    default_name = "mean_absolute_error"
    beta_and_scale = MeanAbsoluteError.beta_and_scale


REPLACED = {
    losses.MeanSquaredError: MeanSquaredError,
    losses.MeanAbsoluteError: MeanAbsoluteError,
    losses.Huber: Huber,
    losses.mean_squared_error: mean_squared_error,
    losses.mean_absolute_error: mean_absolute_error,
    regression_metrics.MeanSquaredError: MetricOfSquaredError,
    regression_metrics.MeanAbsoluteError: MetricOfAbsoluteError,
}


def replace_in_keras(patch):
    """Replaces the losses and metrics in all modules and name tables of Keras."""
    for namespace, name, ours in references():
        patch.setitem(namespace, name, ours)


def references():
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] != "keras":
            continue
        for namespace in (vars(module), getattr(module, "ALL_OBJECTS_DICT", {})):
            for name, value in list(namespace.items()):
                if isinstance(value, type | FunctionType) and value in REPLACED:
                    yield namespace, name, REPLACED[value]

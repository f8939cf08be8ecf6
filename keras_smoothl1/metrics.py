"""The public metric: `SmoothL1Error`."""

from typing import Any

import keras

from keras_smoothl1 import reduction, validation
from keras_smoothl1.backends import backend
from keras_smoothl1.keras_internals import get_keras_mask


@keras.saving.register_keras_serializable("keras_smoothl1")
class SmoothL1Error(keras.metrics.Metric):
    """Computes the mean Smooth L1 loss over all elements since the last reset.

    With sample weights, the result is the weighted mean: the sum of the weighted losses
    divided by the sum of the weights after broadcasting. Masked elements are
    not counted. Weights and masks are broadcast as in `SmoothL1Loss`. On JAX, Keras
    drops the mask of the predictions before it updates metrics in `fit()`, but not in
    `evaluate()`. This applies to all metrics.

    Args:
        beta: The error at which the loss turns from quadratic to linear, in the unit of
            `y_pred`. A positive number, or a sequence with one positive number for each
            entry of the last axis of `y_pred`. Defaults to `1.0`.
        name: Optional name for the metric instance.
        dtype: The dtype of the result, as in `SmoothL1Loss`. Defaults to `None`, which
            means `keras.backend.floatx()`.

    Returns:
        `result()` returns a scalar, which is 0 if no element has been counted.

    Raises:
        TypeError: If `beta` has an unsupported type. When called, if an argument does
            not consist of real numbers.
        ValueError: If `beta` or `dtype` has an unsupported value. When called, if
            shapes do not match.

    Example:

    >>> import keras
    >>> from keras_smoothl1 import SmoothL1Error
    >>> metric = SmoothL1Error(beta=0.5)
    >>> metric.update_state([[0.0, 1.0]], [[0.25, 1.0]])
    >>> metric.update_state([[0.0, 0.0]], [[3.0, 0.0]])
    >>> float(metric.result())
    0.703125

    With the `compile()` API:

    >>> model = keras.Sequential([keras.layers.Dense(4)])
    >>> model.compile(loss="mse", metrics=[SmoothL1Error(beta=1 / 9)])
    """

    def __init__(
        self,
        beta: Any = 1.0,
        name: str | None = "smooth_l1_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            name=validation.standardize_name(name),
            dtype=validation.standardize_dtype(dtype),
        )
        self._compute_dtype = validation.compute_dtype(self.dtype)
        self.beta = validation.standardize_beta(beta, self._compute_dtype)
        # Never float16, which cannot count beyond 2048.
        self.total, self.total_remainder, self.count, self.count_remainder = (
            self.add_variable((), "zeros", dtype=self._compute_dtype, name=name)
            for name in ("total", "total_remainder", "count", "count_remainder")
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Includes the losses of a batch in the mean.

        Args:
            y_true: The targets, in the shape of `y_pred`. A trailing dimension of 1
                may be missing on either.
            y_pred: The predictions, of any shape.
            sample_weight: Optional weights, broadcast to `y_pred` from the left.
        """
        y_true, y_pred, weight, mask = reduction.standardize_inputs(
            y_true,
            y_pred,
            sample_weight,
            get_keras_mask(y_pred),
            dtype=self._compute_dtype,
        )
        y_pred = validation.check_beta_for(self.beta, y_pred)
        weight = mask if weight is None else weight
        # In the order of the arguments and results of add_batch. A subclass may have
        # more variables.
        state = self.total, self.total_remainder, self.count, self.count_remainder
        values = reduction.add_batch(
            y_true, y_pred, self.beta, weight, *(x.value for x in state)
        )
        for variable, value in zip(state, values, strict=True):
            variable.assign(value)

    def result(self) -> Any:
        total = self.total.value + self.total_remainder.value
        count = self.count.value + self.count_remainder.value
        return keras.ops.cast(backend.divide_no_nan(total, count), self.dtype)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return validation.from_config(cls, config)

    def get_config(self) -> dict[str, Any]:
        return {
            "beta": validation.to_json(self.beta),
            "name": self.name,
            "dtype": self.dtype,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # Keras's own __reduce__ drops the state of the metric.
        state = [keras.ops.convert_to_numpy(variable) for variable in self.variables]
        return type(self).from_config, (self.get_config(),), state

    def __setstate__(self, state: list[Any]) -> None:
        for variable, value in zip(self.variables, state, strict=True):
            variable.assign(value)

    def __repr__(self) -> str:
        return validation.to_repr(self)

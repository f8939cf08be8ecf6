"""The public loss: the class `SmoothL1Loss` and the function `smooth_l1_loss`."""

from typing import Any

import keras
import numpy as np

from keras_smoothl1 import validation
from keras_smoothl1.backends import backend
from keras_smoothl1.keras_internals import get_keras_mask
from keras_smoothl1.reduction import reduced_loss
from keras_smoothl1.typing import Beta, Tensor

NUMPY_TYPES = np.ndarray, np.generic  # a tuple: torch.compile cannot trace X | Y


@keras.saving.register_keras_serializable("keras_smoothl1")
class SmoothL1Loss(keras.losses.Loss):
    """Computes the Smooth L1 loss between `y_true` and `y_pred`.

    The loss is quadratic for errors smaller than `beta` and linear for larger errors,
    so that the gradient of an outlier is no larger than that of any other large error:

    ```
    loss = 0.5 * (y_pred - y_true)**2 / beta    if |y_pred - y_true| < beta
         = |y_pred - y_true| - 0.5 * beta       otherwise
    ```

    See: [Fast R-CNN](https://arxiv.org/abs/1504.08083), where `beta = 1 / sigma**2`.

    It equals `keras.losses.Huber(delta=beta)` divided by `beta`. The slope of a large
    error is 1 for every `beta`, and as `beta` approaches 0 the loss approaches the
    absolute error.

    With `reduce_dims=None`, the reduction is applied to the losses of all elements.
    Keras's own losses first average over the last axis, as `reduce_dims=-1` does. The
    mean is the same either way, but `reduction="sum"` and `None` give other results.

    Weights and masks apply to elements. In `loss(y_true, y_pred, sample_weight)`, the
    weights are broadcast to `y_pred` from the left: their shape is `()`, `(batch,)`,
    `(batch, d0)` and so on up to the shape of `y_pred`, and any dimension may be 1. The
    mask that `Masking` or `Embedding(mask_zero=True)` attaches to `y_pred` is broadcast
    in the same way. Masked elements are not counted in means. An element that is masked
    or has weight 0 has loss 0 and slope 0, even if its target or prediction is NaN.

    Sparse tensors are converted to dense tensors. Ragged tensors are supported if all
    ragged arguments have rows of the same lengths as `y_pred`; each value counts as one
    element. Sizes that TensorFlow knows only at run time are checked then.

    Pass the loss object to `compile()`. Keras cannot look it up by its name.

    Args:
        beta: The error at which the loss turns from quadratic to linear, in the unit of
            `y_pred`. A positive number, or a sequence with one positive number for each
            entry of the last axis of `y_pred`. Defaults to `1.0`.
        reduction: Type of reduction to apply to the weighted losses.
            `"sum_over_batch_size"` (the default), `"mean"` and `"auto"` divide the sum
            of the losses by the number of elements that are not masked.
            `"mean_with_sample_weight"` divides the sum by the sum of the weights.
            `"sum"` returns the sum. `None` and `"none"` apply no reduction. A mean over
            no elements is 0.
        reduce_dims: Dimensions to average over before the reduction: `None`, an int or
            a sequence of ints. The weighted losses are summed over these dimensions and
            divided by the number of elements that are not masked. The reduction is then
            applied to these means; means over no elements are not counted. For images
            of shape `(batch, channels, height, width)`, `(1, 2, 3)` computes one loss
            per image. Defaults to `None`.
        keepdims: Whether to keep the dimensions in `reduce_dims` with size 1. Defaults
            to `True`.
        name: Optional name for the loss instance.
        dtype: The dtype of the result: `"float16"`, `"bfloat16"`, `"float32"`,
            `"float64"`, or a `keras.DTypePolicy` or its name. float16 and bfloat16 are
            computed in float32 and rounded once, at the end. Defaults to `None`, which
            means `keras.backend.floatx()`.

    Returns:
        `loss(y_true, y_pred, sample_weight=None)` returns a scalar. Without a
        reduction, it returns the weighted losses in the shape of `y_pred`; dimensions
        in `reduce_dims` have size 1 or are removed. `y_true` must have the shape of
        `y_pred`, except that a trailing dimension of 1 may be missing on either.

    Raises:
        TypeError: If an argument has an unsupported type. When called, if an argument
            does not consist of real numbers, or is ragged and its rows differ in length
            from those of `y_pred`.
        ValueError: If `beta`, `reduction`, `reduce_dims` or `dtype` has an unsupported
            value. When called, if shapes do not match.

    Example:

    >>> import keras, numpy as np
    >>> from keras_smoothl1 import SmoothL1Loss
    >>> y_true = [[0.0, 1.0], [0.0, 0.0]]
    >>> y_pred = [[0.5, 1.0], [3.0, 0.0]]
    >>> float(SmoothL1Loss()(y_true, y_pred))
    0.65625
    >>> np.asarray(SmoothL1Loss(reduction=None)(y_true, y_pred))
    array([[0.125, 0.   ],
           [2.5  , 0.   ]], dtype=float32)

    With the `compile()` API:

    >>> model = keras.Sequential([keras.layers.Dense(4)])
    >>> model.compile(optimizer="adam", loss=SmoothL1Loss(beta=1 / 9))
    """

    def __init__(
        self,
        beta: Any = 1.0,
        reduction: str | None = "sum_over_batch_size",
        reduce_dims: Any = None,
        keepdims: bool = True,
        name: str | None = "smooth_l1_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            name=validation.standardize_name(name),
            reduction=validation.standardize_reduction(reduction),
            dtype=validation.standardize_dtype(dtype),
        )
        self.beta = validation.standardize_beta(
            beta, validation.compute_dtype(self.dtype)
        )
        self.reduce_dims = validation.standardize_reduce_dims(reduce_dims)
        self.keepdims = validation.standardize_keepdims(keepdims)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.call is not SmoothL1Loss.call:
            raise TypeError(
                "A subclass of SmoothL1Loss must not override call(), because "
                "SmoothL1Loss.__call__() applies the weights and never uses call(). "
                "Override __call__() or subclass keras.losses.Loss. "
                f"Received: {cls.__name__}"
            )

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        return reduced_loss(
            y_true,
            y_pred,
            sample_weight,
            get_keras_mask(y_pred),
            beta=self.beta,
            reduction=self.reduction,
            reduce_dims=self.reduce_dims,
            keepdims=self.keepdims,
            dtype=self.dtype,
        )

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        """Returns the losses without applying weights, a mask or the reduction."""
        return reduced_loss(
            y_true,
            y_pred,
            beta=self.beta,
            reduce_dims=self.reduce_dims,
            keepdims=self.keepdims,
            dtype=self.dtype,
        )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return validation.from_config(cls, config)

    def get_config(self) -> dict[str, Any]:
        return {
            "beta": validation.to_json(self.beta),
            "reduction": self.reduction,
            "reduce_dims": validation.to_json(self.reduce_dims),
            "keepdims": self.keepdims,
            "name": self.name,
            "dtype": self.dtype,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # Keras's own __reduce__ stores a model archive, which cannot restore a loss.
        return type(self).from_config, (self.get_config(),)

    def __repr__(self) -> str:
        return validation.to_repr(self)


@keras.saving.register_keras_serializable("keras_smoothl1")
def smooth_l1_loss(
    y_true: Any,
    y_pred: Any,
    beta: Any = 1.0,
    reduce_dims: Any = None,
    keepdims: bool = True,
    *,
    sample_weight: Any = None,
    mask: Any = None,
) -> Tensor:
    """Computes the Smooth L1 loss of each element, or its mean over some dimensions.

    ```
    loss = 0.5 * (y_pred - y_true)**2 / beta    if |y_pred - y_true| < beta
         = |y_pred - y_true| - 0.5 * beta       otherwise
    ```

    See: [Fast R-CNN](https://arxiv.org/abs/1504.08083), where `beta = 1 / sigma**2`.

    Use the function in a custom loop or in `compute_loss()`, and for a `beta` that
    changes, such as a variable of the model.

    In `compile()`, use `SmoothL1Loss()` instead. Keras does not pass weights and masks
    to a function. It applies them to the returned losses and broadcasts from the right,
    so they may fail to broadcast, or apply to the wrong elements. The string
    `"smooth_l1_loss"` cannot be used either, because Keras only finds its own losses by
    name.

    Args:
        y_true: The targets, in the shape of `y_pred`. A trailing dimension of 1 may be
            missing on either.
        y_pred: The predictions, of any shape.
        beta: The error at which the loss turns from quadratic to linear, in the unit of
            `y_pred`. It can be a positive number; a sequence (a list, a tuple or a flat
            NumPy array) with one number for each entry of the last axis of `y_pred`; or
            a tensor or `keras.Variable`, with respect to which the loss is
            differentiable. A tensor is broadcast to `y_pred` from the left, like
            weights: the shape `(batch,)` means one beta per sample, and
            `(1, ..., outputs)` one per output. Values that are not positive and finite
            raise an error where they can be checked. In traced functions, and on a GPU
            with torch, they cannot, and the losses of elements with an invalid beta are
            NaN. Defaults to `1.0`.
        reduce_dims: Dimensions to average over: `None`, an int or a sequence of ints.
            Defaults to `None`, which returns one loss per element.
        keepdims: Whether to keep the dimensions in `reduce_dims` with size 1. Defaults
            to `True`.
        sample_weight: Optional weights, broadcast to `y_pred` from the left. An element
            with weight 0 has loss 0 and slope 0, even if its target or prediction is
            NaN.
        mask: Optional booleans, broadcast like weights. An element whose mask is
            `False` has loss 0 and slope 0, and is not counted in a mean over
            `reduce_dims`. A mask that Keras has attached to `y_pred` is ignored.

    Returns:
        The weighted losses, in the shape and dtype of `y_pred`, or in
        `keras.backend.floatx()` if `y_pred` does not have a floating-point dtype.
        Dimensions in `reduce_dims` have size 1 or are removed.

    Raises:
        TypeError: If an argument has an unsupported type, or does not consist of real
            numbers.
        ValueError: If `beta` or `reduce_dims` is out of range, if shapes do not match,
            or if `beta` is a variable whose current value JAX would compile into a
            step as a constant.

    Example:

    >>> import keras, numpy as np
    >>> from keras_smoothl1 import smooth_l1_loss
    >>> y_true = [[0.0, 1.0], [0.0, 0.0]]
    >>> y_pred = [[0.5, 1.0], [3.0, 0.0]]
    >>> np.asarray(smooth_l1_loss(y_true, y_pred))
    array([[0.125, 0.   ],
           [2.5  , 0.   ]], dtype=float32)
    >>> np.asarray(smooth_l1_loss(y_true, y_pred, reduce_dims=-1))
    array([[0.0625],
           [1.25  ]], dtype=float32)

    One beta per sample:

    >>> beta = keras.ops.convert_to_tensor([0.5, 2.0])
    >>> np.asarray(smooth_l1_loss(y_true, y_pred, beta))
    array([[0.25, 0.  ],
           [2.  , 0.  ]], dtype=float32)
    """
    if not backend.is_ragged(y_pred):
        y_pred = validation.convert_to_tensor(y_pred, None, "y_pred")
    dtype = validation.result_dtype(y_pred)
    return reduced_loss(
        y_true,
        y_pred,
        sample_weight,
        mask,
        beta=_standardize_beta(beta, validation.compute_dtype(dtype)),
        reduce_dims=validation.standardize_reduce_dims(reduce_dims),
        keepdims=validation.standardize_keepdims(keepdims),
        dtype=dtype,
    )


def _standardize_beta(beta: Any, dtype: str) -> Beta | Tensor:
    is_tensor = (
        keras.ops.is_tensor(beta)
        or isinstance(beta, keras.Variable)
        or hasattr(beta, "__jax_array__")  # such as a flax.nnx.Param
    )
    # On Keras's NumPy backend, NumPy scalars and flat arrays are tensors as well.
    if is_tensor and not (isinstance(beta, NUMPY_TYPES) and beta.ndim < 2):
        return validation.standardize_tensor_beta(beta, dtype)
    return validation.standardize_beta(beta, dtype)

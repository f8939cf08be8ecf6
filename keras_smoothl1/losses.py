"""SmoothL1Loss and smooth_l1_loss."""

from typing import Any

import keras
import numpy as np

from keras_smoothl1 import validation
from keras_smoothl1.backends import backend
from keras_smoothl1.keras_internals import get_keras_mask
from keras_smoothl1.reduction import reduced_loss
from keras_smoothl1.typing import Beta, Tensor

NUMPY = np.ndarray, np.generic  # torch.compile cannot trace a union of them


@keras.saving.register_keras_serializable("keras_smoothl1")
class SmoothL1Loss(keras.losses.Loss):
    """Computes the Smooth L1 loss between `y_true` and `y_pred`.

    It is quadratic for errors below `beta` and linear above, so that an outlier pulls
    no harder than any other large error:

    ```
    loss = 0.5 * (y_pred - y_true)**2 / beta    if |y_pred - y_true| < beta
         = |y_pred - y_true| - 0.5 * beta       otherwise
    ```

    See: [Fast R-CNN](https://arxiv.org/abs/1504.08083), where `beta = 1 / sigma**2`.

    It is `keras.losses.Huber(delta=beta)` divided by `beta`: the slope of a large error
    is 1 whatever `beta` is, and as `beta` goes to 0 the loss becomes the absolute
    error.

    With `reduce_dims=None` each element counts by itself. Keras's own losses average
    over the last axis first, which `reduce_dims=-1` does too. The means are the same;
    with `reduction="sum"`, and with no reduction, the results differ.

    Weights and masks belong to elements. In `loss(y_true, y_pred, sample_weight)`, a
    `sample_weight` of shape `()`, `(batch,)`, `(batch, d0)` and so on up to the shape
    of `y_pred`, with 1 allowed for any dimension, is broadcast to `y_pred` from the
    left. So is the mask that `Masking` or `Embedding(mask_zero=True)` leaves on
    `y_pred`. A masked element never counts. An element that is masked or has weight 0
    has loss 0 and slope 0 even where its target or prediction is NaN.

    Sparse tensors are made dense. Of ragged ones whose rows have the same lengths, all
    values count alike. Where TensorFlow knows sizes only when a step runs, shapes are
    compared then.

    `compile()` takes the loss itself, not its name, which Keras does not know.

    Args:
        beta: The error at which the loss turns from quadratic to linear, in the unit of
            `y_pred`. A positive number, or a sequence of them, one for each entry of
            the last axis of `y_pred`. Defaults to `1.0`.
        reduction: How the losses become one number. `"sum_over_batch_size"` (the
            default), `"mean"` and `"auto"` sum the weighted losses and divide by how
            many are not masked; `"mean_with_sample_weight"` divides by the sum of the
            weights; `"sum"` only sums; `None` and `"none"` do nothing. A mean of
            nothing is 0.
        reduce_dims: `None`, an int or a sequence of ints. The weighted losses are
            averaged over these dimensions before the reduction, that is summed and
            divided by how many are not masked: for images of shape
            `(batch, channels, height, width)`, `(1, 2, 3)` makes one loss of each
            image. Defaults to `None`.
        keepdims: Whether the dimensions in `reduce_dims` stay as size 1. Defaults to
            `True`.
        name: Optional name for the loss instance.
        dtype: The dtype of the result: `"float16"`, `"bfloat16"`, `"float32"`,
            `"float64"` or a `keras.DTypePolicy`. The first two are computed in float32
            and rounded once, at the end. Defaults to `None`, which means
            `keras.backend.floatx()`.

    Returns:
        From `loss(y_true, y_pred, sample_weight=None)`, a scalar. Without a reduction,
        the weighted losses in the shape of `y_pred`, where `reduce_dims` have size 1 or
        are dropped. `y_true` has the shape of `y_pred`; a trailing dimension of 1 may
        be missing on either.

    Raises:
        TypeError: if `beta` or `reduce_dims` is of another type, or, when called, if an
            argument is not made of real numbers, or is ragged and does not line up.
        ValueError: if `beta`, `reduction`, `reduce_dims` or `dtype` is none of the
            above, or, when called, if shapes do not fit.

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
                "SmoothL1Loss weighs its losses by itself and would not run the call() "
                f"of {cls.__name__}. Override __call__() or subclass keras.losses.Loss."
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
        """Returns the losses before weights, mask and reduction."""
        return reduced_loss(
            y_true,
            y_pred,
            beta=self.beta,
            reduce_dims=self.reduce_dims,
            keepdims=self.keepdims,
            dtype=self.dtype,
        )

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
        # Keras would pickle a whole model archive, which a loss cannot be read from.
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

    This is the loss for a custom loop or `compute_loss()`, and for a `beta` that
    changes: a tensor, such as a variable of the model.

    Passed to `compile()`, it gets no weights and no mask: Keras applies them to what it
    returns, aligned from the right, where they may not fit or weigh something else.
    Pass `SmoothL1Loss()` instead. Keras looks up names among its own losses alone:
    `compile(loss="smooth_l1_loss")` is an error, of Keras's.

    Args:
        y_true: The targets, in the shape of `y_pred`. A trailing dimension of 1 may be
            missing on either.
        y_pred: The predictions, of any shape.
        beta: The error at which the loss turns from quadratic to linear, in the unit of
            `y_pred`. A positive number; a sequence of them (a list, a tuple or a flat
            NumPy array), one for each entry of the last axis of `y_pred`; or a tensor
            or `keras.Variable`, by which the loss is then differentiable. A tensor is
            broadcast to `y_pred` from the left, as weights are: of shape `(batch,)` it
            is one beta for each sample, of shape `(1, ..., outputs)` one for each
            output. A tensor out of range is an error where its values are known. While
            a function is traced, and on a GPU with torch, they are not; then the losses
            become NaN. Defaults to `1.0`.
        reduce_dims: `None`, an int or a sequence of ints: the dimensions to average
            over. Defaults to `None`, one loss for each element.
        keepdims: Whether the dimensions in `reduce_dims` stay as size 1. Defaults to
            `True`.
        sample_weight: Optional weights, broadcast to `y_pred` from the left. An element
            of weight 0 has loss 0 and slope 0, even where it is NaN.
        mask: Optional booleans, broadcast like weights. An element that is `False` does
            not count in a mean over `reduce_dims`, and has loss 0 and slope 0. A mask
            that Keras has left on `y_pred` is not looked at.

    Returns:
        The weighted losses, in the dtype of `y_pred` and its shape, where `reduce_dims`
        have size 1 or are dropped.

    Raises:
        TypeError: if `beta` or `reduce_dims` is of another type, or if an argument is
            not made of real numbers.
        ValueError: if `beta` or `reduce_dims` is out of range, if shapes do not fit, or
            if `beta` is a variable whose present value JAX would compile into a step.

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

    One beta for each sample:

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
    is_tensor = keras.ops.is_tensor(beta) or isinstance(beta, keras.Variable)
    # On Keras's NumPy backend NumPy's numbers and lists of them are tensors, too.
    if is_tensor and not (isinstance(beta, NUMPY) and beta.ndim < 2):
        return validation.standardize_tensor_beta(beta, dtype)
    return validation.standardize_beta(beta, dtype)

"""A reference implementation in float64 NumPy, independent of the package."""

import numpy as np


def value_and_slope(error, beta):
    error = np.asarray(error, "float64")
    beta = np.broadcast_to(np.asarray(beta, "float64"), error.shape)
    value, slope = np.empty(error.shape), np.empty(error.shape)
    for i in np.ndindex(error.shape):
        d, b = error[i], beta[i]
        if abs(d) < b:
            value[i], slope[i] = d * d / (2 * b), d / b
        else:
            value[i], slope[i] = abs(d) - b / 2, np.sign(d)
    return value, slope


def broadcast(x, shape):
    """Broadcasts x to shape from the left: missing axes are added at the end."""
    x = np.asarray(x)
    return np.broadcast_to(x.reshape(x.shape + (1,) * (len(shape) - x.ndim)), shape)


def loss_and_gradient(
    y_true,
    y_pred,
    beta=1.0,
    sample_weight=None,
    mask=None,
    reduction="mean",
    reduce_dims=(),
    keepdims=True,
):
    """Returns the loss, and the gradient of its sum with respect to y_pred.

    Follows the documented rules step by step. The share of an element is the factor by
    which its loss enters the result.
    """
    y_true, y_pred = np.asarray(y_true, "float64"), np.asarray(y_pred, "float64")
    shape = y_pred.shape
    weight = broadcast(1.0 if sample_weight is None else sample_weight, shape)
    mask = broadcast(True if mask is None else mask, shape).astype(bool)
    weight = np.where(mask, weight, 0.0)
    valid = weight != 0
    error = np.where(valid, y_pred, 0.0) - np.where(valid, y_true, 0.0)
    value, slope = value_and_slope(error, beta)

    axes = tuple(axis % len(shape) for axis in np.atleast_1d(reduce_dims).astype(int))
    size = mask.sum(axes, keepdims=True)
    entries = _ratio((weight * value).sum(axes, keepdims=True), size)
    share = _ratio(weight, np.broadcast_to(size, shape))
    if reduction in (None, "none"):
        result = entries if keepdims else entries.squeeze(axes)
    elif reduction == "sum":
        result = entries.sum()
    else:
        entry_weight = _ratio(weight.sum(axes, keepdims=True), size)
        weighted = reduction == "mean_with_sample_weight" and sample_weight is not None
        divisor = entry_weight.sum() if weighted else (size > 0).sum()
        result = _ratio(entries.sum(), divisor)
        share = _ratio(share, divisor)
    return result, share * slope


def _ratio(x, y):
    x, y = np.broadcast_arrays(np.asarray(x, "float64"), np.asarray(y, "float64"))
    return np.divide(x, y, out=np.zeros(x.shape), where=y != 0)

"""Checks and conversions of arguments, with their error messages."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np

from keras_smoothl1.backends import backend
from keras_smoothl1.formula import BETA_RANGE
from keras_smoothl1.typing import Axes, Beta, ReduceDims, Tensor

REDUCTIONS = (
    "sum_over_batch_size",
    "auto",
    "mean",
    "mean_with_sample_weight",
    "sum",
    "none",
)


def standardize_beta(beta: Any, dtype: str) -> Beta:
    """Returns beta as a float, or as a tuple of floats for a sequence."""
    plain = _to_list(beta)
    members = plain if _is_sequence(plain) else (plain,)
    if len(members) == 0:
        raise ValueError(
            "beta must have one number for each entry of y_pred's last axis. "
            f"Received an empty sequence: beta={beta!r}"
        )
    for member in members:
        if not _is_number(member):
            raise TypeError(
                "beta must be a positive number, or a list of positive numbers, one "
                "for each entry of y_pred's last axis. smooth_l1_loss also accepts a "
                "tensor. "
                f"Received: beta={beta!r} of type {type(beta).__name__}"
            )
    numbers = tuple(_to_float(member) for member in members)
    check_beta_range(numbers, dtype, beta)
    return numbers if _is_sequence(plain) else numbers[0]


def _to_list(x: Any) -> Any:
    """Converts an array of numbers to nested lists; returns anything else as is."""
    return x.tolist() if isinstance(x, np.ndarray) and _is_numeric(x) else x


def _is_number(x: Any) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool | np.timedelta64)


def _to_float(number: Real) -> float:
    try:
        return float(number)
    except OverflowError:  # an int beyond the range of a float
        return float("inf")


def check_beta_range(numbers: tuple[float, ...], dtype: str, received: Any) -> None:
    smallest, largest = BETA_RANGE[dtype]
    for number in numbers:
        if smallest <= number <= largest:
            continue
        if number == 0:
            requirement = (
                "positive. For the absolute error, the limit as beta approaches 0, use "
                "keras.losses.MeanAbsoluteError"
            )
        elif 0 < number < float("inf"):
            requirement = f"from {smallest:.3g} to {largest:.3g} in {dtype}"
        else:
            requirement = "positive and finite"
        raise ValueError(f"beta must be {requirement}. Received: beta={received!r}")


def standardize_tensor_beta(beta: Any, dtype: str) -> Tensor | float:
    """Returns beta as a tensor of dtype, or as a float if it is a scalar constant.

    Values out of range raise an error if they are known, and become NaN at run time
    otherwise.
    """
    if backend.is_ragged(beta):
        raise TypeError(
            "beta must not be ragged. If y_pred is ragged, beta may have one number "
            f"for each row. Received: beta={beta!r}"
        )
    if keras.backend.standardize_dtype(beta.dtype) == "bool":
        raise TypeError(
            f"beta must have a numeric dtype, not bool. Received: beta={beta!r}"
        )
    if isinstance(beta, keras.Variable) and backend.compiles_as_constant(beta):
        raise ValueError(
            "beta must not be a variable whose current value JAX would compile into "
            "the step as a constant. In fit(), make the variable an attribute of the "
            "model. In your own jitted function, pass its value as an argument. "
            f"Received: beta={beta!r}"
        )
    tensor = convert_to_tensor(beta, dtype, "beta")
    smallest, largest = BETA_RANGE[compute_dtype_of(tensor)]
    known = backend.static_range(tensor)
    if known is None:
        is_valid = (tensor >= smallest) & (tensor <= largest)
        # Multiplied by NaN, not replaced by it, so that the derivative with respect to
        # beta is NaN as well.
        ones = backend.xp.ones_like(tensor)
        return tensor * backend.xp.where(is_valid, ones, float("nan"))
    if not smallest <= known[0] <= known[1] <= largest:
        raise ValueError(
            "beta must be positive and finite, from "
            f"{smallest:.3g} to {largest:.3g}. For a beta that approaches 0, use a "
            "lower bound such as keras.ops.maximum(beta, 1e-3). Received: beta of "
            f"shape {tuple(beta.shape)} with values from {known[0]:.3g} to "
            f"{known[1]:.3g}"
        )
    return backend.as_number(tensor)


def check_beta_for(beta: Beta, y_pred: Tensor) -> Tensor:
    """Raises an error unless beta fits y_pred's dtype and shape.

    The dtype of y_pred may differ from the requested one: JAX converts float64 to
    float32 unless float64 is enabled. Returns y_pred, which raises an error at run time
    if its last axis is not known and does not fit.
    """
    if isinstance(beta, float):
        # A beta that is valid in float32 is also valid in float64.
        smallest, largest = BETA_RANGE["float32"]
        if not smallest <= beta <= largest:
            check_beta_range((beta,), compute_dtype_of(y_pred), beta)
        return y_pred
    check_beta_range(beta, compute_dtype_of(y_pred), beta)
    shape = backend.static_shape(y_pred)
    if shape is None or (shape and shape[-1] is None):
        return backend.ensure_last_axis(y_pred, len(beta))
    if not shape or shape[-1] != len(beta):
        raise ValueError(
            "beta must have one number for each entry of y_pred's last axis. Received: "
            f"beta={beta!r} of length {len(beta)}, y_pred of shape {shape}"
        )
    return y_pred


def standardize_reduction(reduction: Any) -> str | None:
    """Returns the reduction, with `"auto"` replaced by `"sum_over_batch_size"`."""
    if isinstance(reduction, str) and reduction == "auto":
        return "sum_over_batch_size"
    if reduction is None or (isinstance(reduction, str) and reduction in REDUCTIONS):
        return reduction
    raise ValueError(
        f"reduction must be None or one of {', '.join(map(repr, REDUCTIONS))}. "
        f"Received: reduction={reduction!r}"
    )


def standardize_reduce_dims(reduce_dims: Any) -> ReduceDims:
    """Returns None, an int or a tuple of distinct ints."""
    if reduce_dims is None:
        return None
    plain = _to_list(reduce_dims)
    if not _is_sequence(plain):
        return _to_axis(plain, reduce_dims)
    axes = tuple(_to_axis(axis, reduce_dims) for axis in plain)
    if len(set(axes)) < len(axes):
        raise ValueError(
            "reduce_dims must not name a dimension more than once. "
            f"Received: reduce_dims={reduce_dims!r}"
        )
    return axes


def _to_axis(axis: Any, reduce_dims: Any) -> int:
    if isinstance(axis, Integral) and _is_number(axis):
        return int(axis)
    raise TypeError(
        "reduce_dims must be None, an int, or a flat sequence of ints. Received: "
        f"reduce_dims={reduce_dims!r} of type {type(reduce_dims).__name__}"
    )


def _is_sequence(x: Any) -> bool:
    text = str | bytes | bytearray | memoryview
    return isinstance(x, Sequence) and not isinstance(x, text)


def standardize_axes(reduce_dims: ReduceDims, y_pred: Tensor, received: Any) -> Axes:
    """Returns reduce_dims as sorted, nonnegative axes of y_pred.

    `received` is y_pred before its conversion to a dense tensor.
    """
    if reduce_dims is None:
        return ()
    if backend.is_ragged(received):
        raise TypeError(
            "reduce_dims must be None for a ragged y_pred. Average the losses "
            "afterwards, or pass a dense y_pred. "
            f"Received: reduce_dims={reduce_dims!r}, y_pred={received!r}"
        )
    shape = backend.static_shape(y_pred)
    if shape is None:
        raise ValueError(
            "reduce_dims requires a y_pred of known rank. Set the rank with "
            f"tf.ensure_shape. Received: reduce_dims={reduce_dims!r}"
        )
    rank = len(shape)
    dims = (reduce_dims,) if isinstance(reduce_dims, int) else reduce_dims
    if any(not -rank <= dim < rank for dim in dims):
        raise ValueError(
            f"reduce_dims must be between {-rank} and {rank - 1}, because y_pred has "
            f"rank {rank}. Received: reduce_dims={reduce_dims!r}"
        )
    axes = sorted(dim % rank for dim in dims)
    if len(set(axes)) < len(axes):
        raise ValueError(
            "reduce_dims must not name a dimension more than once, but two of its "
            f"entries are the same dimension of y_pred, which has rank {rank}. "
            f"Received: reduce_dims={reduce_dims!r}"
        )
    return tuple(axes)


def standardize_keepdims(keepdims: Any) -> bool:
    if not isinstance(keepdims, bool | np.bool_):
        raise TypeError(
            f"keepdims must be True or False. Received: keepdims={keepdims!r}"
        )
    return bool(keepdims)


def standardize_name(name: Any) -> str | None:
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be None or a string. Received: name={name!r}")
    return name


def standardize_dtype(dtype: Any) -> str:
    """Returns the name of a floating-point dtype, or of a policy's compute dtype."""
    try:
        if isinstance(dtype, keras.DTypePolicy):
            name = dtype.compute_dtype
        elif isinstance(dtype, str):
            name = keras.DTypePolicy(dtype).compute_dtype
        else:
            name = keras.backend.standardize_dtype(dtype)  # floatx for None
    except (TypeError, ValueError):
        name = None
    if name not in ("float16", "bfloat16", "float32", "float64"):
        raise ValueError(
            "dtype must be one of 'float16', 'bfloat16', 'float32', 'float64', or a "
            f"policy whose compute dtype is one of them. Received: dtype={dtype!r}"
        )
    return str(name)


def result_dtype(y_pred: Tensor) -> str:
    """The dtype of y_pred if it is a floating-point dtype, otherwise floatx."""
    dtype = str(keras.backend.standardize_dtype(y_pred.dtype))
    return dtype if "float" in dtype else str(keras.backend.floatx())


def compute_dtype(dtype: str) -> str:
    """The dtype of the computation: float16 and bfloat16 are computed in float32."""
    return "float64" if dtype == "float64" else "float32"


def compute_dtype_of(x: Tensor) -> str:
    # Keras's standardize_dtype takes longer than all other checks of a call together.
    return "float64" if "float64" in str(x.dtype) else "float32"


def from_config(cls: Any, config: dict[str, Any]) -> Any:
    """Creates an object, and explains how a subclass with other arguments can be."""
    try:
        return cls(**config)
    except TypeError as error:
        raise TypeError(
            f"{cls.__name__} cannot be created from its config. If its __init__() has "
            "other arguments than that of the class it inherits from, override "
            f"get_config() to return them. Received: config={config}, and {error}"
        ) from error


def to_json(setting: Any) -> Any:
    """Converts a setting for a config: JSON has no tuples."""
    return list(setting) if isinstance(setting, tuple) else setting


def to_repr(x: Any) -> str:
    """Formats an object with a config as the call that creates it."""
    settings = ", ".join(f"{key}={value!r}" for key, value in x.get_config().items())
    return f"{type(x).__name__}({settings})"


def convert_to_tensor(x: Any, dtype: str | None, name: str) -> Tensor:
    """Converts real numbers to a dense tensor, and rejects everything else."""
    if backend.is_ragged(x):
        raise TypeError(
            f"{name} must not be ragged if y_pred is dense. Pass a dense {name}, or a "
            "ragged y_pred with rows of the same lengths. "
            f"Received: {name}={x!r}"
        )
    x = backend.to_dense(x)
    if isinstance(x, keras.KerasTensor):
        raise TypeError(
            f"{name} must hold numbers, but a KerasTensor is symbolic. Pass the loss "
            "to model.compile(), or call it in the call() method of a layer. "
            f"Received: {name}={x!r}"
        )
    _check_is_numeric(x, name)
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        x = x.astype(
            x.dtype.newbyteorder("=")
        )  # torch reads the native byte order only
    if not isinstance(x, list | tuple):
        return keras.ops.convert_to_tensor(x, dtype=dtype)
    try:
        return keras.ops.convert_to_tensor(x, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be nested lists with equal lengths at each level. "
            f"Received: {name}={x!r}"
        ) from error


def _check_is_numeric(x: Any, name: str) -> None:
    requirement = f"{name} must be a tensor, an array or nested lists of real numbers. "
    if isinstance(x, dict):
        raise TypeError(
            f"{requirement}For a model with several outputs, compute the loss of each. "
            f"Received: {name} of type dict with the keys {list(x)}"
        )
    is_of_pandas = hasattr(x, "to_numpy") and type(x).__module__.startswith("pandas")
    for leaf in [x] if hasattr(x, "dtype") or is_of_pandas else keras.tree.flatten(x):
        if _is_numeric(leaf):
            continue
        if is_of_pandas:
            raise TypeError(
                f"{requirement}Convert it by {name}.to_numpy('float32'). "
                f"Received: {name} of type {type(x).__name__}"
            )
        raise TypeError(
            f"{requirement}Received: {getattr(leaf, 'dtype', leaf)!r} in {name} of "
            f"type {type(x).__name__}"
        )


def _is_numeric(leaf: Any) -> bool:
    if not hasattr(leaf, "dtype"):
        return isinstance(leaf, Real)
    try:
        dtype = keras.backend.standardize_dtype(leaf.dtype)
    except ValueError:  # a dtype that Keras does not support, such as object
        return False
    return str(dtype).startswith(("float", "bfloat", "int", "uint", "bool"))

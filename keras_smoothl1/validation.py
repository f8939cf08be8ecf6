"""What the arguments may be, and the errors for what they may not."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np

from keras_smoothl1.backends import backend
from keras_smoothl1.formula import SMALLEST_NORMAL
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
    """Returns beta as a float, or as a tuple of floats for a sequence.

    It must be computable with in dtype: 1 / beta must be a normal number like beta.
    """
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
                "for each entry of y_pred's last axis; smooth_l1_loss also takes one "
                "tensor. "
                f"Received: beta={beta!r} of type {type(beta).__name__}"
            )
    numbers = tuple(_to_float(member) for member in members)
    check_beta_range(numbers, dtype, beta)
    return numbers if _is_sequence(plain) else numbers[0]


def _to_list(x: Any) -> Any:
    """A NumPy array of numbers as nested lists; anything else as it is."""
    return x.tolist() if isinstance(x, np.ndarray) and _is_numeric(x) else x


def _is_number(x: Any) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool | np.timedelta64)


def _to_float(number: Real) -> float:
    try:
        return float(number)
    except OverflowError:  # an int beyond the range of a float
        return float("inf")


def check_beta_range(numbers: tuple[float, ...], dtype: str, received: Any) -> None:
    smallest = SMALLEST_NORMAL[dtype]
    for number in numbers:
        if smallest <= number <= 1 / smallest:
            continue
        if number == 0:
            reason = "; for 0, the absolute error, use keras.losses.MeanAbsoluteError"
        elif 0 < number < float("inf"):
            # Beyond, beta or 1 / beta is no normal number of the dtype.
            reason = f", in {dtype} from {smallest:.3g} to {1 / smallest:.3g}"
        else:
            reason = " and finite"
        raise ValueError(f"beta must be positive{reason}. Received: beta={received!r}")


def standardize_tensor_beta(beta: Any, dtype: str) -> Tensor | float:
    """Returns a tensor of dtype, NaN where it turns out to be out of range.

    It must be at least twice the smallest normal number: XLA and TensorFlow flush half
    of a smaller one to 0. Where numbers are known, one out of range is an error.
    """
    if backend.is_ragged(beta):
        raise TypeError(
            "beta must not be ragged; if y_pred is, it may have one number for each "
            f"row. Received: beta={beta!r}"
        )
    if keras.backend.standardize_dtype(beta.dtype) == "bool":
        raise TypeError(f"beta must be a number, not a bool. Received: beta={beta!r}")
    if isinstance(beta, keras.Variable) and backend.keeps_value_of(beta):
        raise ValueError(
            "beta must not be a variable whose present value JAX would compile into "
            "the step, whatever it becomes. In fit(), assign it to an attribute of the "
            "model; in a function of your own, pass its value as an argument. "
            f"Received: beta={beta!r}"
        )
    tensor = convert_to_tensor(beta, dtype, "beta")
    smallest = 2 * SMALLEST_NORMAL[compute_dtype_of(tensor)]
    largest = 2 / smallest
    known = backend.static_range(tensor)
    if known is None:
        is_valid = (tensor >= smallest) & (tensor <= largest)
        # A factor, so that the derivative by beta becomes NaN, too.
        ones = backend.xp.ones_like(tensor)
        return tensor * backend.xp.where(is_valid, ones, float("nan"))
    if not smallest <= known[0] <= known[1] <= largest:
        raise ValueError(
            "beta must be positive and finite, from "
            f"{smallest:.3g} to {largest:.3g}; one that goes to 0 can be kept "
            "from it by keras.ops.maximum(beta, 1e-3). Received: beta of shape "
            f"{tuple(beta.shape)} with numbers from {known[0]:.3g} to {known[1]:.3g}"
        )
    return backend.as_number(tensor)


def check_beta_for(beta: Beta, y_pred: Tensor) -> None:
    """Raises unless beta fits y_pred's dtype and shape.

    The dtype is what the backend made of the one asked for: JAX has no float64 unless
    it is enabled.
    """
    if isinstance(beta, float):
        # What float32 can compute with float64 can, too.
        if not SMALLEST_NORMAL["float32"] <= beta <= 2.0**126:
            check_beta_range((beta,), compute_dtype_of(y_pred), beta)
        return
    check_beta_range(beta, compute_dtype_of(y_pred), beta)
    shape = backend.static_shape(y_pred)
    if shape is None:
        return
    if not shape or shape[-1] not in (None, len(beta)):
        raise ValueError(
            "beta must have one number for each entry of y_pred's last axis. Received: "
            f"beta={beta!r} of length {len(beta)}, y_pred of shape {shape}"
        )


def standardize_reduction(reduction: Any) -> str | None:
    """Returns the reduction, `"auto"` under its usual name."""
    if isinstance(reduction, str) and reduction == "auto":
        return "sum_over_batch_size"
    if reduction is None or (isinstance(reduction, str) and reduction in REDUCTIONS):
        return reduction
    raise ValueError(
        f"reduction must be None or one of {', '.join(map(repr, REDUCTIONS))}. "
        f"Received: reduction={reduction!r}"
    )


def standardize_reduce_dims(reduce_dims: Any) -> ReduceDims:
    """Returns None, an int or a tuple of ints, none of them twice."""
    if reduce_dims is None:
        return None
    plain = _to_list(reduce_dims)
    if not _is_sequence(plain):
        return _integer(plain, reduce_dims)
    axes = tuple(_integer(axis, reduce_dims) for axis in plain)
    if len(set(axes)) < len(axes):
        raise ValueError(
            "reduce_dims must name each dimension once. "
            f"Received: reduce_dims={reduce_dims!r}"
        )
    return axes


def _integer(axis: Any, reduce_dims: Any) -> int:
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
    """Returns reduce_dims as axes of y_pred, from 0 up, in order.

    y_pred was made of what was received.
    """
    if reduce_dims is None:
        return ()
    if backend.is_ragged(received):
        raise TypeError(
            "reduce_dims needs y_pred to be dense; of a ragged one all values are "
            f"averaged. Received: reduce_dims={reduce_dims!r}, y_pred={received!r}"
        )
    shape = backend.static_shape(y_pred)
    if shape is None:
        raise ValueError(
            "reduce_dims needs y_pred to have a known rank; give it one with "
            f"tf.ensure_shape. Received: reduce_dims={reduce_dims!r}"
        )
    rank = len(shape)
    dims = (reduce_dims,) if isinstance(reduce_dims, int) else reduce_dims
    if any(not -rank <= dim < rank for dim in dims):
        raise ValueError(
            f"reduce_dims must name dimensions of y_pred, which has rank {rank}. "
            f"Received: reduce_dims={reduce_dims!r}"
        )
    axes = sorted(dim % rank for dim in dims)
    if len(set(axes)) < len(axes):
        raise ValueError(
            f"reduce_dims must name each dimension once; for y_pred of rank {rank} it "
            f"names one twice. Received: reduce_dims={reduce_dims!r}"
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
    """Returns the name of the floating dtype that a dtype or policy computes in."""
    try:
        if isinstance(dtype, keras.DTypePolicy):
            name = dtype.compute_dtype
        elif isinstance(dtype, str):
            name = keras.DTypePolicy(dtype).compute_dtype
        else:
            name = keras.backend.standardize_dtype(dtype)  # of None it makes floatx
    except (TypeError, ValueError):
        name = None
    if name not in ("float16", "bfloat16", "float32", "float64"):
        raise ValueError(
            "dtype must be one of 'float16', 'bfloat16', 'float32', 'float64', or a "
            f"policy that computes in one of them. Received: dtype={dtype!r}"
        )
    return str(name)


def result_dtype(y_pred: Tensor) -> str:
    """The dtype of a function of y_pred: its own where it is a floating one."""
    dtype = str(keras.backend.standardize_dtype(y_pred.dtype))
    return dtype if "float" in dtype else str(keras.backend.floatx())


def compute_dtype(dtype: str) -> str:
    """float16 and bfloat16 are computed in float32 and rounded once, at the end."""
    return "float64" if dtype == "float64" else "float32"


def compute_dtype_of(x: Tensor) -> str:
    # Keras's standardize_dtype would take longer than all other checks of a small call.
    return "float64" if "float64" in str(x.dtype) else "float32"


def to_json(setting: Any) -> Any:
    """A setting as a config holds it: JSON has lists, no tuples."""
    return list(setting) if isinstance(setting, tuple) else setting


def to_repr(x: Any) -> str:
    """An object with a config as the call that makes it."""
    settings = ", ".join(f"{key}={value!r}" for key, value in x.get_config().items())
    return f"{type(x).__name__}({settings})"


def convert_to_tensor(x: Any, dtype: str | None, name: str) -> Tensor:
    """Converts real numbers to a dense tensor, and refuses all else."""
    if backend.is_ragged(x):
        raise TypeError(
            f"{name} must not be ragged, unless y_true and y_pred are, too, with rows "
            f"of the same lengths. Received: {name}={x!r}"
        )
    x = backend.to_dense(x)
    if isinstance(x, keras.KerasTensor):
        raise TypeError(
            f"{name} must hold numbers; a KerasTensor only stands for some. Pass the "
            "loss to model.compile(), or call it in the call() of a layer. "
            f"Received: {name}={x!r}"
        )
    for leaf in [x] if hasattr(x, "dtype") else keras.tree.flatten(x):
        if not _is_numeric(leaf) or isinstance(x, dict):
            raise TypeError(
                f"{name} must be a tensor, an array or nested lists of real numbers. "
                f"Received: {getattr(leaf, 'dtype', leaf)!r} in {name} of type "
                f"{type(x).__name__}"
            )
    if not isinstance(x, list | tuple):
        return keras.ops.convert_to_tensor(x, dtype=dtype)
    try:
        return keras.ops.convert_to_tensor(x, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be lists of equal lengths, nested to one depth. "
            f"Received: {name}={x!r}"
        ) from error


def _is_numeric(leaf: Any) -> bool:
    if not hasattr(leaf, "dtype"):
        return isinstance(leaf, Real)
    try:
        dtype = keras.backend.standardize_dtype(leaf.dtype)
    except ValueError:  # a dtype that Keras does not know, such as an object's
        return False
    return str(dtype).startswith(("float", "bfloat", "int", "uint", "bool"))

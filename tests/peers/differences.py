"""Intentional differences from other projects' tests: reasons and expected errors.

The keys are patterns of whole test names. A test that passes or raises another error
counts as a failure.
"""

import re
from typing import NamedTuple


class Difference(NamedTuple):
    reason: str
    exception: type[Exception]
    message: str


KERAS = {
    r"losses_test_HuberLossTest::test_config": Difference(
        "the config contains all settings; Keras's omits delta and dtype",
        AssertionError,
        "'delta': 1.0, 'dtype': 'float32'",
    ),
    r"loss_test_LossTest::test_reduction": Difference(
        "the error for an unknown reduction has another message",
        AssertionError,
        '"Invalid value for argument" does not match "reduction must be None or one',
    ),
    r"regression_metrics_test_MeanAbsoluteErrorTest::test_config": Difference(
        "the dtype of a metric must be floating-point",
        ValueError,
        "dtype must be one of .* Received: dtype='int32'",
    ),
    r"saving_lib_test_SavingBattleTest::test_legacy_load_skips_missing_.*": Difference(
        "the test loads a file that Keras's wheel lacks; the loss is not involved",
        AssertionError,
        "Backward-compat fixture missing",
    ),
}

JAX = {
    r"Optax(SquaredError|L2Loss)Test::test_shape_mismatch": Difference(
        "a trailing dimension of 1 may be missing, as everywhere in Keras",
        AssertionError,
        "ValueError not raised",
    ),
}

TORCH = {
    r".*\[smooth_l1_loss-7-5x5-beta=0-.*\]": Difference(
        "beta must be positive; the error names MeanAbsoluteError",
        ValueError,
        "beta must be positive. For the absolute error",
    ),
    r".*\[l1_loss-.*-function-complex(64|128)-.*\]": Difference(
        "complex numbers are rejected",
        TypeError,
        "y_pred must be .* real numbers. Received: torch.complex",
    ),
    r".*\[l1_loss-.*-class-complex(64|128)-.*\]": Difference(
        "complex numbers are rejected",
        ValueError,
        "dtype must be one of .* Received: dtype='complex",
    ),
    r".*\[(mse_loss-[13]|huber_loss-1)-5-.*-float16-.*\]": Difference(
        "torch also rounds the error to float16; here only the result is rounded",
        AssertionError,
        "Tensor-likes are not close",
    ),
    r"test_errors\[(l1|huber)_loss-0\]": Difference(
        "the error for an unknown reduction has another message",
        AssertionError,
        "Regex pattern did not match",
    ),
    r"test_errors\[l1_loss-1\]": Difference(
        "different shapes raise a ValueError that names both",
        ValueError,
        "y_true and y_pred must have the same shape",
    ),
    r"test_errors\[huber_loss-[12]\]": Difference(
        "a beta that is not positive raises a ValueError",
        ValueError,
        "beta must be positive",
    ),
}

DIFFERENCES = {"test_keras.py": KERAS, "test_jax.py": JAX, "test_torch.py": TORCH}


def find(path, test):
    """Returns the difference for `Class::test[parameters]` in a file, or None."""
    for pattern, difference in DIFFERENCES.get(path.name, {}).items():
        if re.fullmatch(pattern, test):
            return difference
    return None

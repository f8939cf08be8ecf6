"""Prints the exact results that the self-check of an installation compares with.

    python tools/store_exact.py > keras_smoothl1/exact_results.csv

Rows are omitted if the exact value or slope is neither 0 nor a normal number of the
dtype.
"""

import pathlib
import sys

import mpmath
import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))

from helpers import exact

BETAS = {
    "float32": [2.4e-38, 1e-6, 1 / 9, 1.0, 1e4, 8e37],
    "float64": [4.5e-308, 1e-6, 1 / 9, 1.0, 1e4, 4e307],
}
NO_NUMBERS = [("nan", "nan", "nan"), ("inf", "inf", "1.0"), ("-inf", "inf", "-1.0")]


def errors(beta, dtype):
    """Returns errors in both branches, at their boundary, and 0, with mixed signs."""
    beta = np.dtype(dtype).type(beta)
    sizes = [beta / 1000, beta / 3, np.nextafter(beta, 0), beta, beta * 1.001]
    sizes += [beta * 2.5, 1e-3, 0.7, 1.0, 123.456, 1e30, 0.0]
    signs = np.resize([1, -1], len(sizes))
    with np.errstate(over="ignore"):
        return np.unique((sizes * signs).astype(dtype))


def rows():
    for dtype, betas in BETAS.items():
        info, kind = np.finfo(dtype), np.dtype(dtype).type
        for beta in map(kind, betas):
            inputs = errors(beta, dtype)
            results = zip(*exact.value_and_slope(inputs, beta), strict=True)
            for error, both in zip(inputs, results, strict=True):
                if all(x == 0 or info.tiny <= abs(x) <= info.max for x in both):
                    yield (dtype, beta, error, *(mpmath.nstr(x, 25) for x in both))
            if beta == 1:
                yield from ((dtype, beta, *texts) for texts in NO_NUMBERS)


def table():
    lines = [",".join(map(str, row)) for row in rows()]
    return "\n".join(["dtype,beta,error,value,slope", *lines, ""])


if __name__ == "__main__":
    print(table(), end="")

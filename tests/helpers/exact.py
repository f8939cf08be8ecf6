"""The exact loss and slope of an error, and how far a result is from them.

Exact means computed by mpmath at 200 bits, from the error and beta as the dtype holds
them, by the two branches of the definition. A unit in the last place (ulp) is the
distance between neighbouring numbers of the dtype at the exact result.
"""

import math

import mpmath
import numpy as np

BITS = {"float32": 24, "float64": 53}


def errors(beta, dtype, number=400, seed=0):
    """Errors of both signs over the whole range of dtype, and close to beta."""
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype)
    low, high = math.log10(info.tiny) + 1, math.log10(info.max) - 0.1
    beta = np.dtype(dtype).type(beta)
    sizes = [10 ** rng.uniform(low, high, number)]
    near = rng.uniform(-3, 3, number) + math.log10(float(beta))
    sizes.append(10 ** near[(near > low) & (near < high)])
    sizes.append([beta, np.nextafter(beta, 0), np.nextafter(beta, beta * 2)])
    sizes = np.concatenate(sizes).astype(dtype)
    return np.concatenate([sizes, -sizes, [0.0]]).astype(dtype)


def value_and_slope(errors, beta):
    """Two lists of exact numbers. beta is rounded to the dtype of the errors."""
    with mpmath.workprec(200):
        b = mpmath.mpf(float(errors.dtype.type(beta)))
        values, slopes = [], []
        for error in errors.tolist():
            d = mpmath.mpf(error)
            if abs(d) < b:
                values.append(d * d / (2 * b))
                slopes.append(d / b)
            else:
                values.append(abs(d) - b / 2)
                slopes.append(mpmath.sign(d))
        return values, slopes


def worst_ulp(results, exact):
    """The largest distance in ulp, and how many results are NaN or infinite.

    Only exact results that are normal numbers of the dtype are looked at.
    """
    info = np.finfo(results.dtype)
    bits = BITS[results.dtype.name]
    worst, lost = 0.0, 0
    for result, truth in zip(results.tolist(), exact, strict=True):
        if not info.tiny <= abs(truth) <= info.max:
            continue
        if not math.isfinite(result):
            lost += 1
            continue
        with mpmath.workprec(200):
            ulp = mpmath.ldexp(1, mpmath.frexp(truth)[1] - bits)
            worst = max(worst, float(abs(mpmath.mpf(result) - truth) / ulp))
    return worst, lost

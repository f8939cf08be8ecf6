"""The exact loss and slope for an error, and the distance of a result from them.

Exact results are computed by mpmath at 200 bits, from the error and beta as the dtype
represents them, by the two branches of the definition. A unit in the last place (ulp)
is the distance between neighboring numbers of the dtype at the exact result.
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
    """Returns two lists of exact numbers. Rounds beta to the dtype of the errors."""
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
    """Returns the largest distance in ulp, and the number of NaN or infinite results.

    Only elements whose exact result is a normal number of the dtype are considered.
    """
    info = np.finfo(results.dtype)
    bits = BITS[results.dtype.name]
    worst, non_finite = 0.0, 0
    for result, truth in zip(results.tolist(), exact, strict=True):
        if not info.tiny <= abs(truth) <= info.max:
            continue
        if not math.isfinite(result):
            non_finite += 1
            continue
        with mpmath.workprec(200):
            ulp = mpmath.ldexp(1, mpmath.frexp(truth)[1] - bits)
            worst = max(worst, float(abs(mpmath.mpf(result) - truth) / ulp))
    return worst, non_finite

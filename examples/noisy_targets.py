"""Regression data with noisy, wrong or skewed targets, and training on them.

The inputs and the function are those of `Friedman
<https://doi.org/10.1214/aos/1176347963>`_, without his five inputs that have no effect.
A case has several data sets, one per seed, and a small network for each. The networks
are trained together, as outputs of one model whose layers share no weights between
them. This takes little longer than training one network.
"""

import dataclasses
import functools

import keras
import numpy as np

from keras_smoothl1 import SmoothL1Loss

POINTS, BATCH, UNITS, SKEW = 2000, 50, 64, 0.8
LOSSES = {
    "MSE": lambda beta: keras.losses.MeanSquaredError(),
    "MAE": lambda beta: keras.losses.MeanAbsoluteError(),
    "log-cosh": lambda beta: keras.losses.LogCosh(),
    "Huber": lambda beta: keras.losses.Huber(delta=beta),
    "Smooth L1": lambda beta: SmoothL1Loss(beta=beta),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """How the targets are made. By default they have normal noise, with a scale of 1.

    Args:
        wrong: The share of wrong targets. They have an additional normal error, with a
            standard deviation of 20.
        one_sided: If `True`, the absolute values of these errors are added, so that all
            wrong targets are too large.
        skewed: If `True`, no target is wrong, and targets are lognormal, with the
            function as their median.
        unit: A factor for all targets.
        seeds: The number of data sets.
    """

    wrong: float = 0.0
    one_sided: bool = False
    skewed: bool = False
    unit: float = 1.0
    seeds: int = 10

    def data(self):
        """Returns inputs (points, seeds, 5) and targets (points, seeds)."""
        sets = [
            self._data_of(np.random.default_rng(seed)) for seed in range(self.seeds)
        ]
        x, y = (np.stack(part, axis=1) for part in zip(*sets, strict=True))
        return x.astype("float32"), y.astype("float32")

    def _data_of(self, rng):
        x = rng.random((POINTS, 5))
        noise, error = rng.normal(size=(2, POINTS))
        if self.skewed:
            return x, self.unit * function(x) * np.exp(SKEW * noise)
        error = 20 * (np.abs(error) if self.one_sided else error)
        wrong = rng.random(POINTS) < self.wrong
        return x, self.unit * (function(x) + noise + np.where(wrong, error, 0))


def function(x):
    """Returns the targets without noise, 0 to 30, for inputs between 0 and 1."""
    a, b, c, d, e = np.moveaxis(x, -1, 0)
    return 10 * np.sin(np.pi * a * b) + 20 * (c - 0.5) ** 2 + 10 * d + 5 * e


TEST_INPUTS = np.random.default_rng(1234).random((2000, 5))
MEDIAN = function(TEST_INPUTS)
MEAN_IF_SKEWED = MEDIAN * np.exp(SKEW**2 / 2)


def beta_for(residuals):
    """Returns beta by the rule of docs/choosing_beta.md, for one or more data sets."""
    deviations = np.abs(residuals - np.median(residuals, axis=0))
    return float(1.345 * 1.4826 * np.median(deviations))


def make_model(seeds, unit=1.0, penalty=0.0):
    """Returns a model from inputs (batch, seeds, 5) to predictions (batch, seeds).

    Each network has one hidden layer, and an L2 penalty on its kernels, multiplied by
    `penalty`.
    """

    # The loss is a mean over the networks, and the penalty a sum.
    regularizer = keras.regularizers.L2(penalty / seeds) if penalty else None

    def dense(inputs, outputs, activation=None):
        return keras.layers.EinsumDense(
            "bsi,sij->bsj",
            output_shape=(seeds, outputs),
            bias_axes="sj",
            activation=activation,
            kernel_initializer=keras.initializers.RandomNormal(stddev=inputs**-0.5),
            kernel_regularizer=regularizer,
        )

    return keras.Sequential(
        [
            keras.Input((seeds, 5)),
            keras.layers.Rescaling(12**0.5, offset=-(3**0.5)),  # standardizes
            dense(5, UNITS, "silu"),
            dense(UNITS, 1),
            keras.layers.Reshape((seeds,)),
            keras.layers.Rescaling(5 * unit, offset=14 * unit),
        ]
    )


def fit(name, case, beta=None, optimizer="adam", penalty=0.0, epochs=60):
    """Trains the networks of a case.

    Args:
        name: The name of the loss in `LOSSES`.
        case: The `Case`.
        beta: The beta of Smooth L1, or the delta of Huber. By default, the result of
            `beta_for` for the residuals after training with the absolute error.
        optimizer: `"adam"`, or `"sgd"` without momentum.
        penalty: See `make_model`.
        epochs: The number of epochs.

    Returns:
        Predictions (points, seeds) for the training inputs and for `TEST_INPUTS`.
    """
    if beta is None and name in ("Huber", "Smooth L1"):
        fitted, _ = fit("MAE", case, None, optimizer, penalty, epochs)
        beta = beta_for(case.data()[1] - fitted)
    return _fit(name, case, beta, optimizer, penalty, epochs)


# Cached because the site needs some of the results for a page and in the gallery.
@functools.cache
def _fit(name, case, beta, optimizer, penalty, epochs):
    x, y = case.data()
    keras.utils.set_random_seed(0)
    model = make_model(case.seeds, case.unit, penalty)
    # The loss is a mean over the networks. Adam normalizes that factor, SGD does not.
    make, rate = {
        "adam": (keras.optimizers.Adam, 0.02),
        "sgd": (keras.optimizers.SGD, 0.1 * case.seeds),
    }[optimizer]
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * POINTS // BATCH)
    model.compile(make(decay), LOSSES[name](beta))
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    test = np.repeat(TEST_INPUTS[:, None], case.seeds, axis=1)
    return tuple(
        model.predict(part, batch_size=POINTS, verbose=0) for part in (x, test)
    )


def rmse(predicted, true=MEDIAN):
    """Returns the root mean squared error of each seed."""
    return np.sqrt(np.mean((predicted - true[:, None]) ** 2, axis=0))


def bias(predicted, true=MEDIAN):
    """Returns the mean error of each seed."""
    return np.mean(predicted - true[:, None], axis=0)

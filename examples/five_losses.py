"""
MSE, MAE, log-cosh, Huber and Smooth L1 on the same data
========================================================

A small network learns a function of five inputs from 2,000 targets, with each of five
losses. The targets are noisy, wrong or skewed. The tables show which loss suits which
data, and where Huber and Smooth L1 differ. :doc:`/is_it_for_me` discusses the results.

To run it::

    KERAS_BACKEND=jax python examples/five_losses.py
"""

import command_line
import display
import matplotlib.pyplot as plt
import noisy_targets
import numpy as np
from noisy_targets import LOSSES, Case, bias, rmse

options = command_line.parse_options(__doc__)
SEEDS, EPOCHS = (2, 2) if options.short else (10, 60)


def predict_after_training(loss, case, beta=None, **setting):
    """Returns the predictions for the test inputs, (points, seeds)."""
    return noisy_targets.fit(loss, case, beta, epochs=EPOCHS, **setting)[1]


def with_spread(numbers, digits=3):
    """Formats the mean and the standard deviation over the seeds."""
    return f"{np.mean(numbers):.{digits}f} ± {np.std(numbers, ddof=1):.{digits}f}"


# %%
# Cases
# -----
# Correct targets have normal noise with a standard deviation of 1. Wrong targets have
# an additional error with a standard deviation of 20, of either sign or always
# positive. Skewed targets are all correct. They have a lognormal distribution, as
# prices and durations often do.
#
# Each network is trained with Adam. The beta of Smooth L1, which is also Huber's delta,
# follows from the residuals after training with the absolute error, as in
# :doc:`/choosing_beta`.

CASES = {
    "none wrong": Case(seeds=SEEDS),
    "10% wrong": Case(wrong=0.1, seeds=SEEDS),
    "10% too large": Case(wrong=0.1, one_sided=True, seeds=SEEDS),
    "skewed": Case(skewed=True, seeds=SEEDS),
}
predicted = {name: {} for name in CASES}
with display.progress_bars() as bars:
    for loss in LOSSES:
        task = bars.add_task(loss, total=len(CASES), status="")
        for name, case in CASES.items():
            predicted[name][loss] = predict_after_training(loss, case)
            bars.update(task, advance=1)

# %%
# Wrong targets
# -------------
# The error is the root mean squared error (RMSE) compared with the function without
# noise, at test inputs. Huber and Smooth L1 agree, since they differ by a factor, and
# Adam normalizes the scale of gradients.

*unskewed, skewed = predicted
rows = []
for loss in LOSSES:
    errors = [with_spread(rmse(predicted[name][loss])) for name in unskewed]
    too_large = f"{bias(predicted['10% too large'][loss]).mean():+.2f}"
    rows.append((loss, *errors, too_large))
columns = ("RMSE", *unskewed, "bias of the last")
display.print_table(f"Mean ± standard deviation of {SEEDS} seeds", columns, rows)

# %%
# Skewed targets
# --------------
# The best prediction depends on its use. The mean gives correct totals. The median is
# as often too low as too high. Smooth L1 estimates a value between the two.

mean, median = noisy_targets.MEAN_IF_SKEWED, noisy_targets.MEDIAN
rows = []
for loss, of_loss in predicted[skewed].items():
    errors = [with_spread(rmse(of_loss, true), digits=2) for true in (mean, median)]
    rows.append((loss, *errors, f"{100 * (of_loss.mean() / mean.mean() - 1):+.1f}%"))
columns = ("RMSE", "from the mean", "from the median", "error of the total")
display.print_table("Skewed targets", columns, rows)

# %%
# Other units
# -----------
# Here, the targets of the second case are 100 times as small or as large.
# Log-cosh has no parameter. It is quadratic for errors much smaller than 1 and linear
# for errors much larger than 1, whatever the unit.

UNITS = (1.0,) if options.short else (0.01, 1.0, 100.0)
rows = []
for loss in ("log-cosh", "Smooth L1"):
    errors = []
    for unit in UNITS:
        case = Case(wrong=0.1, unit=unit, seeds=SEEDS)
        errors.append(rmse(predict_after_training(loss, case) / unit))
    rows.append((loss, *map(with_spread, errors)))
columns = ("RMSE / unit", *(f"unit {unit:g}" for unit in UNITS))
display.print_table("10% wrong, in different units", columns, rows)

# %%
# The scale of the loss
# ---------------------
# The second case is repeated with other values of beta and delta: with Adam, with Adam
# and an L2 penalty on the weights as a second loss, and with plain SGD. In Huber, delta
# scales the gradients of large errors. That changes the size of an SGD step, and the
# balance with the penalty. In Smooth L1, the slope of large errors is 1 for every beta.

SETTINGS = {
    "Adam": {},
    "Adam and a penalty": {"penalty": 1e-3},
    "SGD": {"optimizer": "sgd"},
}
BETAS = (0.1,) if options.short else (0.01, 0.1, 1.0, 10.0, 100.0)
rows = []
for setting, arguments in SETTINGS.items():
    for loss in ("Huber", "Smooth L1"):
        errors = []
        for beta in BETAS:
            of_beta = predict_after_training(
                loss, CASES["10% wrong"], beta, **arguments
            )
            errors.append(rmse(of_beta).mean())
        rows.append((f"{setting}: {loss}", *(f"{error:.3f}" for error in errors)))
columns = ("RMSE with delta or beta =", *(f"{beta:g}" for beta in BETAS))
display.print_table("10% wrong, mean of the seeds", columns, rows)
print("nan: the training of at least one seed diverged.")

# %%
# The error of each seed, and the mean as a bar:

figure, axes = plt.subplots(1, 5, figsize=(11, 2.8), sharey=True, layout="constrained")
panels = [(name, name, median) for name in unskewed]
panels += [("skewed, from the mean", skewed, mean), ("from the median", skewed, median)]
for axis, (title, name, true) in zip(axes, panels, strict=True):
    for row, loss in enumerate(LOSSES):
        errors = rmse(predicted[name][loss], true)
        axis.plot(errors, np.full(SEEDS, row), "o", color=f"C{row}", alpha=0.4, ms=5)
        axis.plot(errors.mean(), row, "|", color="black", ms=16, mew=2)
    axis.set(title=title, xlabel="RMSE", xlim=(0, None))
    axis.title.set_fontsize("medium")
axes[0].set_yticks(range(len(LOSSES)), LOSSES)
axes[0].invert_yaxis()
display.save_figure(figure, options.out / "five_losses.png")

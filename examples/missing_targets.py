"""
Missing targets and sequences of different lengths
==================================================

Two networks are trained on the flights that left New York in 2013:

- The first predicts two targets, the arrival delay and the time in the air. Unknown
  targets are NaN, and have weight 0.
- The second is recurrent, and predicts the arrival delays of up to 20 flights of an
  aircraft in one month. A Masking layer hides the padding from the network and from the
  loss.

To run it::

    KERAS_BACKEND=jax python examples/missing_targets.py
"""

import command_line
import display
import flights
import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_smoothl1 import SmoothL1Loss

options = command_line.parse_options(__doc__)
FLIGHTS, AIRCRAFT, EPOCHS = (2048, 20, 1) if options.short else (60_000, 300, 5)
BATCH = 256
departed = flights.load().dropna(subset=["dep_delay"])
rng = np.random.default_rng(0)

# %%
# Two targets, some of them NaN
# -----------------------------
# Few targets are unknown in these data, so the script removes more, up to 90%. Then
# only 1% of the flights are complete. The baseline trains on complete flights only.

TARGETS = ("arr_delay", "air_time")
x = flights.features_at_departure(departed[:FLIGHTS])
y = departed[:FLIGHTS][list(TARGETS)].to_numpy("float32")
test, train = slice(FLIGHTS // 4), slice(FLIGHTS // 4, None)
beta = [10.0, 5.0]  # minutes
plain = SmoothL1Loss(beta=beta)
mean_of_known = SmoothL1Loss(beta=beta, reduction="mean_with_sample_weight")


def regressor(loss):
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    model = keras.Sequential(
        [
            keras.Input((x.shape[1],)),
            dense(64, activation="relu"),
            dense(64, activation="relu"),
            dense(len(TARGETS)),
            keras.layers.Rescaling(30.0, offset=[0.0, 150.0]),  # to minutes
        ]
    )
    model.compile(keras.optimizers.Adam(3e-3), loss)
    return model


def errors_after(name, loss, x_train, y_train, weights=None):
    """Returns mean absolute errors on test flights, after a fixed number of steps."""
    model = regressor(loss)
    steps, steps_of_all = (-(-len(part) // BATCH) for part in (x_train, x[train]))
    data = {"x": x_train, "y": y_train, "sample_weight": weights}
    epochs = EPOCHS * steps_of_all // steps
    display.fit(name, model, **data, batch_size=BATCH, epochs=epochs)
    return np.nanmean(np.abs(model.predict(x[test], verbose=0) - y[test]), axis=0)


rows, curves = [], {}
removed_shares = 0.5, 0.75, 0.9
for share in removed_shares:
    gaps = np.where(rng.random(y[train].shape) < share, np.nan, y[train])
    known = ~np.isnan(gaps)
    complete = known.all(axis=1)
    methods = {
        "NaN with weight 0": (mean_of_known, x[train], gaps, known.astype("float32")),
        "complete flights only": (plain, x[train][complete], gaps[complete]),
    }
    for name, method in methods.items():
        errors = errors_after(f"{name}, {share:.0%}", *method)
        curves.setdefault(name, []).append(errors)
        rows.append((name, f"{share:.0%}", *(f"{error:.2f}" for error in errors)))
columns = ("method", "removed", *TARGETS)
title = "Mean absolute error on the test flights, in minutes"
display.print_table(title, columns, rows)
print("Without weights the loss is", float(plain(gaps, np.zeros_like(gaps))))

# %%
# Sequences, padded with NaN
# --------------------------
# The network processes the flights of a month in order. The input for each flight
# includes the delay of the previous one. The padding is -1 in x, which the Masking
# layer detects, and NaN in y. Padding to twice the length does not change the training.

PADDING = -1.0
aircraft = departed["tailnum"].dropna().unique()[:AIRCRAFT]
flown = departed[departed["tailnum"].isin(aircraft)]
flown = flown.sort_values(["month", "day", "sched_dep_time"])
features = flights.features_at_departure(flown.assign(dep_delay=0.0))
delays = flown["arr_delay"].to_numpy("float32")
months = flown.reset_index().groupby(["tailnum", "month"]).indices.values()
LONGEST = 20


def padded(length):
    """Returns padded features and delays, and a mask of the known delays."""
    x = np.full((len(months), length, features.shape[1] + 1), PADDING, "float32")
    y = np.full((len(months), length, 1), np.nan, "float32")
    for number, month in enumerate(months):
        flight = month[:LONGEST]
        late = delays[flight]
        before = np.nan_to_num(np.concatenate([[0], late[:-1]]))
        x[number, : len(flight)] = np.column_stack([features[flight], before / 30])
        y[number, : len(flight), 0] = late
    return x, y, ~np.isnan(y[..., 0])


def recurrent():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((None, features.shape[1] + 1)),
            keras.layers.Masking(PADDING),
            keras.layers.GRU(32, return_sequences=True),
            keras.layers.Dense(1),
            keras.layers.Rescaling(30.0),
        ]
    )
    loss = SmoothL1Loss(beta=10.0, reduction="mean_with_sample_weight")
    model.compile(keras.optimizers.Adam(3e-3), loss)
    return model


rows, losses = [], {}
for length in (LONGEST, 2 * LONGEST):
    sequences, late, known = padded(length)
    model = recurrent()
    weights = known.astype("float32")
    data = {"x": sequences, "y": late, "sample_weight": weights}
    history = display.fit(
        f"padded to {length}", model, **data, batch_size=64, epochs=EPOCHS
    )
    losses[length] = history.history["loss"]
    rows.append((str(length), *(f"{loss:.6f}" for loss in losses[length])))
columns = ("padded to", *(f"epoch {epoch}" for epoch in range(1, EPOCHS + 1)))
display.print_table(f"Loss of {len(months)} sequences", columns, rows)

# %%
# For the longer sequences, evaluate() returns the mean over the known delays only.

reported = model.evaluate(**data, batch_size=len(late), verbose=0)
d = np.abs(model.predict(sequences, verbose=0) - late)[known].astype("float64")
expected = np.where(d < 10, d**2 / 20, d - 5).mean()
print(f"evaluate(): {reported:.6f}")
print(f"Mean over {known.sum()} known delays: {expected:.6f}")

# %%
# The figure shows the results of both networks.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for (name, errors), style in zip(curves.items(), ("o-", "s--"), strict=True):
    for number, target in enumerate(TARGETS):
        each = [of_targets[number] for of_targets in errors]
        label = f"{target}, {name}"
        left.plot(removed_shares, each, style, color=f"C{number}", label=label)
left.set(xlabel="fraction of targets removed", ylabel="mean absolute error (minutes)")
left.set(title="Two targets, some of them missing", xticks=removed_shares)
left.legend(frameon=False)
for (length, by_epoch), style in zip(losses.items(), ("o-", "s--"), strict=True):
    epochs = range(1, EPOCHS + 1)
    right.plot(epochs, by_epoch, style, label=f"padded to {length}")
right.set(xlabel="epoch", ylabel="loss", title="Padded sequences")
right.xaxis.get_major_locator().set_params(integer=True)
right.legend(frameon=False)
display.save_figure(figure, options.out / "missing_targets.png")

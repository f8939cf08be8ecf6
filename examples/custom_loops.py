"""
The loss in a loop of one's own
===============================

The same loss trains the same small network in the backend's own way: in a torch loop
with a torch optimizer, in a jitted JAX step over pure functions, or under
tf.GradientTape. Beside it runs `model.fit`, from the same weights on the same batches,
and both end in the same place.

To run it::

    KERAS_BACKEND=torch python examples/custom_loops.py
"""

import command_line
import compare_weights
import display
import flights
import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_smoothl1 import SmoothL1Loss

options = command_line.parse_options(__doc__)
BATCH, STEPS, EPOCHS = (64, 10, 2) if options.short else (256, 400, 5)
RATE = 0.1
loss = SmoothL1Loss(beta=1 / 9)

# %%
# The network and its batches
# ---------------------------
# Delays in hours, so that plain gradient descent does well.

departed = flights.load().dropna(subset=["arr_delay", "dep_delay"])[: BATCH * STEPS]
x = flights.features_at_departure(departed)
y = departed[["arr_delay"]].to_numpy("float32") / 60
batches = list(zip(np.split(x, STEPS), np.split(y, STEPS), strict=True)) * EPOCHS


def make_model():
    """Returns a small network, with the same initial weights at each call."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((x.shape[1],)),
            keras.layers.Dense(32, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )


# %%
# PyTorch
# -------
# A Keras model is a torch.nn.Module, and the loss is called like any function.


def train_with_torch(model):
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    device = next(model.parameters()).device
    for batch in batches:
        inputs, targets = (torch.from_numpy(part).to(device) for part in batch)
        optimizer.zero_grad()
        value = loss(targets, model(inputs))
        value.backward()
        optimizer.step()
        yield value.item()


# %%
# JAX
# ---
# The step takes weights and returns new ones; the loss is traced with the rest.


def train_with_jax(model):
    import jax

    def loss_of(weights, inputs, targets):
        predicted, _ = model.stateless_call(weights, [], inputs)
        return loss(targets, predicted)

    @jax.jit
    def step(weights, inputs, targets):
        value, slopes = jax.value_and_grad(loss_of)(weights, inputs, targets)
        return value, [
            w - RATE * slope for w, slope in zip(weights, slopes, strict=True)
        ]

    weights = [variable.value for variable in model.trainable_variables]
    for inputs, targets in batches:
        value, weights = step(weights, inputs, targets)
        yield float(value)
    for variable, weight in zip(model.trainable_variables, weights, strict=True):
        variable.assign(weight)


# %%
# TensorFlow
# ----------
# Under a tape, here in a function that TensorFlow compiles.


def train_with_tensorflow(model):
    import tensorflow as tf

    optimizer = keras.optimizers.SGD(RATE)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(inputs, targets):
        with tf.GradientTape() as tape:
            value = loss(targets, model(inputs, training=True))
        slopes = tape.gradient(value, model.trainable_weights)
        optimizer.apply(slopes, model.trainable_weights)
        return value

    for inputs, targets in batches:
        yield float(step(inputs, targets))


# %%
# Beside fit()
# ------------

way = {
    "torch": train_with_torch,
    "jax": train_with_jax,
    "tensorflow": train_with_tensorflow,
}[keras.backend.backend()]
own, fitted = (make_model() for _ in range(2))
losses = []
with display.progress_bars() as bars:
    task = bars.add_task("own loop", total=len(batches), status="compiling")
    for value in way(own):
        losses.append(value)
        bars.update(task, advance=1, status=f"loss {value:.4g}")
own_losses = np.reshape(losses, (EPOCHS, STEPS)).mean(axis=1)

fitted.compile(keras.optimizers.SGD(RATE), loss)
data = {"x": x, "y": y, "batch_size": BATCH, "epochs": EPOCHS, "shuffle": False}
fit_losses = display.fit("fit()", fitted, **data).history["loss"]

rows = [
    (str(epoch), *(f"{loss:.7f}" for loss in losses_of_both))
    for epoch, losses_of_both in enumerate(zip(own_losses, fit_losses, strict=True), 1)
]
display.print_table("Mean loss of each epoch", ("epoch", "own loop", "fit()"), rows)
apart = compare_weights.largest_difference(own.get_weights(), fitted.get_weights())
print(f"Largest difference of a weight at the end: {apart:.1e}")

figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
axis.plot(losses, color="lightgrey", label="each step of the own loop")
middles = STEPS * (np.arange(EPOCHS) + 0.5)
axis.plot(middles, own_losses, "o-", label="own loop, mean of an epoch", lw=4)
axis.plot(middles, fit_losses, "s--", label="fit(), mean of an epoch")
axis.set(xlabel="step", ylabel="loss", title="The own loop beside fit()")
axis.legend(frameon=False)
display.save_figure(figure, options.out / "custom_loops.png")

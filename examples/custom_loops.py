"""
Custom training loops
=====================

Trains a small network in a custom loop: with a torch optimizer, with a jitted JAX step
of pure functions, or with tf.GradientTape, depending on the backend. `model.fit` trains
the same network from the same initial weights on the same batches. Both end with the
same weights.

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
# The delays are in hours, a scale on which plain gradient descent works well.

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
# A Keras model is a torch.nn.Module. The loss is called like a function.


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
# The step maps the weights to new weights. JAX traces the loss as a part of it.


def train_with_jax(model):
    import jax

    def loss_of(weights, inputs, targets):
        predicted, _ = model.stateless_call(weights, [], inputs)
        return loss(targets, predicted)

    @jax.jit
    def step(weights, inputs, targets):
        value, gradients = jax.value_and_grad(loss_of)(weights, inputs, targets)
        pairs = zip(weights, gradients, strict=True)
        return value, [weight - RATE * gradient for weight, gradient in pairs]

    weights = [variable.value for variable in model.trainable_variables]
    for inputs, targets in batches:
        value, weights = step(weights, inputs, targets)
        yield float(value)
    for variable, weight in zip(model.trainable_variables, weights, strict=True):
        variable.assign(weight)


# %%
# TensorFlow
# ----------
# The tape records the loss, here inside a tf.function.


def train_with_tensorflow(model):
    import tensorflow as tf

    optimizer = keras.optimizers.SGD(RATE)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(inputs, targets):
        with tf.GradientTape() as tape:
            value = loss(targets, model(inputs, training=True))
        gradients = tape.gradient(value, model.trainable_weights)
        optimizer.apply(gradients, model.trainable_weights)
        return value

    for inputs, targets in batches:
        yield float(step(inputs, targets))


# %%
# Comparison with fit()
# ---------------------

custom_loop = {
    "torch": train_with_torch,
    "jax": train_with_jax,
    "tensorflow": train_with_tensorflow,
}[keras.backend.backend()]
custom, fitted = (make_model() for _ in range(2))
losses = []
with display.progress_bars() as bars:
    task = bars.add_task("custom loop", total=len(batches), status="compiling")
    for value in custom_loop(custom):
        losses.append(value)
        bars.update(task, advance=1, status=f"loss {value:.4g}")
loop_losses = np.reshape(losses, (EPOCHS, STEPS)).mean(axis=1)

fitted.compile(keras.optimizers.SGD(RATE), loss)
data = {"x": x, "y": y, "batch_size": BATCH, "epochs": EPOCHS, "shuffle": False}
fit_losses = display.fit("fit()", fitted, **data).history["loss"]

rows = [
    (str(epoch), *(f"{loss:.7f}" for loss in losses_of_both))
    for epoch, losses_of_both in enumerate(zip(loop_losses, fit_losses, strict=True), 1)
]
display.print_table("Mean loss of each epoch", ("epoch", "custom loop", "fit()"), rows)
apart = compare_weights.largest_difference(custom.get_weights(), fitted.get_weights())
print(f"Largest difference between the final weights: {apart:.1e}")

figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
axis.plot(losses, color="lightgrey", label="custom loop, each step")
middles = STEPS * (np.arange(EPOCHS) + 0.5)
axis.plot(middles, loop_losses, "o-", label="custom loop, mean of each epoch", lw=4)
axis.plot(middles, fit_losses, "s--", label="fit(), mean of each epoch")
axis.set(xlabel="step", ylabel="loss", title="Custom loop and fit()")
axis.legend(frameon=False)
display.save_figure(figure, options.out / "custom_loops.png")

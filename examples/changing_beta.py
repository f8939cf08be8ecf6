"""
Learning beta and scheduling beta
=================================

The network of :doc:`boxes` predicts the box of a digit. One training box in ten is
wrong. This example compares four choices of beta. In each, beta is a tensor, so that
changing its value does not trigger a recompilation.

- Two constants: 1/9, and 0.02, which is close to the final value of the other two.
- The rule of `Dynamic R-CNN <https://arxiv.org/abs/2004.06002>`_: beta starts at 1/9,
  and then follows the small errors of the latest batches.
- One learned beta for each of the four offsets. The loss is a negative log-likelihood,
  as in `Barron <https://arxiv.org/abs/1701.03077>`_, who learns the shape of a loss.

To run it::

    KERAS_BACKEND=jax python examples/changing_beta.py
"""

import command_line
import digit_boxes
import display
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

from keras_smoothl1 import smooth_l1_loss

options = command_line.parse_options(__doc__)
NUMBER, EPOCHS = (1024, 6) if options.short else (4096, 20)
BATCH = 64
rng = np.random.default_rng(0)
images, boxes = digit_boxes.load(NUMBER, rng)
train, test = slice(NUMBER // 4, None), slice(NUMBER // 4)
y = digit_boxes.offsets(boxes)
labels = digit_boxes.with_wrong_labels(y[train], 0.1, rng)

# %%
# A constant beta in a variable
# -----------------------------
# A compiled training step only sees changes of the model's variables, so beta is one of
# them. ``compute_loss`` passes it to the loss.


class Locator(keras.Model):
    def __init__(self, beta=1 / 9):
        super().__init__()
        self.network = keras.Sequential(digit_boxes.locator_layers())
        initializer = keras.initializers.Constant(beta)
        self.beta = self.add_weight((), initializer, trainable=False, name="beta")

    def build(self, input_shape):
        self.network.build(input_shape)

    def call(self, images):
        return self.network(images)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        losses = smooth_l1_loss(y, y_pred, self.beta, sample_weight=sample_weight)
        return ops.mean(losses)

    def betas(self):
        """Returns the beta of each offset."""
        return np.broadcast_to(ops.convert_to_numpy(self.beta), 4)


# %%
# The rule of Dynamic R-CNN
# -------------------------
# Each step records the RANK-th smallest of the mean errors of the images in the batch.
# (The paper records the errors of the region proposals, which this network does not
# have.) Every INTERVAL batches, a callback sets beta to the median of the recorded
# errors. It accesses the variable through ``self.model``, because Keras then
# synchronizes the variables on JAX. FLOOR keeps beta above 0.

RANK, INTERVAL, FLOOR, CEILING = 16, 12, 1e-3, 1 / 9


class Dynamic(Locator):
    def __init__(self):
        super().__init__()
        self.recorded = self.add_weight(
            (INTERVAL,), "zeros", trainable=False, name="recorded"
        )

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        if training:
            errors = ops.mean(ops.abs(y - y_pred), axis=-1)
            small = ops.sort(errors)[RANK - 1 : RANK]
            self.recorded.assign(ops.concatenate([self.recorded[1:], small]))
        return super().compute_loss(x, y, y_pred, sample_weight, training)


class FollowErrors(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches % INTERVAL == 0:
            model = self.model
            median = np.median(ops.convert_to_numpy(model.recorded))
            model.beta.assign(np.clip(median, FLOOR, CEILING))


# %%
# A learned beta
# --------------
# The loss decreases as beta increases, so a beta that is learned from the loss alone
# would grow without limit. A negative log-likelihood prevents this: if beta or the
# scale is too large, the normalization increases by more than the loss decreases. With
# the scale s, the density of an error is exp(-loss / s) / Z. It is normal in the center
# and exponential in the tails, and
#
# .. math::
#
#     Z = \sqrt{2 \pi \beta s}\ \mathrm{erf}\sqrt{\beta / 2s} + 2 s\, e^{-\beta / 2s}
#
# The logarithms of beta and s are variables of shape (1, 4). The optimizer trains them
# together with the network.


class Learned(Locator):
    def __init__(self):
        super().__init__()
        self.log_beta, self.log_scale = (
            self.add_weight(
                shape=(1, 4),
                initializer=keras.initializers.Constant(np.log(start)),
                name=name,
            )
            for name, start in (("log_beta", 1 / 9), ("log_scale", 0.2))
        )

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        beta, scale = ops.exp(self.log_beta), ops.exp(self.log_scale)
        ratio = beta / (2 * scale)
        middle = ops.sqrt(2 * np.pi * beta * scale) * ops.erf(ops.sqrt(ratio))
        normalizer = middle + 2 * scale * ops.exp(-ratio)
        losses = smooth_l1_loss(y, y_pred, beta, sample_weight=sample_weight)
        return ops.mean(losses / scale + ops.log(normalizer))

    def betas(self):
        return np.exp(ops.convert_to_numpy(self.log_beta))[0]


# %%
# Training
# --------
# After each epoch, a callback records the beta of each offset, and the errors and the
# intersection over union (IoU) on the test images.


class Watch(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.betas, self.errors, self.fits = [], [], []

    def on_epoch_end(self, epoch, logs=None):
        predicted = self.model.predict(images[test], verbose=0)
        fit = digit_boxes.iou(digit_boxes.boxes_of(predicted), boxes[test])
        self.betas.append(self.model.betas())
        self.errors.append(np.abs(predicted - y[test]).mean())
        self.fits.append(fit)


RULES = {
    "constant 1/9": Locator,
    "constant 0.02": lambda: Locator(0.02),
    "Dynamic R-CNN": Dynamic,
    "learned": Learned,
}
watched = {}
for name, make in RULES.items():
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(keras.optimizers.Adam(2e-3))
    watched[name] = Watch()
    callbacks = [watched[name], *([FollowErrors()] if make is Dynamic else [])]
    display.fit(
        name,
        model,
        images[train],
        labels,
        batch_size=BATCH,
        epochs=EPOCHS,
        callbacks=callbacks,
    )

# %%
# Results
# -------
# With a scheduled or learned beta, boxes fit better than with a constant beta of 1/9,
# because few errors are that large after the first epochs. They do not fit better than
# with a constant beta of 0.02. Over four seeds on JAX, the mean IoU is 0.744 with 1/9,
# 0.791 with 0.02, 0.792 with the rule of Dynamic R-CNN, and 0.780 with a learned beta.
# Each standard deviation is 0.011 or less. A scheduled or learned beta saves the search
# for a good constant.

rows = []
for name, seen in watched.items():
    fit, betas = seen.fits[-1], seen.betas[-1]
    final = " to ".join(f"{beta:.3f}" for beta in sorted({min(betas), max(betas)}))
    good = f"{100 * (fit > 0.75).mean():.1f}%"
    rows.append((name, final, f"{seen.errors[-1]:.4f}", f"{fit.mean():.3f}", good))
columns = ("rule", "final beta", "mean error", "mean IoU", "IoU > 0.75")
display.print_table(f"Boxes in {len(y[test])} test images", columns, rows)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
epochs = np.arange(1, EPOCHS + 1)
for name, color in zip(watched, ("C0", "C7", "C1", "C2"), strict=True):
    betas = np.array(watched[name].betas)
    left.semilogy(epochs, betas if name == "learned" else betas[:, 0], color)
    label = "learned, one per offset" if name == "learned" else name
    right.plot(epochs, watched[name].errors, color, label=label)
left.set(xlabel="epoch", xticks=epochs[1::2], ylabel="beta", title="Beta")
right.set(
    xlabel="epoch", xticks=epochs[1::2], ylabel="mean absolute error of the offsets"
)
right.set_title("Error on the test images")
right.legend(frameon=False)
display.save_figure(figure, options.out / "changing_beta.png")

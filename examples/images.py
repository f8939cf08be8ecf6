"""
Finding wrong training images with per-image losses
===================================================

A small network removes salt-and-pepper noise from patches of the two photographs in
scikit-learn. One training pair in ten is mismatched: its clean image belongs to another
pair. With `reduce_dims=(1, 2, 3)`, the loss has one value per image, in the shape
(batch, 1, 1, 1). These values show which pairs are wrong. Weights of shape (batch,)
exclude the suspicious pairs from a second round.

To run it::

    KERAS_BACKEND=jax python examples/images.py
"""

import command_line
import display
import keras
import matplotlib.pyplot as plt
import numpy as np
import scipy.ndimage
from sklearn.datasets import load_sample_images

from keras_smoothl1 import SmoothL1Loss

options = command_line.parse_options(__doc__)
NUMBER, EPOCHS = (160, 1) if options.short else (2048, 6)
SIDE = 32
rng = np.random.default_rng(0)

# %%
# Patches
# -------
# Training patches come from the left three quarters of each photograph, test patches
# from the right quarter. The noise makes 10% to 50% of the pixels black or white.

photographs = [image.astype("float32") / 255 for image in load_sample_images().images]


def patches(parts, number):
    """Returns random patches, (number, SIDE, SIDE, 3)."""
    cut = []
    for _ in range(number):
        part = parts[rng.integers(len(parts))]
        top, left = (rng.integers(size - SIDE + 1) for size in part.shape[:2])
        cut.append(part[top : top + SIDE, left : left + SIDE])
    return np.array(cut)


def add_noise(images):
    share = rng.uniform(0.1, 0.5, (len(images), 1, 1, 1))
    grains = rng.integers(2, size=images.shape[:3])[..., None].astype("float32")
    return np.where(rng.random(grains.shape) < share, grains, images)


edge = 3 * photographs[0].shape[1] // 4
y_train = patches([photograph[:, :edge] for photograph in photographs], NUMBER)
y_test = patches([photograph[:, edge:] for photograph in photographs], NUMBER // 4)
x_train, x_test = add_noise(y_train), add_noise(y_test)
mismatched = rng.permutation(NUMBER) < NUMBER // 10
y_train[mismatched] = np.roll(y_train[mismatched], 1, axis=0)

# %%
# Training
# --------
# The first round gives the loss of each image. Two networks continue from its weights:
# one with all images, and one with weight 0 for the tenth with the largest losses.

loss = SmoothL1Loss(beta=0.1, reduce_dims=(1, 2, 3))
per_image = SmoothL1Loss(beta=0.1, reduce_dims=(1, 2, 3), reduction=None)


def loss_of_each(clean, restored):
    losses = keras.ops.convert_to_numpy(per_image(clean, restored))
    assert losses.shape == (len(clean), 1, 1, 1)
    return losses[:, 0, 0, 0]


def restorer():
    keras.utils.set_random_seed(0)
    image = x = keras.Input((None, None, 3))
    for _ in range(3):
        x = keras.layers.Conv2D(24, 3, padding="same", activation="relu")(x)
    change = keras.layers.Conv2D(3, 3, padding="same")(x)
    model = keras.Model(image, keras.layers.Add()([image, change]))
    model.compile(keras.optimizers.Adam(2e-3), loss)
    return model


def train(name, model, weights=None):
    data = {"x": x_train, "y": y_train, "sample_weight": weights}
    display.fit(name, model, **data, batch_size=32, epochs=EPOCHS)
    return model


first_round = train("first round", restorer())
losses = loss_of_each(y_train, first_round.predict(x_train, verbose=0))
weights = (losses < np.quantile(losses, 0.9)).astype("float32")
found = (mismatched & (weights == 0)).sum()
print(f"Of {mismatched.sum()} mismatched pairs, {found} are among the worst tenth.")
restored = {
    "noisy": x_test,
    "5 x 5 median filter": scipy.ndimage.median_filter(x_test, (1, 5, 5, 1)),
}
for name, more in {"all images": None, "without the worst tenth": weights}.items():
    model = restorer()
    model.set_weights(first_round.get_weights())
    restored[name] = train(name, model, more).predict(x_test, verbose=0)

# %%
# Results
# -------
# PSNR is the peak signal-to-noise ratio of all test patches together.

rows = []
for name, images in restored.items():
    squared = np.mean((np.clip(images, 0, 1) - y_test) ** 2)
    each = loss_of_each(y_test, images)
    numbers = each.mean(), np.median(each), each.max()
    rows.append(
        (name, f"{-10 * np.log10(squared):.2f}", *(f"{n:.4f}" for n in numbers))
    )
columns = ("", "PSNR (dB)", "mean loss", "median", "largest")
display.print_table(f"Errors on {len(x_test)} test patches", columns, rows)

# %%
# Left: the training pairs with the largest losses. Center: test patches. Right: the
# losses of all training pairs after the first round.

figure = plt.figure(figsize=(12, 3.8), layout="constrained")
pairs, unseen, all_losses = figure.subfigures(1, 3, width_ratios=(5, 5, 6))


def grid(panel, title, rows):
    panel.suptitle(title)
    for line, (name, images) in zip(
        panel.subplots(len(rows), 4), rows.items(), strict=True
    ):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, image in zip(line, images, strict=False):
            axis.imshow(np.clip(image, 0, 1))
            axis.set(xticks=[], yticks=[])


worst = np.argsort(losses)[::-1][:4]
restored_worst = first_round.predict(x_train[worst], verbose=0)
triple = {
    "noisy": x_train[worst],
    "restored": restored_worst,
    "target": y_train[worst],
}
grid(pairs, "Training pairs with the largest loss", triple)
last = restored["without the worst tenth"]
grid(unseen, "Test patches", {"noisy": x_test, "restored": last, "target": y_test})

axis = all_losses.subplots()
bins = np.geomspace(losses.min(), losses.max(), 50)
both = {"correct pairs": ~mismatched, "mismatched pairs": mismatched}
axis.hist(
    [losses[which] for which in both.values()], bins, stacked=True, label=list(both)
)
axis.axvline(np.quantile(losses, 0.9), color="grey", linestyle="--")
axis.set(xscale="log", xlabel="loss per image; excluded right of the line")
axis.set_ylabel("images")
axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
display.save_figure(figure, options.out / "images.png")

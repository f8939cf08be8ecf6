"""
Box regression with one beta per offset
=======================================

A small network predicts the box of a handwritten digit from scikit-learn. As in a
detector, the output consists of four offsets from an anchor, here in the center of the
image. One training box in ten belongs to another image, which simulates annotation
errors. The example compares the squared error, Huber, Smooth L1 with beta = 1/9, which
Faster R-CNN uses for its proposals (sigma = 3), and Smooth L1 with one beta per offset.

To run it::

    KERAS_BACKEND=jax python examples/boxes.py
"""

import command_line
import digit_boxes
import display
import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_smoothl1 import SmoothL1Loss

options = command_line.parse_options(__doc__)
NUMBER, EPOCHS = (256, 1) if options.short else (4096, 12)
rng = np.random.default_rng(0)

# %%
# Images and boxes
# ----------------
# The digits are 10 to 30 pixels wide and high, at random positions in a noisy image. A
# box encloses the ink. As in a detector, the offsets are the shift and the logarithm of
# the size, both relative to the anchor.

images, boxes = digit_boxes.load(NUMBER, rng)
train, test = slice(NUMBER // 4, None), slice(NUMBER // 4)
y = digit_boxes.offsets(boxes)
labels = digit_boxes.with_wrong_labels(y[train], 0.1, rng)

# %%
# Training
# --------
# Detectors divide the shifts by 0.1 and the sizes by 0.2 before they compute the loss.
# One beta per offset scales the threshold of the loss in the same way, and leaves the
# offsets unchanged.

scales = 0.1, 0.1, 0.2, 0.2
losses = {
    "squared error": keras.losses.MeanSquaredError(),
    "Huber, delta 1/9": keras.losses.Huber(delta=1 / 9),
    "Smooth L1, beta 1/9": SmoothL1Loss(beta=1 / 9),
    "Smooth L1, beta per offset": SmoothL1Loss(beta=[scale / 9 for scale in scales]),
}


predicted = {}
for name, loss in losses.items():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(digit_boxes.locator_layers())
    model.compile(keras.optimizers.Adam(2e-3), loss)
    display.fit(name, model, images[train], labels, batch_size=64, epochs=EPOCHS)
    predicted[name] = model.predict(images[test], verbose=0)

# %%
# How well the boxes fit
# ----------------------
# The table shows the intersection over union (IoU) of predicted and true boxes, on test
# images whose boxes are all correct.

fits = {
    name: digit_boxes.iou(digit_boxes.boxes_of(offsets), boxes[test])
    for name, offsets in predicted.items()
}
rows = []
for name, fit in fits.items():
    error = np.abs(predicted[name] - y[test])
    good = [f"{100 * (fit > bound).mean():.1f}%" for bound in (0.5, 0.75)]
    parts = [f"{part.mean():.3f}" for part in (error[:, :2], error[:, 2:])]
    rows.append((name, f"{fit.mean():.3f}", *good, *parts))
columns = ("loss", "mean IoU", "> 0.5", "> 0.75", "shift", "size")
display.print_table(f"Boxes in {len(y[test])} test images", columns, rows)
print("> 0.5, > 0.75: fraction of images with a larger IoU")
print("shift, size: mean absolute error of these offsets")

# %%
# The figure shows eight test images with the boxes of two networks, and the IoU of all
# networks.

figure = plt.figure(figsize=(11, 4.2), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
colors = dict(zip(fits, ("C0", "C1", "C2", "C3"), strict=True))
first, *_, last = fits


left.suptitle("Test images, lowest IoU of the squared error first")
axes = left.subplots(2, 4)
by_fit = np.argsort(fits[first])
for axis, number in zip(axes.flat, by_fit[:: len(by_fit) // 8], strict=False):
    axis.imshow(images[test][number], cmap="gray_r", vmin=0, vmax=1.5)
    axis.set(xticks=[], yticks=[])
    display.draw_box(axis, boxes[test][number], label="true", color="black")
    for name in (first, last):
        (box,) = digit_boxes.boxes_of(predicted[name][[number]])
        display.draw_box(axis, box, label=name, color=colors[name])
names = axes[0, 0].get_legend_handles_labels()
left.legend(*names, loc="outside lower center", ncols=3, frameon=False)

curves = right.subplots()
for name, fit in fits.items():
    dash = "--" if name == "Smooth L1, beta 1/9" else "-"  # it coincides with Huber's
    curves.ecdf(fit, complementary=True, label=name, color=colors[name], ls=dash)
curves.set(xlabel="intersection over union", ylabel="fraction of images above")
curves.set_title("All test images")
curves.legend(frameon=False)
display.save_figure(figure, options.out / "boxes.png")

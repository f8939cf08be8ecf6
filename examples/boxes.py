"""
Where is the digit? Four box offsets, and one beta for each
===========================================================

A small network looks at a canvas with one handwritten digit of scikit-learn's, and
says where its box is: four offsets from an anchor in the middle, as detectors do. One
training box in ten is that of another picture, as happens when people draw boxes.
It is trained with the squared error, Huber, Smooth L1 with the beta of 1/9 that Faster
R-CNN has for its proposals (sigma 3), and Smooth L1 with one beta per offset.

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
# Pictures and boxes
# ------------------
# Digits of 10 to 30 pixels a side, somewhere on the canvas, among noise. A box ends
# where the ink does. A detector predicts shifts in sizes of the anchor, and logs of
# sizes.

pictures, boxes = digit_boxes.load(NUMBER, rng)
train, test = slice(NUMBER // 4, None), slice(NUMBER // 4)
y = digit_boxes.offsets(boxes)
labels = digit_boxes.with_wrong_ones(y[train], 0.1, rng)

# %%
# Training
# --------
# Detectors divide shifts by 0.1 and sizes by 0.2 before they compare. A beta for each
# offset does the same to where the loss turns, and leaves the offsets as they are.

scales = 0.1, 0.1, 0.2, 0.2
losses = {
    "squared error": keras.losses.MeanSquaredError(),
    "Huber, delta 1/9": keras.losses.Huber(delta=1 / 9),
    "Smooth L1, beta 1/9": SmoothL1Loss(beta=1 / 9),
    "Smooth L1, one beta each": SmoothL1Loss(beta=[scale / 9 for scale in scales]),
}


predicted = {}
for name, loss in losses.items():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(digit_boxes.locator_layers())
    model.compile(keras.optimizers.Adam(2e-3), loss)
    display.fit(name, model, pictures[train], labels, batch_size=64, epochs=EPOCHS)
    predicted[name] = model.predict(pictures[test], verbose=0)

# %%
# How well the boxes fit
# ----------------------
# Intersection over union of true and predicted boxes, on pictures with right boxes.

fits = {
    name: digit_boxes.iou(digit_boxes.boxes_of(offsets), boxes[test])
    for name, offsets in predicted.items()
}
rows = []
for name, fit in fits.items():
    error = np.abs(predicted[name] - y[test])
    good = [f"{100 * (fit > bound).mean():.1f} %" for bound in (0.5, 0.75)]
    parts = [f"{part.mean():.3f}" for part in (error[:, :2], error[:, 2:])]
    rows.append((name, f"{fit.mean():.3f}", *good, *parts))
columns = ("loss", "mean IoU", "over 0.5", "over 0.75", "shift", "size")
display.print_table(f"Boxes of {len(y[test])} pictures not seen before", columns, rows)
print("shift and size: mean absolute errors of these offsets.")

# %%
# Eight of the pictures, and the two networks that differ most.

figure = plt.figure(figsize=(11, 4.2), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
colors = dict(zip(fits, ("C0", "C1", "C2", "C3"), strict=True))
first, *_, last = fits


left.suptitle("Fits of the squared error, the worst first")
axes = left.subplots(2, 4)
by_fit = np.argsort(fits[first])
for axis, number in zip(axes.flat, by_fit[:: len(by_fit) // 8], strict=False):
    axis.imshow(pictures[test][number], cmap="gray_r", vmin=0, vmax=1.5)
    axis.set(xticks=[], yticks=[])
    display.draw_box(axis, boxes[test][number], label="true", color="black")
    for name in (first, last):
        (box,) = digit_boxes.boxes_of(predicted[name][[number]])
        display.draw_box(axis, box, label=name, color=colors[name])
names = axes[0, 0].get_legend_handles_labels()
left.legend(*names, loc="outside lower center", ncols=3, frameon=False)

curves = right.subplots()
for name, fit in fits.items():
    dash = "--" if name == "Smooth L1, beta 1/9" else "-"  # it lies on Huber's
    curves.ecdf(fit, complementary=True, label=name, color=colors[name], ls=dash)
curves.set(xlabel="intersection over union", ylabel="share of pictures above")
curves.set_title("All pictures not seen before")
curves.legend(frameon=False)
display.save_figure(figure, options.out / "boxes.png")

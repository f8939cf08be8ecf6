"""
Box loss of KerasHub's RetinaNet
================================

KerasHub's RetinaNet accepts any Keras loss as its box loss. This example uses Smooth L1
with beta = 1/9. The loss of a box is the mean over its four offsets. The losses of all
boxes are added, because KerasHub's weights already divide by the number of boxes. A
small detector learns to find a red or blue rectangle in synthetic images.

To run it::

    KERAS_BACKEND=jax python examples/retinanet.py
"""

import command_line
import display
import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np

from keras_smoothl1 import SmoothL1Loss

options = command_line.parse_options(__doc__)
ROUNDS, NUMBER = (2, 32) if options.short else (8, 256)
SIDE = 64
COLORS = np.array([[0.9, 0.2, 0.2], [0.2, 0.2, 0.9]])
rng = np.random.default_rng(0)

# %%
# Images
# ------
# Each round of training generates new images.


def make_images(number):
    """Returns noisy images with a rectangle each, and the targets for KerasHub."""
    images = rng.uniform(0, 0.4, (number, SIDE, SIDE, 3)).astype("float32")
    boxes, labels = np.zeros((number, 1, 4), "float32"), rng.integers(2, size=number)
    for image, box, label in zip(images, boxes[:, 0], labels, strict=True):
        width, height = rng.integers(24, 44, size=2)
        left, top = (rng.integers(SIDE - size) for size in (width, height))
        image[top : top + height, left : left + width] = COLORS[label]
        box[:] = left, top, left + width, top + height
    return images, {"boxes": boxes, "labels": labels[:, None].astype("int32")}


# %%
# The detector
# ------------
# The backbone is a ResNet with three small stages. The smallest anchors are 32
# pixels wide.

keras.utils.set_random_seed(0)
stages = keras_hub.models.ResNetBackbone(
    input_conv_filters=[64],
    input_conv_kernel_sizes=[3],
    stackwise_num_filters=[64, 64, 64],
    stackwise_num_blocks=[1, 1, 1],
    stackwise_num_strides=[1, 2, 2],
    block_type="basic_block",
    use_pre_activation=False,
    image_shape=(SIDE, SIDE, 3),
)
pyramid = keras_hub.models.RetinaNetBackbone(
    image_encoder=stages, min_level=3, max_level=4, use_p5=False
)
detector = keras_hub.models.RetinaNetObjectDetector(
    pyramid,
    num_classes=len(COLORS),
    bounding_box_format="xyxy",
    pre_logits_num_conv_layers=1,
)
# KerasHub 0.32 applies the prior probability of a score, 0.01, to the box head instead
# of the classification head.
starts = {detector.box_head: 0.0, detector.classification_head: np.log(0.01 / 0.99)}
for head, start in starts.items():
    bias = head.prediction_layer.bias
    bias.assign(np.full(bias.shape, start, "float32"))
detector.compile(
    optimizer=keras.optimizers.Adam(5e-4),
    box_loss=SmoothL1Loss(beta=1 / 9, reduction="sum", reduce_dims=-1),
)

# %%
# Training
# --------

losses = {"bbox_regression_loss": [], "cls_logits_loss": []}
for number in range(1, ROUNDS + 1):
    x, y = make_images(NUMBER)
    # KerasHub wraps the data in a dataset. Keras cannot shuffle it, and would warn.
    logs = display.fit(f"round {number}", detector, x, y, batch_size=8, shuffle=False)
    for name, values in losses.items():
        values += logs.history[name]
rows = [
    (name, f"{values[0]:.3f}", f"{values[-1]:.3f}") for name, values in losses.items()
]
display.print_table("Losses", ("", "round 1", f"round {ROUNDS}"), rows)

# %%
# Results
# -------
# Each rectangle is compared with the best detection of the correct color.

images, truth = make_images(NUMBER // 2)
found = detector.predict(images, batch_size=NUMBER // 2, verbose=0)
iou = keras.utils.bounding_boxes.compute_iou(truth["boxes"], found["boxes"], "xyxy")
iou = keras.ops.convert_to_numpy(iou)[:, 0]  # each image has one true box
fits = np.where(found["labels"] == truth["labels"], iou, 0)
best, fits = found["boxes"][np.arange(len(fits)), fits.argmax(1)], fits.max(1)
print(
    f"The detector finds {(fits > 0.5).mean():.0%} of {len(fits)} rectangles in new "
    f"images (IoU > 0.5). The mean IoU is {fits.mean():.2f}."
)

figure = plt.figure(figsize=(11, 4.2), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
for number, axis in enumerate(left.subplots(2, 4).flat):
    axis.imshow(images[number])
    axis.set(xticks=[], yticks=[])
    display.draw_box(axis, truth["boxes"][number, 0], color="black", label="true")
    display.draw_box(axis, best[number], color="yellow", label="found")
names = left.axes[0].get_legend_handles_labels()
left.legend(*names, loc="outside lower center", ncols=2)
curves = right.subplots()
for name, values in losses.items():
    curves.semilogy(range(1, ROUNDS + 1), values, "o-", label=name)
curves.set(xlabel=f"round of {NUMBER} images", ylabel="loss")
curves.legend(frameon=False)
display.save_figure(figure, options.out / "retinanet.png")

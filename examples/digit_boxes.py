"""Images with one handwritten digit from scikit-learn, and its bounding box.

A box is given as left, top, right and bottom in pixels, or, as detectors predict it, by
four offsets from an anchor in the center of the image.
"""

import numpy as np
import scipy.ndimage
from sklearn.datasets import load_digits

CANVAS = 40
ANCHOR = np.array([CANVAS / 2, CANVAS / 2, 20, 20])  # center x and y, width, height


def load(number, rng):
    """Returns images of shape (number, CANVAS, CANVAS, 1), and their boxes.

    Each image is a noisy canvas with a digit at a random position. The digit is 10 to
    30 pixels wide and high, and its box encloses the ink.
    """
    digits = load_digits().images / 16
    chosen = rng.choice(len(digits), number)
    placed = (_place(digits[index], rng) for index in chosen)
    canvases, boxes = map(np.array, zip(*placed, strict=True))
    return canvases, boxes


def _place(digit, rng):
    ink = scipy.ndimage.zoom(digit, rng.uniform(10, 30, 2) / 8, order=1)
    top, left = (rng.integers(CANVAS - side + 1) for side in ink.shape)
    canvas = rng.uniform(0, 0.5, (CANVAS, CANVAS))
    window = canvas[top : top + ink.shape[0], left : left + ink.shape[1]]
    np.maximum(window, ink, out=window)
    rows, columns = (np.flatnonzero(ink.max(axis) > 0.3) for axis in (1, 0))
    corner = np.array([left, top])
    start = corner + [columns[0], rows[0]]
    end = corner + [columns[-1] + 1, rows[-1] + 1]
    return canvas[..., None].astype("float32"), [*start, *end]


def offsets(boxes):
    """Returns the shifts and log sizes of boxes (n, 4), relative to the anchor."""
    size = boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + size / 2 - ANCHOR[:2]) / ANCHOR[2:]
    return np.hstack([shift, np.log(size / ANCHOR[2:])]).astype("float32")


def boxes_of(offsets):
    """Returns the boxes (n, 4) that have these offsets."""
    middle = ANCHOR[:2] + offsets[:, :2] * ANCHOR[2:]
    size = np.exp(offsets[:, 2:]) * ANCHOR[2:]
    return np.hstack([middle - size / 2, middle + size / 2])


def with_wrong_labels(offsets, share, rng):
    """Returns offsets, a share of which is exchanged between images."""
    offsets = offsets.copy()
    wrong = rng.random(len(offsets)) < share
    offsets[wrong] = rng.permutation(offsets[wrong])
    return offsets


def iou(first, second):
    """Returns the intersection over union of each pair of boxes, (n, 4) and (n, 4)."""
    start = np.maximum(first[:, :2], second[:, :2])
    end = np.minimum(first[:, 2:], second[:, 2:])
    common = np.clip(end - start, 0, None).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return common / (sum(areas) - common)


def locator_layers():
    """Returns the layers of a small network that predicts four offsets."""
    import keras

    layers = [
        keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")
        for filters in (16, 32, 64)
    ]
    layers += [keras.layers.Flatten(), keras.layers.Dense(64, activation="relu")]
    return [*layers, keras.layers.Dense(4)]

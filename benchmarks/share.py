"""Measures the loss's share of a training step of a small U-Net.

    KERAS_BACKEND=torch python benchmarks/share.py --json share.json

The same model runs the same eager step with each loss, in random order. The time of the
loss is that of its forward pass and of its backward pass to the predictions.
"""

import json
import random
import statistics
import time

import common
import keras
import numpy as np
import torch
from rich.console import Console
from rich.progress import track

BATCH, SIZE = 16, 128


def parse_arguments():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=20, help="number of steps with each loss"
    )
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    keras.utils.set_random_seed(0)
    model = unet()
    optimizer = keras.optimizers.SGD(1e-3)
    optimizer.build(model.trainable_variables)
    shape = (BATCH, SIZE, SIZE, 3)
    x, y = map(torch.tensor, np.random.default_rng(0).random((2, *shape), "float32"))
    losses = common.implementations("plain")
    times = {name: [] for name in losses}
    for count in track(range(arguments.steps + 2), description="steps"):
        for name in random.sample(list(losses), len(losses)):
            seconds = step(model, optimizer, losses[name], x, y)
            if count >= 2:  # after the warm-up
                times[name].append(seconds)
    rows = [{"name": name, **summary(times[name])} for name in losses]
    show(rows)
    if arguments.json:
        result = {"machine": common.machine(), "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1))


def unet():
    layers = keras.layers
    x = inputs = keras.Input((SIZE, SIZE, 3))
    skips = []
    for width in (8, 16, 32):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    for width in (32, 16, 8):
        x = layers.Concatenate()([layers.UpSampling2D()(x), skips.pop()])
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(3, 1)(x))


def step(model, optimizer, loss, x, y):
    """Seconds of one training step, and of the loss within it."""
    start = time.perf_counter()
    model.zero_grad()
    y_pred = model(x, training=True)
    predictions = y_pred.detach().requires_grad_()
    start_of_loss = time.perf_counter()
    loss(y, predictions, None).backward()
    loss_seconds = time.perf_counter() - start_of_loss
    y_pred.backward(predictions.grad)
    variables = model.trainable_variables
    with torch.no_grad():
        optimizer.apply([variable.value.grad for variable in variables], variables)
    return time.perf_counter() - start, loss_seconds


def summary(times):
    return {
        "step": statistics.median(step for step, _ in times),
        "loss": statistics.median(loss for _, loss in times),
        "share": statistics.median(loss / step for step, loss in times),
    }


def show(rows):
    table = common.table(None, "step, ms", "loss, ms", "share of the step")
    for row in rows:
        table.add_row(
            row["name"],
            f"{1e3 * row['step']:.0f}",
            f"{1e3 * row['loss']:.2f}",
            f"{row['share']:.2%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

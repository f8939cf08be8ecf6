"""The share of a training step that the loss takes: a small U-Net on images.

    KERAS_BACKEND=torch python benchmarks/share.py --json share.json

The same model makes the same eager step with each loss, in turn; the loss alone is
timed within it, forward, and backward as far as the predictions.
"""

import argparse
import json
import pathlib
import random
import statistics
import time

import keras
import numpy as np
import steps
import torch

BATCH, SIZE = 16, 128


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=20, help="with each loss")
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    return parser.parse_args()


def main():
    from rich.progress import track

    arguments = parse_arguments()
    keras.utils.set_random_seed(0)
    model = unet()
    optimizer = keras.optimizers.SGD(1e-3)
    optimizer.build(model.trainable_variables)
    shape = (BATCH, SIZE, SIZE, 3)
    x, y = map(torch.tensor, np.random.default_rng(0).random((2, *shape), "float32"))
    losses = steps.implementations("plain")
    times = {name: [] for name in losses}
    for count in track(range(arguments.steps + 2), description="steps"):
        for name in random.sample(list(losses), len(losses)):
            seconds = step(model, optimizer, losses[name], x, y)
            if count >= 2:
                times[name].append(seconds)
    rows = [
        {
            "name": name,
            "step": statistics.median(whole for whole, _ in of),
            "loss": statistics.median(loss for _, loss in of),
            "share": statistics.median(loss / whole for whole, loss in of),
        }
        for name, of in times.items()
    ]
    show(rows)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"machine": steps.machine("cpu"), "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1))


def unet():
    layers = keras.layers
    x = inputs = keras.Input((SIZE, SIZE, 3))
    skipped = []
    for width in (8, 16, 32):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        skipped.append(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    for width in (32, 16, 8):
        x = layers.Concatenate()([layers.UpSampling2D()(x), skipped.pop()])
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(3, 1)(x))


def step(model, optimizer, loss, x, y):
    """Seconds of one training step, and of the loss in it."""
    start = time.perf_counter()
    model.zero_grad()
    y_pred = model(x, training=True)
    predictions = y_pred.detach().requires_grad_()
    before = time.perf_counter()
    loss(y, predictions, None).backward()
    of_loss = time.perf_counter() - before
    y_pred.backward(predictions.grad)
    variables = model.trainable_variables
    with torch.no_grad():
        optimizer.apply([variable.value.grad for variable in variables], variables)
    return time.perf_counter() - start, of_loss


def show(rows):
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.MARKDOWN)
    table.add_column("", no_wrap=True)
    for heading in ("step, ms", "loss, ms", "share of the step"):
        table.add_column(heading, justify="right")
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

"""Compares values and slopes of this package and its peers with exact results.

    python benchmarks/accuracy.py --json accuracy.json --figure accuracy.png

For each beta, a few hundred errors cover the whole range of the dtype. Their losses,
and the gradients by automatic differentiation, are compared with exact results.
Differences are in units in the last place (ulp). Each backend runs in a separate
process.
"""

import json

import common
from rich.console import Console
from rich.progress import track
from rich.table import Table

BACKENDS = ("jax", "torch", "tensorflow")
BETAS = {
    "float32": [1e-37, 1e-20, 1e-6, 1 / 9, 1.0, 1e6, 1e20, 8e37],
    "float64": [1e-307, 1e-100, 1e-20, 1 / 9, 1.0, 1e20, 1e100, 4e307],
}


def parse_arguments():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=BACKENDS,
        default=BACKENDS,
        help="backends to measure",
    )
    parser.add_argument(
        "--dtype", choices=tuple(BETAS), default="float32", help="dtype of the errors"
    )
    parser.add_argument("--figure", type=common.output_path, help="file for the figure")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    rows = []
    for backend in track(arguments.backend, description="measuring"):
        rows += common.run_alone(
            measure,
            backend,
            arguments.dtype,
            KERAS_BACKEND=backend,
            JAX_ENABLE_X64=str(int(arguments.dtype == "float64")),
            TF_CPP_MIN_LOG_LEVEL="2",
        )
    show(rows, arguments.dtype)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if arguments.figure:
        draw(rows, arguments.figure, arguments.dtype)


def measure(backend, dtype):
    """Returns one row for each implementation on this backend."""
    import numpy as np
    from helpers import exact
    from helpers.autodiff import value_and_gradients

    rows = []
    for name, loss in implementations(backend, dtype).items():
        row = {"name": name, "backend": backend, "value": [], "slope": [], "lost": 0}
        for beta in BETAS[dtype]:
            errors = exact.errors(beta, dtype)
            values, slopes = exact.value_and_slope(errors, beta)
            value, (_, slope) = value_and_gradients(
                lambda y_true, y_pred, loss=loss, beta=beta: loss(y_true, y_pred, beta),
                np.zeros_like(errors),
                errors,
            )
            for kind, results, expected in (
                ("value", value, values),
                ("slope", slope, slopes),
            ):
                worst, lost = exact.worst_ulp(results, expected)
                row[kind].append(worst)
                row["lost"] += lost
        rows.append(row)
    return rows


def implementations(backend, dtype):
    """Functions of (y_true, y_pred, beta) that return one loss per element, by name."""
    import keras

    from keras_smoothl1 import smooth_l1_loss

    def huber(y_true, y_pred, beta):
        # Huber averages over the last axis. With size 1, that is one loss per element.
        loss = keras.losses.Huber(delta=beta, reduction=None, dtype=dtype)
        return loss(y_true[:, None], y_pred[:, None]) / beta

    functions = {common.OURS: smooth_l1_loss, f"{common.HUBER} / beta": huber}
    if backend == "torch":
        from torch.nn import functional

        functions["torch smooth_l1_loss"] = lambda y_true, y_pred, beta: (
            functional.smooth_l1_loss(y_pred, y_true, beta=beta, reduction="none")
        )
    if backend == "jax":
        import optax

        functions["optax.huber_loss / beta"] = lambda y_true, y_pred, beta: (
            optax.huber_loss(y_pred, y_true, delta=beta) / beta
        )
    return functions


def show(rows, dtype):
    console = Console(width=118)
    for kind in ("value", "slope"):
        table = Table(title=f"Largest error of the {kind} in {dtype}, in ulp, by beta")
        table.add_column("loss", no_wrap=True)
        table.add_column("backend")
        for beta in BETAS[dtype]:
            table.add_column(f"{beta:.3g}", justify="right")
        for row in rows:
            table.add_row(row["name"], row["backend"], *map(format_ulp, row[kind]))
        console.print(table)
    table = Table(
        title="Values and slopes that are NaN or infinite although the exact result is"
        " finite"
    )
    for column in ("loss", "backend", "number"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(row["name"], row["backend"], str(row["lost"]))
    console.print(table)


def format_ulp(ulp):
    return f"{ulp:.2f}" if ulp < 100 else f"{ulp:.0e}".replace("e+0", "e")


def draw(rows, path, dtype):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, kind in zip(panels, ("value", "slope"), strict=True):
        for row in rows:
            ours = row["name"] == common.OURS
            panel.plot(
                BETAS[dtype],
                [max(ulp, 0.1) for ulp in row[kind]],
                marker="o" if ours else "x",
                linestyle="-" if ours else ":",
                label=f"{row['name']}, {row['backend']}",
            )
        panel.axhline(1.5, color="grey", linewidth=0.5)
        panel.set(xscale="log", yscale="log", xlabel="beta", title=f"Worst {kind}")
    panels[0].set_ylabel(f"ulp of {dtype} (1.5 is marked)")
    panels[1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

"""Figures of relative speed, for a new measurement and for the page on performance.

Relative speed is the time of the peer divided by the time of this package.
"""

import functools
import json

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

# The figures of the page, by name, with the backend and mode of each panel.
PAGE = {
    "speed_eager": [("torch", "eager"), ("jax", "eager")],
    "speed_compiled": [("torch", "compiled"), ("jax", "jit")],
    "speed_tensorflow": [("tensorflow", mode) for mode in ("eager", "graph", "jit")],
}
BACKENDS = {"torch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow"}
MODES = {
    ("torch", "compiled"): "torch.compile",
    ("tensorflow", "graph"): "tf.function",
    ("tensorflow", "jit"): "jit_compile",
}
BOX, IMAGE = 4, 256 * 256  # elements
TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]


def title(result, mode):
    backend, device = (result["machine"][key] for key in ("backend", "device"))
    where = " on a GPU" if device == "gpu" else ""
    return f"{BACKENDS[backend]}{where}, {MODES.get((backend, mode), mode)}"


def elements(size):
    """A rounded number of elements: 131 k for 131072."""
    for unit, factor in (("M", 10**6), ("k", 10**3)):
        if size >= factor:
            return f"{size / factor:.0f} {unit}"
    return str(size)


def page_figures(folder):
    """Functions that draw the figures of the page from the numbers in a folder."""
    results = {
        backend: json.loads((folder / f"{backend}.json").read_text())
        for backend in BACKENDS
    }
    return {
        name: functools.partial(draw, [(results[key], mode) for key, mode in panels])
        for name, panels in PAGE.items()
    }


def result_figure(result):
    """The figure of one measurement, with a panel for each mode."""
    modes = dict.fromkeys(row["mode"] for row in result["rows"])
    return draw([(result, mode) for mode in modes])


def draw(panels):
    """Relative speed against size, with a panel for each result and mode."""
    figure = Figure(figsize=(4.4, 1 + 2.1 * len(panels)), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06)
    axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)
    sizes, limits = set(), [0.6, 1.5]
    for axis, (result, mode) in zip(axes[:, 0], panels, strict=True):
        speeds = speeds_by_peer(result["rows"], mode)
        for by_size in speeds.values():
            sizes |= by_size.keys()
            found = [speed for cases in by_size.values() for speed in cases.values()]
            limits = [min(limits[0], *found), max(limits[1], *found)]
        draw_panel(axis, speeds)
        axis.set_title(title(result, mode), loc="left", fontsize="medium", pad=20)
    low, high = 0.65 * limits[0], 1.6 * limits[1]
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axis.set_ylim(low, high)
    axis.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    axis.set_xticks(sorted(sizes), size_labels(sorted(sizes)))
    axis.set_xlabel("elements in y_pred (box: 4, image: 256 × 256)")
    figure.supylabel("relative speed", fontsize="medium")
    return figure


def speeds_by_peer(rows, mode):
    """Relative speeds of the loss by peer, size and variant."""
    speeds = {}
    for row in rows:
        if row["mode"] != mode or row["variant"] == "metric":
            continue
        for peer, speed in row["ratio"].items():
            if peer != "memory":
                by_size = speeds.setdefault(peer, {})
                by_size.setdefault(row["size"], {})[row["variant"]] = speed
    return speeds


def draw_panel(axis, speeds):
    """Draws a line for "plain" and a band over all variants, for each peer."""
    axis.set(xscale="log", yscale="log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.axhspan(1e-3, 1, color="grey", alpha=0.2, linewidth=0, zorder=0)
    fore = axis.spines["left"].get_edgecolor()
    axis.axhline(1, color=fore, linewidth=1.2, linestyle="-")
    for number, (peer, by_size) in enumerate(speeds.items()):
        color, linestyle = f"C{number}", "--" if number else "-"
        low, high = ([f(s.values()) for s in by_size.values()] for f in (min, max))
        axis.fill_between([*by_size], low, high, color=color, alpha=0.2, linewidth=0)
        mean = {size: s["plain"] for size, s in by_size.items() if "plain" in s}
        axis.plot(
            [*mean],
            [*mean.values()],
            color=color,
            linestyle=linestyle,
            linewidth=2.5,
            marker="o",
            markersize=5,
            label=f"vs {peer.removeprefix('keras.losses.')}",
        )
    axis.text(0.02, 0.96, "faster", transform=axis.transAxes, va="top")
    axis.text(0.98, 0.04, "slower", transform=axis.transAxes, ha="right")
    if not speeds:
        return
    axis.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        fontsize=10,
        borderpad=0,
        borderaxespad=0.3,
        columnspacing=1,
        handlelength=1.8,
        handletextpad=0.4,
        frameon=False,
    )


def size_labels(sizes):
    """Numbers of elements, some of them also as a number of boxes or images."""
    labels, last = [], 0
    for size in sizes:
        label = elements(size)
        if size >= 16 * last:  # else it has no room beside the last one
            last = size
            count, unit = (IMAGE, "images") if size >= IMAGE else (BOX, "boxes")
            label += f"\n{elements(size // count)}\n{unit}"
        labels.append(label)
    return labels

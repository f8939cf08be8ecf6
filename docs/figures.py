"""The figures of the pages, drawn with the package, for a light and a dark theme."""

import pathlib

import jax
import keras
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import speed_figures

from keras_smoothl1 import SmoothL1Loss, smooth_l1_loss

# Colors of text and lines. Those of lines are from the palette of Okabe and Ito, which
# is safe for the colorblind.
THEMES = {
    "light": ("#1f2328", ["#0072b2", "#d55e00", "#009e73"]),
    "dark": ("#cfd0d0", ["#56b4e9", "#e69f00", "#2cc295"]),
}


def draw_all(folder):
    """Draws all figures of the pages."""
    swept = sweep()
    by_share, by_beta = errors_by_share(), errors_by_beta()
    figures = {
        "losses": losses,
        "slopes": lambda: losses(slope=True),
        "line_up": line_up,
        "weighted_slopes": weighted_slopes,
        "residuals": lambda: residuals(swept),
        "betas": lambda: betas(swept),
        "wrong_targets": lambda: wrong_targets(by_share),
        "scale_of_loss": lambda: scale_of_loss(by_beta),
        **speed_figures.page_figures(pathlib.Path(__file__).parent / "performance"),
    }
    save(figures, folder)
    losses().savefig(folder / "losses.png", dpi=60)
    plt.close("all")


def save(figures, folder):
    """Calls the function of each figure, and writes <name>-light.svg and -dark.svg."""
    for theme, (fore, colors) in THEMES.items():
        style = {
            "axes.edgecolor": fore,
            "axes.labelcolor": fore,
            "axes.prop_cycle": mpl.cycler(color=colors, linestyle=["-", "--", "-."]),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "legend.frameon": False,
            "legend.labelcolor": fore,
            "savefig.transparent": True,
            "svg.hashsalt": "keras_smoothl1",
            "text.color": fore,
            "xtick.color": fore,
            "ytick.color": fore,
        }
        for name, draw in figures.items():
            with mpl.rc_context(style):
                figure = draw()
                figure.savefig(folder / f"{name}-{theme}.svg", metadata={"Date": None})
                plt.close(figure)


def losses(slope=False, wide=False):
    """Losses, or their slopes, against the error: Smooth L1, then Huber."""
    d = np.linspace(-4, 4, 801).astype("float32")
    zeros = np.zeros_like(d)

    def huber(y_true, y_pred, delta):
        # An axis of size 1, since Keras's losses average over the last one.
        loss = keras.losses.Huber(delta, reduction=None)
        return loss(y_true[:, None], y_pred[:, None])

    def curve(loss, number):
        if slope:
            return jax.grad(lambda d: keras.ops.sum(loss(zeros, d, number)))(d)
        return loss(zeros, d, number)

    layout, size = ((1, 2), (8.8, 3.4)) if wide else ((2, 1), (4.4, 6.4))
    figure, panels = plt.subplots(*layout, figsize=size, sharex=True, sharey=True)
    families = ("Smooth L1", "beta", smooth_l1_loss), ("Huber", "delta", huber)
    known = {"color": "grey", "linewidth": 1}
    for panel, (family, parameter, loss) in zip(panels, families, strict=True):
        for number in (0.25, 1.0, 3.0):
            label = f"{parameter} {number:g}"
            panel.plot(d, curve(loss, number), label=label, linewidth=2)
        l1, l2 = (np.sign(d), d) if slope else (np.abs(d), d**2 / 2)
        panel.plot(d, l1, label="L1: |d|", linestyle="-", **known)
        panel.plot(d, l2, label="L2: d² / 2", linestyle=":", **known)
        panel.set_title(f"Slope of {family}" if slope else family)
        panel.set_ylim((-3.3, 3.3) if slope else (0, 4))
        panel.legend(fontsize="small", loc="upper left" if slope else "upper center")
        if wide:
            panel.set_xlabel("error d")
    panel.set_xlabel("error d")
    return figure


DIMENSIONS = ("batch", "height", "width", "channels")


def line_up():
    """Shapes of weights and masks under the dimensions of y_pred."""
    figure, axis = plt.subplots(figsize=(4.4, 4.6))
    rows = [
        ("y_pred", DIMENSIONS, True),
        ("weight", (), True),
        ("weight", DIMENSIONS[:1], True),
        ("weight", DIMENSIONS[:2], True),
        ("mask", DIMENSIONS[:2], True),
        ("weight", ("1", "height"), True),
        ("weight", DIMENSIONS, True),
        ("weight", DIMENSIONS[1:2], False),
    ]
    fore = mpl.rcParams["text.color"]
    for row, (name, dimensions, fits) in enumerate(rows):
        axis.text(-0.1, -row, name, ha="right", va="center")
        for column in range(len(DIMENSIONS) if fits else 1):
            there = column < len(dimensions)
            color = fore if row == 0 else "C0" if fits else "C1"
            box = plt.Rectangle((column + 0.03, -row - 0.4), 0.94, 0.8, color=color)
            box.set(fill=there, alpha=0.25 if there else 1, linestyle="--")
            axis.add_patch(box)
            text = dimensions[column] if there else "broadcast"
            axis.text(column + 0.5, -row, text, ha="center", va="center", fontsize=10)
        if not fits:
            axis.text(1.1, -row, "not the batch: error", va="center", fontsize=10)
    axis.set(xlim=(-0.9, 4), ylim=(-len(rows) + 0.4, 0.6))
    axis.axis("off")
    return figure


def weighted_slopes():
    """The slope of each element with different weights."""
    y_pred = np.full((3, 4, 2), 2, "float32")
    weights = {
        "no weights": None,
        "weights (batch,) of 0, 1, 2": np.array([0, 1, 2]),
        "weights (batch, height)": np.array([[1, 1, 0, 0], [1, 1, 1, 0], [2, 2, 2, 2]]),
    }
    loss = SmoothL1Loss(reduction="sum")
    figure, panels = plt.subplots(3, 1, figsize=(4.4, 4.6))
    for panel, (name, weight) in zip(panels, weights.items(), strict=True):
        slopes = jax.grad(
            lambda y, weight=weight: loss(np.zeros_like(y_pred), y, weight)
        )(y_pred).reshape(3, 8)
        panel.imshow(slopes, cmap="cividis", vmin=0, vmax=2, aspect="auto")
        for (row, column), slope in np.ndenumerate(slopes):
            color = "black" if slope > 1 else "white"
            style = {"ha": "center", "va": "center", "fontsize": 10, "color": color}
            panel.text(column, row, f"{slope:g}", **style)
        for height in range(1, 4):
            panel.axvline(2 * height - 0.5, color="white", linewidth=3, linestyle="-")
        panel.set(xticks=[], yticks=[], ylabel="batch")
        panel.set_title(name, fontsize="medium")
        panel.spines[:].set_visible(False)
    panel.set_xlabel("four heights of two channels")
    return figure


def sweep():
    """Residuals, beta and errors by loss, for flights with 2% wrong targets.

    The experiment is that of choosing_beta.md.
    """
    import flights

    departed = flights.load().dropna(subset=["arr_delay", "dep_delay"])[:40_000]
    x, y = flights.features_at_departure(departed), departed[["arr_delay"]].to_numpy()
    y = y.astype("float32")
    wrong = np.random.default_rng(0).random(30_000) < 0.02
    train, test = slice(10_000, None), slice(10_000)
    labels = np.where(wrong[:, None], 60 * y[train], y[train])
    residuals = (labels - departed[["dep_delay"]].to_numpy()[train])[:, 0]
    scale = 1.4826 * np.median(np.abs(residuals - np.median(residuals)))

    def error_after(loss):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((x.shape[1],)),
                keras.layers.Dense(64, activation="relu"),
                keras.layers.Dense(1),
                keras.layers.Rescaling(30.0),  # to minutes
            ]
        )
        model.compile(keras.optimizers.Adam(3e-3), loss)
        model.fit(x[train], labels, batch_size=256, epochs=3, verbose=0)
        return np.abs(model.predict(x[test], verbose=0) - y[test]).mean()

    numbers = [0.5, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000]
    errors = [error_after(SmoothL1Loss(beta=beta)) for beta in numbers]
    others = {
        "absolute error": error_after("mae"),
        "squared error": error_after("mse"),
    }
    return residuals, 1.345 * scale, dict(zip(numbers, errors, strict=True)), others


def residuals(swept):
    """A histogram of the residuals, with the band of those smaller than beta."""
    residuals, beta, *_ = swept
    figure, axis = plt.subplots(figsize=(4.4, 3.4))
    axis.hist(residuals, np.linspace(-300, 300, 101), color="C0")
    middle = np.median(residuals)
    axis.axvspan(middle - beta, middle + beta, color="C1", alpha=0.3, zorder=0)
    arrow = {"arrowstyle": "->", "color": mpl.rcParams["text.color"]}
    tip, text = (middle + beta, 3000), (80, 3000)
    axis.annotate("smaller than beta", tip, text, arrowprops=arrow, va="center")
    axis.set(yscale="log", xlabel="residual (minutes)", ylabel="flights")
    return figure


def betas(swept):
    """The error on test flights for each beta."""
    _, beta, errors, others = swept
    figure, axis = plt.subplots(figsize=(4.4, 3.4))
    axis.axvline(beta, color="C1", linewidth=8, alpha=0.3, linestyle="-")
    axis.plot(*zip(*errors.items(), strict=True), "o-", color="C0", label="Smooth L1")
    fore = mpl.rcParams["text.color"]
    for (name, error), style in zip(others.items(), ("--", ":"), strict=True):
        axis.axhline(error, color=fore, linestyle=style, linewidth=1, label=name)
    axis.set(xscale="log", xlabel="beta (minutes)", ylabel="mean error (minutes)")
    axis.legend(loc="center left")
    return figure


def errors_by_share():
    """The error of each loss for shares of wrong targets."""
    import noisy_targets

    def error(loss, share):
        _, predicted = noisy_targets.fit(loss, noisy_targets.Case(wrong=share))
        return noisy_targets.rmse(predicted).mean()

    return {
        loss: {share: error(loss, share) for share in (0.0, 0.1, 0.2, 0.3)}
        for loss in noisy_targets.LOSSES
    }


def wrong_targets(errors):
    """The error of each loss against the share of wrong targets."""
    styles = {
        "MSE": {"color": "C1", "linestyle": "--", "marker": "s"},
        "MAE": {"color": "C2", "linestyle": "-.", "marker": "^"},
        "log-cosh": {"color": "grey", "linestyle": ":", "marker": "x"},
        "Huber": {"color": mpl.rcParams["text.color"], "linestyle": "", "marker": "o"},
        "Smooth L1": {"color": "C0", "linestyle": "-", "marker": "."},
    }
    figure, axis = plt.subplots(figsize=(4.4, 3.4))
    for loss, style in styles.items():
        shares, of_loss = zip(*errors[loss].items(), strict=True)
        percent = 100 * np.array(shares)
        axis.plot(percent, of_loss, **style, label=loss, fillstyle="none", markersize=8)
    axis.set(xlabel="wrong targets (%)", xticks=(0, 10, 20, 30))
    label_errors(axis)
    axis.legend(fontsize="small", loc="center right")
    return figure


def errors_by_beta():
    """The error after SGD with 10% wrong targets, for each beta and each delta."""
    import noisy_targets

    def error(loss, beta):
        case = noisy_targets.Case(wrong=0.1)
        _, predicted = noisy_targets.fit(loss, case, beta, optimizer="sgd")
        return noisy_targets.rmse(predicted).mean()

    numbers = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    return {
        loss: {number: error(loss, number) for number in numbers}
        for loss in ("Huber", "Smooth L1")
    }


def scale_of_loss(errors):
    """The error after SGD against beta and delta. Crosses mark divergence."""
    styles = {
        "Huber": {"color": "C1", "linestyle": "--", "marker": "o"},
        "Smooth L1": {"color": "C0", "linestyle": "-", "marker": "."},
    }
    figure, axis = plt.subplots(figsize=(4.4, 3.4))
    for loss, style in styles.items():
        numbers, of_loss = map(np.array, zip(*errors[loss].items(), strict=True))
        converged = of_loss < 10  # not for NaN
        shown = np.where(converged, of_loss, np.nan)
        axis.plot(numbers, shown, **style, label=loss, fillstyle="none", markersize=8)
        if not converged.all():
            diverged = numbers[~converged]
            top = np.full(len(diverged), 2.4)
            axis.plot(diverged, top, "x", color=style["color"], markersize=8)
            axis.text(diverged[0] / 1.5, 2.4, "diverged", ha="right", va="center")
    ticks = (0.01, 0.1, 1, 10)
    axis.set(xlabel="delta or beta", xscale="log")
    axis.set_xticks(ticks, [f"{number:g}" for number in ticks])
    label_errors(axis)
    axis.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 0.2))
    return figure


def label_errors(axis):
    """Labels a logarithmic axis of errors."""
    axis.set(ylabel="RMSE", yscale="log", ylim=(0.2, 2.7))
    ticks = (0.2, 0.3, 0.5, 1, 2)
    axis.set_yticks(ticks, [f"{error:g}" for error in ticks])
    axis.minorticks_off()

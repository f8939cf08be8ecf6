"""How long one step, forward and backward, takes here and elsewhere.

    KERAS_BACKEND=torch python benchmarks/speed.py --json speed.json --figure speed.png

The implementations run in turn, in one process, and of each the median is kept. A ratio
is the median of the ratios within a turn: how many times as fast as the peer this
package is. "Memory" is one pass that reads both inputs and writes as much into new
memory. tox has an environment for each backend.
"""

import json
import pathlib
import random
import statistics
import sys
import time

import options

LARGE = 20  # sizes from 2^20 on show how the cost grows


def parse_arguments():
    parser = options.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[8, 11, 14, 17, 20, 22, 24, 26],
        help="powers of 2: the number of elements",
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="for each case, at least"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--recorded", type=pathlib.Path, help="numbers to show instead of measuring"
    )
    parser.add_argument("--figure", type=pathlib.Path, help="file for a figure")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    choose_device(arguments.device)
    if arguments.recorded:
        result = json.loads(arguments.recorded.read_text())
    else:
        result = record(arguments)
    show(result)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result))
    if arguments.figure:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        draw(result, arguments.figure)


def record(arguments):
    import steps
    from rich.progress import Progress

    modes = steps.chosen(arguments.mode, steps.MODES, "--mode")
    variants = steps.chosen(arguments.variant, steps.VARIANTS, "--variant")
    cases = [(m, v, s) for m in modes for v in variants for s in arguments.sizes]
    rows = []
    with Progress() as progress:
        bar = progress.add_task(steps.BACKEND, total=len(cases))
        for mode, variant, size in cases:
            progress.update(bar, description=f"{mode}, {variant}, 2^{size}")
            times = measure(mode, variant, 2**size, arguments.seconds)
            rows.append(
                {"mode": mode, "variant": variant, "size": 2**size, **summary(times)}
            )
            progress.advance(bar)
    return {"machine": steps.machine(arguments.device), "rows": rows}


def choose_device(device):
    if device == "cpu":
        options.hide_gpus()
        return
    import steps

    if not steps.has_gpu():
        sys.exit(f"{steps.BACKEND} finds no GPU here.")


def measure(mode, variant, size, seconds):
    """Seconds of a step in each round, by implementation."""
    import steps

    y_true, y_pred, extra = steps.inputs(variant, size)
    runs = {
        name: steps.step(function, mode, y_true, y_pred, extra)
        for name, function in steps.implementations(variant).items()
    }
    runs["memory"] = steps.memory_pass(y_true, y_pred)
    for run in runs.values():
        run()  # compiles
        run()
    calls = max(1, int(0.005 / seconds_of(runs[steps.OURS], 1)))
    times = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["memory"]) < 5:
        for name in random.sample(list(runs), len(runs)):
            times[name].append(seconds_of(runs[name], calls))
    return times


def seconds_of(run, calls):
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def summary(times):
    from steps import OURS

    def ratio(of):
        pairs = zip(of, times[OURS], strict=True)
        return digits(statistics.median(peer / ours for peer, ours in pairs))

    return {
        "seconds": {name: digits(statistics.median(of)) for name, of in times.items()},
        "ratio": {name: ratio(of) for name, of in times.items() if name != OURS},
        "rounds": len(times[OURS]),
    }


def digits(number):
    return float(f"{number:.3g}")


def show(result):
    """The tables, as they stand in docs/performance.md."""
    from rich.console import Console
    from steps import OURS

    console = Console(width=max(120, Console().width))
    rows = result["rows"]
    for mode in unique(rows, "mode"):
        of_mode = [row for row in rows if row["mode"] == mode]
        plain = [row for row in of_mode if row["variant"] == "plain"]
        sizes = unique(of_mode, "size")
        if plain:
            table = table_of(f"{mode}: milliseconds of a step", sizes, "growth")
            for name in plain[0]["seconds"]:
                seconds = [row["seconds"][name] for row in plain]
                cells = (f"{1e3 * s:{'.0f' if s > 0.1 else '.2g'}}" for s in seconds)
                table.add_row(name, *cells, growth(sizes, seconds))
            console.print(table)
        table = table_of(f"{mode}: {OURS} is so many times as fast as", sizes)
        for variant in unique(of_mode, "variant"):
            ratios = [row["ratio"] for row in of_mode if row["variant"] == variant]
            for name in ratios[0]:
                if name == "memory" and variant != "plain":
                    continue
                table.add_row(f"{name}, {variant}", *(f"{r[name]:.2f}" for r in ratios))
        console.print(table)


def table_of(title, sizes, *more):
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.MARKDOWN, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in (*(f"2^{size.bit_length() - 1}" for size in sizes), *more):
        table.add_column(heading, justify="right")
    return table


def unique(rows, key):
    return list(dict.fromkeys(row[key] for row in rows))


def growth(sizes, seconds):
    """The slope of log time over log size: at 1, twice the size takes twice as long."""
    import numpy as np

    large = np.array(sizes) >= 2**LARGE
    if large.sum() < 2:
        return "-"
    slope, _ = np.polyfit(np.log(sizes)[large], np.log(seconds)[large], 1)
    return f"{slope:.2f}"


def draw(result, path):
    """Time against size, and below how many times as fast as Huber each variant is."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from steps import HUBER, OURS

    rows = result["rows"]
    modes = unique(rows, "mode")
    figure, panels = plt.subplots(
        2,
        len(modes),
        figsize=(1 + 4.5 * len(modes), 8),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for mode, (above, below) in zip(modes, panels.T, strict=True):
        of_mode = [row for row in rows if row["mode"] == mode]
        plain = [row for row in of_mode if row["variant"] == "plain"]
        for name in plain[0]["seconds"] if plain else ():
            above.loglog(
                [row["size"] for row in plain],
                [row["seconds"][name] for row in plain],
                marker="o" if name == OURS else "",
                linestyle=":" if name == "memory" else "-",
                color="grey" if name == "memory" else None,
                label=name,
            )
        for variant in unique(of_mode, "variant"):
            of_variant = [row for row in of_mode if row["variant"] == variant]
            below.plot(
                [row["size"] for row in of_variant],
                [row["ratio"][HUBER] for row in of_variant],
                marker="o",
                label=variant,
            )
        below.axhline(1, color="grey", linewidth=0.5)
        above.set_title(f"{result['machine']['backend']}, {mode}")
        below.set(xscale="log", yscale="log", xlabel="elements")
        below.set_xscale("log", base=2)
    panels[0, 0].set_ylabel("seconds of a step")
    panels[1, 0].set_ylabel(f"times as fast as {HUBER}")
    panels[0, 0].legend(frameon=False, fontsize="small")
    panels[1, -1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

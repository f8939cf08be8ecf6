"""The time of one step, forward and backward, for this package and its peers.

    KERAS_BACKEND=torch python benchmarks/speed.py --json speed.json --figure speed.png

A metric is updated, with no gradient, and compared with Keras's of the squared error.
The implementations run in turn, in one process, and of each the median is kept. A ratio
is the median of the ratios within a round: how many times as fast as the peer this
package is. "Memory" is one pass that reads both inputs and writes as much into new
memory. tox has an environment for each backend.
"""

import itertools
import json
import math
import pathlib
import random
import statistics
import sys
import time

import common
from common import HUBER, METRIC, OURS
from rich.console import Console
from rich.progress import Progress

LARGE = 20  # sizes from 2^20 on show how the cost grows


def parse_arguments():
    parser = common.parser(__doc__.splitlines()[0])
    common.add_cases(parser, METRIC)
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
    parser.add_argument("--figure", type=common.output_path, help="file for a figure")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    if arguments.recorded:
        result = json.loads(arguments.recorded.read_text())
    else:
        result = record(arguments)
    show(result["rows"])
    if arguments.json:
        arguments.json.write_text(json.dumps(result))
    if arguments.figure:
        draw(result, arguments.figure)


def record(arguments):
    choose_device(arguments.device)
    cases = list(itertools.product(common.chosen_cases(arguments), arguments.sizes))
    rows = []
    with Progress() as progress:
        bar = progress.add_task(common.backend(), total=len(cases))
        for (mode, variant), size in progress.track(cases, task_id=bar):
            progress.update(bar, description=f"{mode}, {variant}, 2^{size}")
            times = measure(mode, variant, 2**size, arguments.seconds)
            rows.append(
                {"mode": mode, "variant": variant, "size": 2**size, **summary(times)}
            )
    return {"machine": common.machine(arguments.device), "rows": rows}


def choose_device(device):
    if device == "cpu":
        common.hide_gpus()
        return
    import keras

    device = str(keras.ops.zeros(()).device).lower()
    if "cuda" not in device and "gpu" not in device:
        sys.exit(f"{common.backend()} finds no GPU here.")


def measure(mode, variant, size, seconds):
    """Seconds of a step in each round, by implementation."""
    inputs = common.inputs(variant, size)
    if variant == METRIC:
        runs = common.metric_updates(*inputs[:2])
    else:
        runs = {
            name: common.step(function, mode, *inputs)
            for name, function in common.implementations(variant).items()
        }
    runs["memory"] = memory_pass(*inputs[:2])
    for run in runs.values():
        run()  # compiles
        run()
    calls = max(1, int(0.005 / seconds_of(runs[OURS], 1)))
    times = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["memory"]) < 5:
        for name in random.sample(list(runs), len(runs)):
            times[name].append(seconds_of(runs[name], calls))
    return times


def memory_pass(y_true, y_pred):
    """The least that a step must do: read both, and write as much into new memory."""
    if common.backend() == "jax":
        import jax

        subtract = jax.jit(jax.numpy.subtract)
        return lambda: subtract(y_pred, y_true).block_until_ready()
    if common.backend() == "torch":
        return lambda: common.wait_for(y_pred - y_true)
    return lambda: y_pred - y_true


def seconds_of(run, calls):
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def summary(times):
    def ratio(peer_times):
        pairs = zip(peer_times, times[OURS], strict=True)
        return digits(statistics.median(peer / ours for peer, ours in pairs))

    return {
        "seconds": {name: digits(statistics.median(times[name])) for name in times},
        "ratio": {name: ratio(times[name]) for name in times if name != OURS},
        "rounds": len(times[OURS]),
    }


def digits(number):
    return float(f"{number:.3g}")


def show(rows):
    """The tables, as they stand in docs/performance.md."""
    console = Console(width=max(120, Console().width))
    for mode, mode_rows in groups(rows, "mode").items():
        variants = groups(mode_rows, "variant")
        sizes = list(groups(mode_rows, "size"))
        powers = [f"2^{size.bit_length() - 1}" for size in sizes]
        if plain := variants.get("plain"):
            table = common.table(f"{mode}: milliseconds of a step", *powers, "growth")
            for name in plain[0]["seconds"]:
                seconds = [row["seconds"][name] for row in plain]
                cells = (f"{1e3 * s:{'.0f' if s > 0.1 else '.2g'}}" for s in seconds)
                table.add_row(name, *cells, growth(sizes, seconds))
            console.print(table)
        table = common.table(f"{mode}: {OURS} is so many times as fast as", *powers)
        for variant, variant_rows in variants.items():
            for name in variant_rows[0]["ratio"]:
                if name == "memory" and variant != "plain":
                    continue
                cells = (f"{row['ratio'][name]:.2f}" for row in variant_rows)
                table.add_row(f"{name}, {variant}", *cells)
        console.print(table)


def groups(rows, key):
    """The rows for each value of key."""
    found = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def growth(sizes, seconds):
    """The slope of log time over log size: at 1, twice the size takes twice as long."""
    points = zip(sizes, seconds, strict=True)
    large = [map(math.log, point) for point in points if point[0] >= 2**LARGE]
    if len(large) < 2:
        return "-"
    return f"{statistics.linear_regression(*zip(*large, strict=True)).slope:.2f}"


def draw(result, path):
    """Time against size, and below how many times as fast as Huber each variant is."""
    from matplotlib.figure import Figure

    modes = groups(result["rows"], "mode")
    figure = Figure(figsize=(1 + 4.5 * len(modes), 8), layout="constrained")
    panels = figure.subplots(2, len(modes), sharex=True, sharey="row", squeeze=False)
    for (mode, rows), (above, below) in zip(modes.items(), panels.T, strict=True):
        variants = groups(rows, "variant")
        plain = variants.get("plain", [])
        for name in plain[0]["seconds"] if plain else ():
            above.loglog(
                [row["size"] for row in plain],
                [row["seconds"][name] for row in plain],
                marker="o" if name == OURS else "",
                linestyle=":" if name == "memory" else "-",
                color="grey" if name == "memory" else None,
                label=name,
            )
        for variant, variant_rows in variants.items():
            if HUBER not in variant_rows[0]["ratio"]:
                continue
            below.plot(
                [row["size"] for row in variant_rows],
                [row["ratio"][HUBER] for row in variant_rows],
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

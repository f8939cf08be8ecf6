"""Times one step, forward and backward, of this package and its peers.

    KERAS_BACKEND=torch python benchmarks/speed.py --json speed.json --figure speed.png

All implementations run in one process, in random order within each round. A time is the
median over the rounds. A relative speed is the time of the other loss divided by that
of this package: the ratio is computed within each round, and the median is reported.

"memory" is one pass that reads both inputs and writes one new tensor; no step can be
faster. "metric" is an update of `SmoothL1Error`, without a gradient, compared with
`keras.metrics.MeanSquaredError`. tox has an environment for each backend.
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
import speed_figures
from common import METRIC, OURS
from rich.console import Console
from rich.progress import Progress

LARGE = 20  # growth is measured from 2^20 elements upwards


def parse_arguments():
    parser = common.parser(__doc__.splitlines()[0])
    common.add_cases(parser, METRIC)
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[8, 11, 14, 17, 20, 22, 24, 26],
        help="exponents of 2: 20 means 2^20 elements",
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="minimum time for each case"
    )
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), default="cpu", help="where to measure"
    )
    parser.add_argument(
        "--recorded",
        type=pathlib.Path,
        help="JSON file of an earlier run, shown instead of measuring",
    )
    parser.add_argument("--figure", type=common.output_path, help="file for the figure")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    if arguments.recorded:
        result = json.loads(arguments.recorded.read_text())
    else:
        result = record(arguments)
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result))
    if arguments.figure:
        speed_figures.result_figure(result).savefig(arguments.figure, dpi=150)


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
        sys.exit(f"{common.backend()} found no GPU.")


def measure(mode, variant, size, seconds):
    """Seconds per step in each round, by implementation."""
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
        run()  # the first call compiles
        run()
    calls = max(1, int(0.005 / seconds_of(runs[OURS], 1)))
    times = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["memory"]) < 5:
        for name in random.sample(list(runs), len(runs)):
            times[name].append(seconds_of(runs[name], calls))
    return times


def memory_pass(y_true, y_pred):
    """The least that a step must do: read both inputs and write one new tensor."""
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


def show(result):
    """Prints the tables of docs/performance.md."""
    console = Console(width=max(120, Console().width))
    for mode, mode_rows in groups(result["rows"], "mode").items():
        title = speed_figures.title(result, mode)
        variants = groups(mode_rows, "variant")
        sizes = list(groups(mode_rows, "size"))
        headings = [speed_figures.elements(size) for size in sizes]
        if plain := variants.get("plain"):
            table = common.table(f"{title}: milliseconds per step", *headings, "growth")
            for name in plain[0]["seconds"]:
                seconds = [row["seconds"][name] for row in plain]
                cells = (f"{1e3 * s:{'.0f' if s > 0.1 else '.2g'}}" for s in seconds)
                table.add_row(name, *cells, growth(sizes, seconds))
            console.print(table)
        table = common.table(
            f"{title}: relative speed (time of the other loss / time of {OURS})",
            *headings,
        )
        for variant, variant_rows in variants.items():
            for name in variant_rows[0]["ratio"]:
                if name == "memory" and variant != "plain":
                    continue
                cells = (f"{row['ratio'][name]:.2f}" for row in variant_rows)
                table.add_row(f"{name}, {variant}", *cells)
        console.print(table)


def groups(rows, key):
    """The rows by their value of key."""
    found = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def growth(sizes, seconds):
    """The exponent of the time as a power of the size: 1 is linear."""
    points = zip(sizes, seconds, strict=True)
    large = [map(math.log, point) for point in points if point[0] >= 2**LARGE]
    if len(large) < 2:
        return "-"
    return f"{statistics.linear_regression(*zip(*large, strict=True)).slope:.2f}"


if __name__ == "__main__":
    main()

"""How much memory one step, forward and backward, takes at its peak.

    KERAS_BACKEND=torch python benchmarks/memory.py --json memory.json

Each implementation takes its step in a fresh process, after one that compiles it. What
is printed is the peak above what was in use before the step, as a multiple of the
memory of y_pred; the gradient alone is 1. Linux only: it reads /proc. Not for
TensorFlow, which keeps what memory it once had.
"""

import argparse
import ctypes
import gc
import json
import pathlib
import re
import subprocess
import sys

import options


def parse_arguments():
    parser = options.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, default=25, help="power of 2: the number of elements"
    )
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    options.hide_gpus()
    import steps

    if steps.BACKEND == "tensorflow":
        sys.exit("TensorFlow keeps what memory it once had: its peaks do not show.")
    if arguments.one:
        print(json.dumps(measure(*arguments.one, 2**arguments.size)))
        return
    from rich.progress import track

    modes = steps.chosen(arguments.mode, steps.MODES, "--mode")
    variants = steps.chosen(arguments.variant, steps.VARIANTS, "--variant")
    cases = [
        (mode, variant, name)
        for mode in modes
        for variant in variants
        for name in steps.implementations(variant)
    ]
    rows = []
    for case in track(cases, description=steps.BACKEND):
        process = subprocess.run(
            [sys.executable, __file__, "--size", str(arguments.size), "--one", *case],
            stdout=subprocess.PIPE,
            text=True,
        )
        if process.returncode:
            sys.exit(f"{case} failed; its error is above.")
        extra = json.loads(process.stdout.splitlines()[-1])
        mode, variant, name = case
        rows.append({"mode": mode, "variant": variant, "name": name, "extra": extra})
    result = {"machine": steps.machine("cpu"), "size": 2**arguments.size, "rows": rows}
    show(result)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1))


def measure(mode, variant, name, size):
    """The peak of a step over what is in use before it, in units of y_pred."""
    import steps

    y_true, y_pred, extra = steps.inputs(variant, size)
    function = steps.implementations(variant)[name]
    run = steps.step(function, mode, y_true, y_pred, extra)
    run()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back to the system
    before = in_use("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    run()
    return (in_use("VmHWM") - before) / (4 * size)


def in_use(what):
    """Bytes, from the kernel's account of this process."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{what}:\s+(\d+) kB", status)[1])


def show(result):
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = result["rows"]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    table = Table(
        title="Extra memory at the peak of a step, in units of y_pred",
        box=box.MARKDOWN,
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for mode in modes:
        table.add_column(mode, justify="right")
    found = {(row["variant"], row["name"], row["mode"]): row["extra"] for row in rows}
    for variant, name in dict.fromkeys((row["variant"], row["name"]) for row in rows):
        cells = (f"{found[variant, name, mode]:.2f}" for mode in modes)
        table.add_row(f"{name}, {variant}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()

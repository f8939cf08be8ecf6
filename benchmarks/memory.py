"""How much memory one step, forward and backward, takes at its peak.

    KERAS_BACKEND=torch python benchmarks/memory.py --json memory.json

Each implementation takes its step in a fresh process, after one that compiles it. What
is printed is the peak above what was in use before the step, as a multiple of the
memory of y_pred; the gradient alone is 1. Linux only: it reads /proc. Not for
TensorFlow, which does not give memory back to the system.
"""

import ctypes
import gc
import json
import pathlib
import re
import sys

import common
from rich.console import Console
from rich.progress import track


def parse_arguments():
    parser = common.parser(__doc__.splitlines()[0])
    common.add_cases(parser)
    parser.add_argument(
        "--size", type=int, default=25, help="power of 2: the number of elements"
    )
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    common.hide_gpus()
    if common.backend() == "tensorflow":
        sys.exit("TensorFlow gives no memory back to the system: no peak shows.")
    cases = [
        (mode, variant, name)
        for mode, variant in common.chosen_cases(arguments)
        for name in common.implementations(variant)
    ]
    rows = []
    for mode, variant, name in track(cases, description=common.backend()):
        extra = common.run_alone(measure, mode, variant, name, 2**arguments.size)
        rows.append({"mode": mode, "variant": variant, "name": name, "extra": extra})
    show(rows)
    if arguments.json:
        result = {"machine": common.machine(), "size": 2**arguments.size, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1))


def measure(mode, variant, name, size):
    """The peak of a step over what is in use before it, in units of y_pred."""
    function = common.implementations(variant)[name]
    run = common.step(function, mode, *common.inputs(variant, size))
    run()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back to the system
    before = memory_in_bytes("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    run()
    return (memory_in_bytes("VmHWM") - before) / (4 * size)


def memory_in_bytes(field):
    """A field of the kernel's account of this process."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])


def show(rows):
    modes = dict.fromkeys(row["mode"] for row in rows)
    table = common.table(
        "Extra memory at the peak of a step, in units of y_pred", *modes
    )
    extra = {(row["variant"], row["name"], row["mode"]): row["extra"] for row in rows}
    for variant, name in dict.fromkeys((row["variant"], row["name"]) for row in rows):
        cells = (f"{extra[variant, name, mode]:.2f}" for mode in modes)
        table.add_row(f"{name}, {variant}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()

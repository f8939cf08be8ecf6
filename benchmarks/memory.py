"""Measures the peak memory of one step, forward and backward.

    KERAS_BACKEND=torch python benchmarks/memory.py --json memory.json

Each implementation runs in a new process. The first step compiles it, the second is
measured. The result is the peak memory minus the memory in use before the step, as a
multiple of the size of y_pred. The gradient accounts for 1.

Linux only, because it reads /proc. Not for TensorFlow, which does not return memory to
the system.
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
        "--size", type=int, default=25, help="exponent of 2: 25 means 2^25 elements"
    )
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    common.hide_gpus()
    if common.backend() == "tensorflow":
        sys.exit(
            "TensorFlow does not return memory to the system, so the peak of a step "
            "cannot be measured."
        )
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
    """Peak memory of a step minus the memory in use before, in units of y_pred."""
    function = common.implementations(variant)[name]
    run = common.step(function, mode, *common.inputs(variant, size))
    run()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # returns free memory to the system
    before = memory_in_bytes("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    run()
    return (memory_in_bytes("VmHWM") - before) / (4 * size)


def memory_in_bytes(field):
    """A field of /proc/self/status."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])


def show(rows):
    modes = dict.fromkeys(row["mode"] for row in rows)
    table = common.table("Extra peak memory of a step, in units of y_pred", *modes)
    extra = {(row["variant"], row["name"], row["mode"]): row["extra"] for row in rows}
    for variant, name in dict.fromkeys((row["variant"], row["name"]) for row in rows):
        cells = (f"{extra[variant, name, mode]:.2f}" for mode in modes)
        table.add_row(f"{name}, {variant}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()

"""What the kernel for GPUs reads, writes and divides for each element of a mean.

    KERAS_BACKEND=torch python benchmarks/machine_code.py

Triton compiles the kernel for each target, and its machine code is read. No GPU is
needed.
"""

import common
from helpers import machine_code
from rich.console import Console

HEADINGS = [
    "bytes read, 16 at once",
    "other loads",
    "bytes written, 16 at once",
    "divisions, rounded to nearest",
    "spilled registers",
    "torch's own, bytes",
]
# torch's own mean reads both inputs and writes the losses, reads those, and in the
# backward pass reads both inputs again and writes the gradient.
SWEEPS_OF_TORCH = 7


def main():
    table = common.table("for each element", *HEADINGS, "targets")
    for variant, settings in machine_code.VARIANTS.items():
        torch_bytes = "-"
        if variant.startswith("mean"):
            size = machine_code.SIZES[settings.get("dtype", "fp32")]
            torch_bytes = str(SWEEPS_OF_TORCH * size)
        targets = {}
        for target in machine_code.TARGETS:
            row = per_element(*machine_code.instructions(target, **settings))
            targets.setdefault(row, []).append(target)
        for row, names in targets.items():
            table.add_row(variant, *row, torch_bytes, " ".join(names))
    Console(width=200).print(table)


def per_element(counts, elements):
    numbers = (
        16 * counts["wide load"] / elements,
        counts["load"] / elements,
        16 * counts["wide store"] / elements,
        counts["division"] // elements,  # the tile itself has one or two
        counts["spill"],
    )
    return tuple(f"{number:.2g}" for number in numbers)


if __name__ == "__main__":
    main()

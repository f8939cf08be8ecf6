"""Counts loads, stores and divisions per element in the machine code of the GPU kernel.

Only full tiles read and write 16 bytes at once.

    KERAS_BACKEND=torch python benchmarks/machine_code.py

Triton compiles the kernel for each target, and the instructions are counted. No GPU is
needed.
"""

import common
from helpers import machine_code
from rich.console import Console

HEADINGS = [
    "bytes read in 16-byte loads",
    "bytes written in 16-byte stores",
    "correctly rounded divisions",
    "spill instructions",
    "bytes of torch's own loss",
]
# torch's own mean reads both inputs, writes the losses and reads them. Its backward
# pass reads both inputs again and writes the gradient.
TENSOR_PASSES_OF_TORCH = 7


def main():
    table = common.table("Per element", *HEADINGS, "targets")
    for variant, settings in machine_code.VARIANTS.items():
        torch_bytes = "-"
        if variant.startswith("mean"):
            size = machine_code.SIZES[settings.get("dtype", "fp32")]
            torch_bytes = str(TENSOR_PASSES_OF_TORCH * size)
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
        16 * counts["wide store"] / elements,
        # Half of them are for partial tiles. Rounds down: a tile adds one or two.
        counts["division"] // 2 // elements,
        counts["spill"],
    )
    return tuple(f"{number:.2g}" for number in numbers)


if __name__ == "__main__":
    main()

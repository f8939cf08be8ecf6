"""Runs examples while the site is built.

sphinx-gallery runs most of them. The examples here need a separate process, for another
backend or for several devices. Their output is saved, and included in the pages.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
RUNS = {
    "swap": (None, ["backend_swap.py"]),
    "distributed_keras": ("jax", ["distributed_keras.py"]),
    "distributed_jax": ("jax", ["distributed_jax.py"]),
    "distributed_jax_2": ("jax", ["distributed_jax.py", "--processes", "2"]),
    "distributed_tensorflow": ("tensorflow", ["distributed_tensorflow.py"]),
    "distributed_torch": (
        "torch",
        ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
        + ["distributed_torch.py"],
    ),
}
ORDER = """
flight_delays five_losses boxes changing_beta images missing_targets custom_loops
retinanet backend_swap
distributed_keras distributed_jax distributed_torch distributed_tensorflow
"""


class Order:
    """The sort key of the examples, for `within_subsection_order` of sphinx-gallery."""

    def __init__(self, folder):
        pass

    def __call__(self, file):
        return ORDER.split().index(pathlib.Path(file).stem)


def run_all(folder):
    """Writes the output of each run, <name>.txt, and its figures, unless up to date."""
    inputs = [*ROOT.glob("examples/*.py"), *ROOT.glob("keras_smoothl1/**/*.py")]
    newest = max(path.stat().st_mtime for path in [*inputs, pathlib.Path(__file__)])
    for name, (backend, command) in RUNS.items():
        text = folder / f"{name}.txt"
        if text.is_file() and text.stat().st_mtime > newest:
            continue
        print(f"running {command[-1]}", flush=True)
        printed = subprocess.run(
            [sys.executable, *command, "--out", folder / name],
            cwd=ROOT / "examples",
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "COLUMNS": "88"}
            | {"PYTHONIOENCODING": "utf-8"}
            | ({"KERAS_BACKEND": backend} if backend else {}),
            stdout=subprocess.PIPE,
            encoding="utf-8",
            check=True,
        ).stdout
        for figure in (folder / name).glob("*.png"):
            shutil.copy(figure, folder)
        printed = printed.replace(f"{folder}{os.sep}{name}", "results")
        # JAX's processes log their connections to each other.
        printed = re.sub(r"^\[Gloo\].*\n", "", printed, flags=re.MULTILINE)
        text.write_text(printed, encoding="utf-8")


def leave_out(folder):
    """Writes placeholders for the output and the figure of the runs."""
    for name in RUNS:
        text = folder / f"{name}.txt"
        text.write_text("(not run for this build)", encoding="utf-8")
        os.utime(text, (0, 0))  # older than all inputs, so that `run_all` replaces it
    shutil.copy(folder / "losses.png", folder / "swap.png")


def options_of_example(gallery_conf, script_vars):
    """Sets `__file__`, which sphinx-gallery does not, and returns no options."""
    script_vars["example_globals"]["__file__"] = script_vars["src_file"]
    return []

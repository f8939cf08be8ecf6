"""`python -m keras_smoothl1`: is this installation as exact as it should be?

Prints what is installed, and how far values and slopes are from stored exact results.
Each backend is checked in a process of its own, since Keras takes only one, and may not
even be importable with the one that it looks for here. The exit status is 1 if anything
differs or fails. A bug report starts with this table.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from typing import Any

# Keras brings rich along.
from rich import box
from rich.console import Console
from rich.table import Table

from keras_smoothl1.version import __version__

BACKENDS = ("jax", "tensorflow", "torch")
HEADERS = ("backend", "version", "device", "run", "dtype", "value", "slope", "result")


def main() -> int:
    argparse.ArgumentParser(
        "python -m keras_smoothl1",
        description="Shows what is installed, and checks values and slopes on each "
        "installed backend, whichever KERAS_BACKEND names.",
        epilog="The exit status is 1 if anything differs from stored exact results by "
        "over 1.5 units in the last place, or fails.",
    ).parse_args()
    # Wide enough for the table, which a pipe would have folded.
    terminal = sys.stdout.isatty()
    console = Console(
        width=100, highlight=False, markup=False, force_interactive=terminal
    )
    console.print(_versions())
    installed = [name for name in BACKENDS if _is_installed(name)]
    reports = {}
    for backend in installed:
        with console.status(f"checking {backend}"):
            reports[backend] = _report(backend)
    if reports:
        console.print(_table(reports))
        console.print("Value and slope: the largest error, in units in the last place.")
    if missing := set(BACKENDS) - set(installed):
        console.print(f"Not installed: {', '.join(sorted(missing))}.")
    problems = _problems(reports)
    message = "\n".join([*(problems or ["All are within 1.5."]), _import_of_keras()])
    # The encoding of a pipe may lack characters of a backend's error message.
    encoded = message.encode(console.encoding, "backslashreplace")
    console.print(encoded.decode(console.encoding), soft_wrap=True)
    return 1 if problems else 0


def _is_installed(backend: str) -> bool:
    # A folder of that name without any code, as one left behind, has no origin.
    spec = importlib.util.find_spec(backend)
    return spec is not None and spec.origin is not None


def _versions() -> str:
    packages = importlib.metadata.packages_distributions()
    # The nightly build of Keras is another package of the same module.
    names = {name for module in ("keras", "numpy") for name in packages.get(module, ())}
    lines = [f"{name} {importlib.metadata.version(name)}" for name in sorted(names)]
    lines.append(f"Python {platform.python_version()}")
    return (
        f"keras-smoothl1 {__version__}, {', '.join(lines)}\n"
        f"{platform.platform()}, KERAS_BACKEND {_chosen()}"
    )


def _chosen() -> str:
    return os.environ.get("KERAS_BACKEND") or "not set"


def _import_of_keras() -> str:
    """Which backend a program gets, if the one that Keras looks for can be imported."""
    process = _python("-c", "import keras; print(keras.backend.backend())", {})
    if process.returncode:
        *_, last = f"exit status {process.returncode}\n{process.stderr}".splitlines()
        return (
            f"But here `import keras` fails, with KERAS_BACKEND {_chosen()}: {last}\n"
            "Set KERAS_BACKEND to a backend that is ok."
        )
    return f"Here `import keras` takes {process.stdout.split()[-1]}."


def _python(
    flag: str, program: str, chosen: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs code after -c or a module after -m, with chosen over the environment."""
    return subprocess.run(
        [sys.executable, flag, program],
        env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "PYTHONUTF8": "1", **chosen},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


def _report(backend: str) -> dict[str, Any]:
    """The report of self_check on the backend, or the end of its error message."""
    # JAX has float64 only where it is enabled.
    chosen = {"KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1"}
    process = _python("-m", "keras_smoothl1.self_check", chosen)
    if process.returncode:
        output = process.stderr.strip().splitlines()[-10:]
        return {"failed": [f"exit status {process.returncode}", *output]}
    report: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return report


def _table(reports: dict[str, dict[str, Any]]) -> Table:
    # Pasted into an issue it is a table there too.
    table = Table(*HEADERS, box=box.MARKDOWN)
    for backend, report in reports.items():
        if "failed" in report:
            table.add_row(backend, *[""] * (len(HEADERS) - 2), "failed")
            continue
        for check in report["checks"]:
            numbers = (f"{check[name]:.2f}" for name in ("value", "slope"))
            result = "differs" if check["differences"] else "ok"
            where = (backend, report["version"], report["device"])
            table.add_row(*where, check["run"], check["dtype"], *numbers, result)
    return table


def _problems(reports: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each difference, and the output of each backend that failed."""
    if not reports:
        return [
            "There is no backend to check. Install one, such as by\n"
            'python -m pip install "keras-smoothl1[jax]"'
        ]
    lines = []
    for backend, report in reports.items():
        lines += [f"{backend}: {line}" for line in report.get("failed", ())]
        for check in report.get("checks", ()):
            lines += [
                f"{backend} {check['run']} {row['dtype']}, error {row['error']}, "
                f"beta {row['beta']}: {row['of']} {row['result']}, not {row[row['of']]}"
                for row in check["differences"]
            ]
    return lines


if __name__ == "__main__":
    sys.exit(main())

"""`python -m keras_smoothl1`: checks the accuracy of this installation.

Prints the installed versions, and how far computed values and slopes are from stored
exact results. Each backend is checked in a separate process, because a process can only
use one, and because Keras cannot be imported if its default backend is missing. The
exit status is 1 if a result differs, a check fails, or no backend is installed.
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

# A dependency of Keras.
from rich import box
from rich.console import Console
from rich.table import Table

from keras_smoothl1.version import __version__

BACKENDS = ("jax", "tensorflow", "torch")
HEADERS = ("backend", "version", "device", "run", "dtype", "value", "slope", "result")


def main() -> int:
    argparse.ArgumentParser(
        "python -m keras_smoothl1",
        description="Prints the installed versions, and compares values and slopes on "
        "all installed backends with stored exact results, whatever the value of "
        "KERAS_BACKEND.",
        epilog="The exit status is 1 if a result differs by more than 1.5 units in the "
        "last place, if a check fails, or if no backend is installed.",
    ).parse_args()
    # If stdout is a pipe, rich assumes a narrower console and would wrap the table.
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
        console.print(
            "Value and slope: the largest error found, in units in the last place."
        )
    if missing := set(BACKENDS) - set(installed):
        console.print(f"Not installed: {', '.join(sorted(missing))}.")
    problems = _problems(reports)
    result = problems or ["All errors are within 1.5 units in the last place."]
    message = "\n".join([*result, _describe_keras_import()])
    # The encoding of a pipe may not represent every character of an error message.
    encoded = message.encode(console.encoding, "backslashreplace")
    console.print(encoded.decode(console.encoding), soft_wrap=True)
    return 1 if problems else 0


def _is_installed(backend: str) -> bool:
    # A leftover folder without code is found as a namespace package without an origin.
    spec = importlib.util.find_spec(backend)
    return spec is not None and spec.origin is not None


def _versions() -> str:
    packages = importlib.metadata.packages_distributions()
    # The nightly build of Keras is another distribution of the same module.
    names = {name for module in ("keras", "numpy") for name in packages.get(module, ())}
    lines = [f"{name} {importlib.metadata.version(name)}" for name in sorted(names)]
    lines.append(f"Python {platform.python_version()}")
    return (
        f"keras-smoothl1 {__version__}, {', '.join(lines)}\n"
        f"{platform.platform()}, {_keras_backend_setting()}"
    )


def _keras_backend_setting() -> str:
    value = os.environ.get("KERAS_BACKEND")
    return f"KERAS_BACKEND={value}" if value else "KERAS_BACKEND not set"


def _describe_keras_import() -> str:
    """Reports the backend that `import keras` selects here, or why it fails."""
    process = _python("-c", "import keras; print(keras.backend.backend())", {})
    if process.returncode:
        *_, last = f"exit status {process.returncode}\n{process.stderr}".splitlines()
        return (
            f"`import keras` fails here, with {_keras_backend_setting()}: {last}\n"
            "Set KERAS_BACKEND to a backend that is installed."
        )
    return f"`import keras` selects the backend {process.stdout.split()[-1]}."


def _python(
    flag: str, program: str, chosen: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs code (-c) or a module (-m); `chosen` overrides environment variables."""
    return subprocess.run(
        [sys.executable, flag, program],
        env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "PYTHONUTF8": "1", **chosen},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


def _report(backend: str) -> dict[str, Any]:
    """The report of self_check for a backend, or the end of its error message."""
    # On JAX, float64 has to be enabled.
    chosen = {"KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1"}
    process = _python("-m", "keras_smoothl1.self_check", chosen)
    if process.returncode:
        output = process.stderr.strip().splitlines()[-10:]
        return {"failed": [f"exit status {process.returncode}", *output]}
    report: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return report


def _table(reports: dict[str, dict[str, Any]]) -> Table:
    # Markdown, so that the output is shown as a table when pasted into an issue.
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
    """One line per difference, and the output of each check that failed."""
    if not reports:
        return [
            "No backend is installed. Install one, for example with\n"
            "python -m pip install jax"
        ]
    lines = []
    for backend, report in reports.items():
        lines += [f"{backend}: {line}" for line in report.get("failed", ())]
        for check in report.get("checks", ()):
            lines += [
                f"{backend} {check['run']} {row['dtype']}, y_pred - y_true = "
                f"{row['error']}, beta {row['beta']}: the {row['of']} is "
                f"{row['result']}, expected {row[row['of']]}"
                for row in check["differences"]
            ]
    return lines


if __name__ == "__main__":
    sys.exit(main())

"""Command-line options of the examples, and checks that a backend is available."""

import argparse
import importlib.util
import pathlib
import socket
import subprocess
import sys


def make_parser(doc):
    """Returns a parser with `--out`, whose `--help` shows the docstring `doc`."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("results"),
        help="folder for figures and other files (default: results)",
    )
    return parser


def parse_options(doc):
    """Parses the command line of an example that has a short run.

    Returns the options `out`, a path, and `short`, a Boolean.
    """
    parser = make_parser(doc)
    parser.add_argument(
        "--short",
        action="store_true",
        help="use less data and fewer steps, for a quick check that the example runs",
    )
    options = parser.parse_args()
    if options.short:
        print("Short run: it has too few steps for meaningful numbers.")
    return options


def positive(text):
    """Parses an integer of at least 1, as an argparse type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


def installation_hint(backend):
    """Returns how to install a backend that is missing, or None if it is installed."""
    if importlib.util.find_spec(backend) is None:
        return (
            f"{backend} is not installed. Install it with: "
            f"{sys.executable} -m pip install {backend}"
        )
    return None


def require_backend(backend):
    """Exits with a message unless Keras runs on `backend`."""
    import keras

    found = keras.backend.backend()
    if found != backend:
        sys.exit(
            f"This example requires the backend {backend}, but Keras uses {found}. "
            f"Set KERAS_BACKEND={backend}."
        )


def start_processes(script, number, *options):
    """Starts all processes of a distributed script, waits for them, and exits.

    Each process gets the options, its index as `--process`, and as `--coordinator` the
    local address on which the first process listens. On a cluster, the scheduler starts
    the processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, script, *options, "--coordinator", address]
    running = [
        subprocess.Popen([*command, "--process", str(index)]) for index in range(number)
    ]
    statuses = [process.wait() for process in running]
    sys.exit(int(any(statuses)))  # a negative status means that a signal ended it

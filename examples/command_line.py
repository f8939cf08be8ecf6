"""Command-line options of the examples, and checks of the backend they ask for."""

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
        help="folder for figures and other files (results)",
    )
    return parser


def parse_options(doc):
    """Parses the command line of an example that can do a short run.

    Returns the options `out`, a path, and `short`, whether to do the short run.
    """
    parser = make_parser(doc)
    parser.add_argument(
        "--short",
        action="store_true",
        help="less data and fewer steps: seconds, to see that it runs",
    )
    options = parser.parse_args()
    if options.short:
        print("Short form: it runs, but the numbers are of too few steps to compare.")
    return options


def positive(text):
    """Returns the integer in `text`; argparse reports one that is less than 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


def installation_hint(backend):
    """Returns how to install a backend that is missing, or None if it is installed."""
    if importlib.util.find_spec(backend) is None:
        return (
            f"This Python has no {backend}: to install it, "
            f"{sys.executable} -m pip install {backend}"
        )
    return None


def require_backend(backend):
    """Exits with a message unless Keras runs on `backend`."""
    import keras

    found = keras.backend.backend()
    if found != backend:
        sys.exit(
            f"This example is for {backend}, and Keras runs on {found}. "
            f"Start it with KERAS_BACKEND={backend}."
        )


def start_processes(script, number, *options):
    """Runs the script once for each process, and exits when all have ended.

    Each gets the options, its number as `--process`, and as `--coordinator` the address
    of this machine where the first is to listen. On real machines a scheduler does it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, script, *options, "--coordinator", address]
    running = [
        subprocess.Popen([*command, "--process", str(index)]) for index in range(number)
    ]
    statuses = [process.wait() for process in running]
    sys.exit(int(any(statuses)))  # a process that a signal ended has a negative one

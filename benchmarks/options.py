"""The command line that the benchmarks of speed and memory share."""

import argparse
import os
import pathlib


def parser(description):
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    found.add_argument("--mode", nargs="+", help="eager, jit, graph or compiled")
    found.add_argument("--variant", nargs="+", help="plain, weights, mask ...")
    found.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    return found


def hide_gpus():
    """Must come before the backend is imported."""
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")

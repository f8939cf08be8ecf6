"""Tests the built wheel in an empty environment, outside the repository.

    python try_wheel.py DIST CONSTRAINTS

DIST is the folder of the wheel. CONSTRAINTS is a pip constraints file.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile

BACKEND = "jax"
HERE = pathlib.Path(__file__).parent
PACKAGE = HERE.parents[1] / "keras_smoothl1"


def check_files(wheel):
    """The wheel has the package and its metadata, and nothing else."""
    names = set(zipfile.ZipFile(wheel).namelist())
    print(f"\n{wheel.name}:", *sorted(names), sep="\n  ", flush=True)
    dist_info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    metadata = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
    expected = {f"{dist_info}/{name}" for name in metadata} | {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    if names != expected:
        sys.exit(f"The wheel should not differ by {sorted(names ^ expected)}.")


def main():
    (wheel,) = pathlib.Path(sys.argv[1]).resolve().glob("*.whl")
    constraints = pathlib.Path(sys.argv[2]).resolve()
    check_files(wheel)
    with tempfile.TemporaryDirectory() as folder:
        environment = venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt")
        environment.create(f"{folder}/environment")
        python = environment.ensure_directories(f"{folder}/environment").env_exe
        shutil.copy(HERE / "smoke.py", folder)
        for command in (
            ["-m", "pip", "install", "--constraint", constraints]
            + [f"{wheel}[{BACKEND}]"],
            ["smoke.py", BACKEND],
            ["-m", "keras_smoothl1"],
        ):
            subprocess.run([python, *command], cwd=folder, check=True)


if __name__ == "__main__":
    main()

"""Installs Chromium if no browser is found.

Root with apt-get gets Debian's package, other users get Playwright's build.
"""

import os
import shutil
import subprocess
import sys


def browser():
    """Returns the path of an installed browser, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def install():
    if shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update"], check=True)
        subprocess.run(["apt-get", "install", "--yes", "chromium"], check=True)
    else:
        playwright = [sys.executable, "-m", "playwright"]
        subprocess.run([*playwright, "install", "chromium"], check=True)


if __name__ == "__main__" and browser() is None:
    install()

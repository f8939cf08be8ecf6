"""Removes folders, if they exist. Usage: remove.py FOLDER [FOLDER ...]"""

import shutil
import sys

for folder in sys.argv[1:]:
    shutil.rmtree(folder, ignore_errors=True)

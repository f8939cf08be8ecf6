"""Prints what CHANGELOG.md says of a release: release_notes.py v0.1.0.

Fails unless the tag is that of the version in keras_smoothl1/version.py, and that
version has a section with a date.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]


def notes(tag: str) -> str:
    version = re.search(r'"(.+)"', (ROOT / "keras_smoothl1/version.py").read_text())[1]
    if tag != f"v{version}":
        sys.exit(f"The tag is {tag}, but keras_smoothl1/version.py has {version}.")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)
    for section in sections:
        title, _, text = section.partition("\n")
        if re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", title):
            return text.strip()
    return sys.exit(f"CHANGELOG.md has no section '## [{version}] - year-month-day'.")


if __name__ == "__main__":
    print(notes(sys.argv[1]))

"""Prints the section of CHANGELOG.md for a release. Usage: release_notes.py v0.1.0

Fails unless the tag matches the version in keras_smoothl1/version.py, this version has
a section with a date, and the section [Unreleased] is empty.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]


def notes(tag: str, changelog: str) -> str:
    version = re.search(r'"(.+)"', (ROOT / "keras_smoothl1/version.py").read_text())[1]
    if tag != f"v{version}":
        sys.exit(
            f"The tag must be v{version}, as in keras_smoothl1/version.py. "
            f"Received: {tag}"
        )
    sections = dict(
        section.split("\n", 1)
        for section in re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    )
    if left := sections["[Unreleased]"].strip():
        sys.exit(f"CHANGELOG.md still has entries under [Unreleased]:\n{left}")
    for title, text in sections.items():
        if re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", title):
            return text.strip()
    return sys.exit(f"CHANGELOG.md has no section '## [{version}] - year-month-day'.")


if __name__ == "__main__":
    print(notes(sys.argv[1], (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))

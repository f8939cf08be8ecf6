"""Draws the figure of README.md for the light and the dark theme.

    KERAS_BACKEND=jax python tools/draw_readme_figure.py

It writes docs/static/losses-light.svg and losses-dark.svg. They are in the repository,
because GitHub shows the README without a build of the site.
"""

import pathlib
import sys

DOCS = pathlib.Path(__file__).parents[1] / "docs"
sys.path[:0] = [str(DOCS), str(DOCS.parent / "benchmarks")]

import figures  # noqa: E402, which is found after the line above

if __name__ == "__main__":
    figures.save({"losses": lambda: figures.losses(wide=True)}, DOCS / "static")

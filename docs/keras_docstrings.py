"""Turns the Markdown of Keras's docstrings into what autodoc reads."""

import re


def to_rst(app, what, name, object_, options, lines):
    """Rewrites fenced blocks and links in place; `default_role` does the rest."""
    found, indent = [], ""
    for line in lines:
        if line.strip() == "```":
            found += [] if indent else [".. code-block:: text", ""]
            indent = "" if indent else "    "
            continue
        link = r"\[([^\]]+)\]\((https?://[^)]+)\)"
        found.append(indent + re.sub(link, r"`\1 <\2>`__", line))
    lines[:] = found

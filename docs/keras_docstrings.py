"""Converts the Markdown of Keras-style docstrings to reStructuredText for autodoc."""

import re


def to_rst(app, what, name, object_, options, lines):
    """Converts fenced blocks and links in place. Inline code needs `default_role`."""
    found, indent = [], ""
    for line in lines:
        if line.strip() == "```":
            found += [] if indent else [".. code-block:: text", ""]
            indent = "" if indent else "    "
            continue
        link = r"\[([^\]]+)\]\((https?://[^)]+)\)"
        found.append(indent + re.sub(link, r"`\1 <\2>`__", line))
    lines[:] = found

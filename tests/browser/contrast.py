"""Colors and their contrast."""

import re

import numpy as np


def color(page, selector, part):
    rgb = page.locator(selector).first.evaluate(
        "(element, part) => getComputedStyle(element)[part]", part
    )
    assert re.fullmatch(r"rgb\(\d+, \d+, \d+\)", rgb)
    return tuple(map(int, re.findall(r"\d+", rgb)))


def contrast(one, other):
    """The contrast ratio of WCAG 2."""

    def luminance(rgb):
        rgb = np.array(rgb) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)

"""Every page of the site, on a desk and on a phone, by day and by night."""

import os
import pathlib

import pytest
from contrast import color, contrast

SITE = pathlib.Path(os.environ["SITE"]).resolve()
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
SHOWN = ["index.html", "try_it.html", "how_to/weights_and_masks.html"]


def test_there_are_pages():
    assert set(SHOWN) < set(PAGES)


@pytest.mark.parametrize("address", PAGES)
def test_a_page_fits_a_phone_and_needs_no_network(open_page, address):
    page = open_page(width=360, address=address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    # Fails for an image that is not there, or is none.
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
@pytest.mark.parametrize("address", SHOWN)
def test_text_stands_out(open_page, address, width, color_scheme):
    """And leaves a picture of the page beside the site, for a person to look at."""
    page = open_page(width=width, color_scheme=color_scheme, address=address)
    background = color(page, "body", "backgroundColor")
    for selector in ("article h1", "article p", "article a.reference"):
        if page.locator(selector).count():
            assert contrast(color(page, selector, "color"), background) >= 4.5
    page.wait_for_load_state("networkidle")
    name = f"{pathlib.Path(address).stem}-{width}-{color_scheme}.png"
    page.screenshot(path=SITE.with_name("screenshots") / name, full_page=True)

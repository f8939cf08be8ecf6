"""Every page of the site, on a desktop and on a phone, in light and dark mode."""

import os
import pathlib

import pytest
from contrast import color, contrast

SITE = pathlib.Path(os.environ["SITE"]).resolve()
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
SAMPLES = ["index.html", "try_it.html", "how_to/weights_and_masks.html"]


def test_the_site_has_pages():
    assert set(SAMPLES) < set(PAGES)


@pytest.mark.parametrize("address", PAGES)
def test_a_page_fits_a_phone_and_works_offline(open_page, address):
    page = open_page(width=360, address=address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    # Fails if an image is missing or invalid.
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
@pytest.mark.parametrize("address", SAMPLES)
def test_text_has_enough_contrast(open_page, address, width, color_scheme):
    """Also saves a screenshot of the page next to the site, for manual review."""
    page = open_page(width=width, color_scheme=color_scheme, address=address)
    background = color(page, "body", "backgroundColor")
    for selector in ("article h1", "article p", "article a.reference"):
        if page.locator(selector).count():
            assert contrast(color(page, selector, "color"), background) >= 4.5
    page.wait_for_load_state("networkidle")
    name = f"{pathlib.Path(address).stem}-{width}-{color_scheme}.png"
    page.screenshot(path=SITE.with_name("screenshots") / name, full_page=True)

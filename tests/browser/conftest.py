"""Opens the built site in a browser. SITE is the folder with its index.html."""

import os
import pathlib

import jax
import pytest
from install_browser import browser as installed_browser
from playwright.sync_api import sync_playwright

# None of these changes the page. A container has no sandbox. The other flags turn off
# the GPU and the network requests of the browser.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(autouse=True)
def _float64_as_in_javascript():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def site():
    return pathlib.Path(os.environ["SITE"]).resolve()


@pytest.fixture(scope="session")
def browser():
    # None selects Playwright's own browser.
    path = installed_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, site):
    """Opens pages; fails if one logs an error or warning, or requests remote data."""
    contexts, problems = [], []

    def watch_request(request):
        if not request.url.startswith(("file:", "data:")):
            problems.append(f"requested {request.url}")

    def watch_console(message):
        if message.type in ("error", "warning"):
            problems.append(f"console: {message.text}")

    def open_page(
        width=1280, height=900, color_scheme="light", address="try_it.html", **options
    ):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=color_scheme,
            **options,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", watch_request)
        page.on("console", watch_console)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.goto((site / address).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def page(open_page):
    return open_page()

"""The figure of docs/try_it.md in a real browser, compared with the package."""

import json
import re

import jax
import numpy as np
import pytest
from contrast import color, contrast

from keras_smoothl1 import smooth_l1_loss

BETA, OUTLIER = "#fit-beta", "#fit-outlier"
BETA_POINT, OUTLIER_POINT = ".fit-handle.fit-beta", ".fit-handle.fit-outlier"
SCHEMES = ["light", "dark"]

each_beta = pytest.mark.parametrize(
    "beta_keys",
    [["Home"], ["PageDown"] * 3, [], ["End"]],
    ids=["smallest", "small", "initial", "largest"],
)
each_height = pytest.mark.parametrize(
    "height_keys",
    [["Home"], ["PageDown"] * 2 + ["ArrowLeft"] * 3, ["End"]],
    ids=["lowest", "low", "highest"],
)


def press(page, selector, keys):
    page.locator(selector).focus()
    for key in keys:
        page.keyboard.press(key)


def numbers(page):
    """All numbers that the page shows, at full precision."""
    return page.evaluate(
        """() => Object.fromEntries(
            [...document.querySelectorAll("[data-shows]")]
                .map((place) => [place.dataset.shows, Number(place.dataset.value)]))"""
    )


def points(page):
    data = json.loads(page.locator("#try-it-points").text_content())
    outlier = [data["outlierX"], numbers(page)["outlier"]]
    return np.array([*data["points"], outlier]).T


def adjust(page, beta_keys, height_keys):
    """Presses the keys; returns the numbers and the points that the page shows then."""
    press(page, BETA, beta_keys)
    press(page, OUTLIER, height_keys)
    return numbers(page), *points(page)


def scroll_to(page, selector):
    # Playwright would not scroll to a visible element at the edge of the screen.
    page.locator(selector).evaluate(
        "place => place.scrollIntoView({block: 'center', behavior: 'instant'})"
    )
    # The browser knows which elements a finger can scroll once it has drawn the frame.
    page.evaluate(
        """() => new Promise((done) =>
            requestAnimationFrame(() => requestAnimationFrame(done)))"""
    )


def middle(page, selector):
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page, selector, across, up):
    scroll_to(page, selector)
    x, y = middle(page, selector)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + across, y - up, steps=5)
    page.mouse.up()


def touch(page, selector, offset, up):
    """Touches `offset` from the middle of an element, and swipes up by `up` pixels."""
    x, y = middle(page, selector)
    x, y = x + offset[0], y + offset[1]
    session = page.context.new_cdp_session(page)

    def send(kind, *places):
        touches = [{"x": x, "y": y} for x, y in places]
        event = {"type": kind, "touchPoints": touches}
        session.send("Input.dispatchTouchEvent", event)

    send("touchStart", (x, y))
    for step in range(1, 11):
        send("touchMove", (x, y - up * step / 10))
    send("touchEnd")


@each_beta
@each_height
def test_the_numbers_match_the_package(page, beta_keys, height_keys):
    shown, x, y = adjust(page, beta_keys, height_keys)
    predicted = shown["smooth.intercept"] + shown["smooth.rise"] * x

    losses = np.asarray(smooth_l1_loss(y, predicted, shown["beta"]))
    slopes = jax.grad(lambda p: smooth_l1_loss(y, p, shown["beta"]).sum())(predicted)
    assert losses.dtype == "float64"
    assert shown["smooth.d"] == pytest.approx(predicted[-1] - y[-1])
    assert shown["smooth.loss"] == pytest.approx(losses[-1])
    assert shown["smooth.slope"] == pytest.approx(slopes[-1])
    assert shown["smooth.mean"] == pytest.approx(losses.mean())


@each_beta
@each_height
def test_the_line_minimizes_the_mean_loss(page, beta_keys, height_keys):
    shown, x, y = adjust(page, beta_keys, height_keys)

    def mean_loss(line):
        return smooth_l1_loss(y, line[0] + line[1] * x, shown["beta"]).mean()

    line = np.array([shown["smooth.intercept"], shown["smooth.rise"]])
    np.testing.assert_allclose(jax.grad(mean_loss)(line), 0, atol=1e-10)


@each_height
def test_the_dashed_line_is_the_least_squares_fit(page, height_keys):
    shown, x, y = adjust(page, [], height_keys)
    rise, intercept = np.polyfit(x, y, 1)
    d = intercept + rise * x - y
    assert shown["squares.rise"] == pytest.approx(rise)
    assert shown["squares.intercept"] == pytest.approx(intercept)
    assert shown["squares.d"] == shown["squares.slope"] == pytest.approx(d[-1])
    assert shown["squares.loss"] == pytest.approx(d[-1] ** 2 / 2)
    assert shown["squares.mean"] == pytest.approx((d**2 / 2).mean())


@each_beta
def test_numbers_are_shown_with_four_digits(page, beta_keys):
    press(page, BETA, beta_keys)
    places = page.locator("[data-shows]").all()
    assert len(places) == 16
    for place in places:
        text = place.text_content().replace("\N{MINUS SIGN}", "-")
        assert len(re.sub(r"^-?(0\.0*)?|\.", "", text)) == 4
        assert float(text) == pytest.approx(
            float(place.get_attribute("data-value")), rel=5e-4
        )


def test_both_lines_coincide_for_a_large_beta(page):
    press(page, BETA, ["End"])
    shown = numbers(page)
    assert shown["smooth.rise"] == pytest.approx(shown["squares.rise"])
    assert shown["smooth.intercept"] == pytest.approx(shown["squares.intercept"])


def test_dragging_the_outlier_up_moves_only_the_dashed_line(page):
    before = numbers(page)
    drag(page, OUTLIER_POINT, 0, up=40)
    after = numbers(page)
    assert after["outlier"] > before["outlier"] + 1
    assert after["squares.rise"] > before["squares.rise"] + 0.05
    assert after["squares.slope"] < before["squares.slope"] - 0.5
    assert after["smooth.rise"] == pytest.approx(before["smooth.rise"])
    assert after["smooth.slope"] == before["smooth.slope"] == -1


@pytest.mark.parametrize(
    ("point", "range_", "name", "across", "up"),
    [(OUTLIER_POINT, OUTLIER, "outlier", 0, -80), (BETA_POINT, BETA, "beta", 60, 0)],
    ids=["outlier", "beta"],
)
def test_a_dragged_point_follows_the_mouse_and_moves_its_slider(
    page, point, range_, name, across, up
):
    scroll_to(page, point)
    x, y = middle(page, point)
    before = numbers(page)[name]
    drag(page, point, across, up)
    assert middle(page, point) == pytest.approx((x + across, y - up), abs=4)
    shown, position = numbers(page)[name], float(page.locator(range_).input_value())
    assert shown != before
    if name == "beta":
        assert shown == pytest.approx(10 ** (position / 50), rel=5e-3)
    else:
        assert shown == position


@pytest.mark.parametrize(
    ("far", "beta", "outlier"), [(-300, 0.0501, -3), (300, 5.01, 14)]
)
def test_a_point_dragged_out_of_the_drawing_stops_at_the_edge(page, far, beta, outlier):
    drag(page, BETA_POINT, far, 0)
    drag(page, OUTLIER_POINT, 0, far)
    shown = numbers(page)
    assert (shown["beta"], shown["outlier"]) == (beta, outlier)


@pytest.mark.parametrize("across", [-60, 60])
def test_each_point_moves_along_one_axis_only(page, across):
    before = numbers(page)
    drag(page, BETA_POINT, 0, across)
    drag(page, OUTLIER_POINT, across, 0)
    assert numbers(page) == before


def phone(open_page):
    return open_page(width=380, height=700, has_touch=True, is_mobile=True)


def test_swiping_on_the_ring_drags_the_outlier(open_page):
    page = phone(open_page)
    scroll_to(page, "#fit-line")
    scrolled, before = page.evaluate("scrollY"), numbers(page)["outlier"]
    touch(page, OUTLIER_POINT, (15, 0), up=-60)
    assert numbers(page)["outlier"] < before - 2
    assert page.evaluate("scrollY") == scrolled


def test_swiping_outside_the_points_scrolls_the_page(open_page):
    page = phone(open_page)
    scroll_to(page, "#fit-line")
    scrolled, before = page.evaluate("scrollY"), numbers(page)
    touch(page, "#fit-line", (0, 100), up=150)
    page.wait_for_function("before => scrollY > before + 50", arg=scrolled)
    assert numbers(page) == before


def test_reset_restores_the_initial_state(page):
    before = numbers(page)
    press(page, BETA, ["Home"])
    drag(page, OUTLIER_POINT, 0, 50)
    assert numbers(page) != before
    page.get_by_role("button", name="Reset").click()
    assert numbers(page) == before


def test_tab_moves_from_beta_to_outlier_to_reset_with_visible_focus(page):
    page.get_by_role("slider", name="beta").focus()
    for name in ["fit-beta", "fit-outlier", "fit-reset"]:
        focused = page.evaluate(
            """() => ({
                name: document.activeElement.id,
                outline: getComputedStyle(document.activeElement).outlineStyle,
            })"""
        )
        assert focused == {"name": name, "outline": "solid"}
        page.keyboard.press("Tab")


def test_the_beta_slider_announces_beta_instead_of_its_position(page):
    slider = page.get_by_role("slider", name="beta")
    assert slider.get_attribute("aria-valuetext") == "1"
    slider.press("End")
    assert slider.get_attribute("aria-valuetext") == "5.01"


@pytest.mark.parametrize("color_scheme", SCHEMES)
@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_is_wider_than_the_screen(open_page, width, color_scheme):
    page = open_page(width=width, color_scheme=color_scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for box in page.locator("#fit .jxgbox, #fit input, #fit table").all():
        place = box.bounding_box()
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= width


def test_on_a_phone_drawings_are_stacked_and_controls_are_large(open_page):
    page = phone(open_page)
    above, below = (page.locator(s).bounding_box() for s in ["#fit-loss", "#fit-line"])
    assert below["y"] > above["y"] + above["height"]
    for thing in [BETA, OUTLIER, "#fit-reset"]:
        assert page.locator(thing).bounding_box()["height"] >= 40
    for point in [BETA_POINT, OUTLIER_POINT]:
        scroll_to(page, point)
        x, y = middle(page, point)
        for offset in [-18, 18]:
            hit = "([x, y]) => document.elementFromPoint(x, y).classList[0]"
            assert page.evaluate(hit, [x + offset, y]) == "fit-handle"


def test_the_drawings_resize_with_the_window(page):
    page.set_viewport_size({"width": 380, "height": 700})
    page.wait_for_function(
        "document.querySelector('#fit-line svg').getBoundingClientRect().width < 360"
    )
    drag(page, OUTLIER_POINT, 0, -50)
    assert numbers(page)["outlier"] < 8


PARTS = {
    ".jxgbox .fit-smooth": ("stroke", 3),
    ".jxgbox .fit-squares": ("stroke", 3),
    ".jxgbox .fit-slope": ("stroke", 3),
    ".jxgbox .fit-datum": ("fill", 3),
    ".jxgbox .fit-handle.fit-outlier": ("fill", 3),
    ".jxgbox .fit-handle.fit-beta": ("fill", 3),
    ".jxgbox .fit-text": ("fill", 4.5),
    ".jxgbox .fit-number": ("fill", 4.5),
    "#fit td[data-shows]": ("color", 4.5),
}


@pytest.mark.parametrize("color_scheme", SCHEMES)
def test_the_drawings_have_enough_contrast(open_page, color_scheme):
    page = open_page(color_scheme=color_scheme)
    background = color(page, "body", "backgroundColor")
    for selector, (part, least) in PARTS.items():
        drawn = contrast(color(page, selector, part), background)
        assert drawn >= least, selector


def test_the_theme_of_the_site_overrides_that_of_the_system(open_page):
    def colors(page):
        return [color(page, selector, part) for selector, (part, _) in PARTS.items()]

    pages = {scheme: open_page(color_scheme=scheme) for scheme in SCHEMES}
    of_system = {scheme: colors(page) for scheme, page in pages.items()}
    assert not set(of_system["light"]) & set(of_system["dark"])
    for page in pages.values():
        for theme in SCHEMES:
            page.evaluate("theme => { document.body.dataset.theme = theme }", theme)
            assert colors(page) == of_system[theme]


def test_without_javascript_the_page_shows_a_notice(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("noscript p").is_visible()
    assert not page.locator("#fit").is_visible()


def test_no_other_page_loads_the_scripts_of_the_figure(site):
    pages = {
        path.relative_to(site).as_posix()
        for path in site.rglob("*.html")
        if re.search(
            r'(src|href)="[^"]*(jsxgraph\.(js|css)|fit\.(js|css))', path.read_text()
        )
    }
    assert pages == {"try_it.html"}

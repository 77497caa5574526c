"""Pages in a real browser: they draw, their controls work, and they fit."""

import pytest

from tests.pages.conftest import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", [1280, 400])
def test_pages_draw_and_fit(opened, name, width):
    page = opened(name, width)
    assert page.locator("h1").inner_text()
    for place in range(page.locator("[data-explore]").count()):
        one = page.locator("[data-explore]").nth(place)
        assert one.locator("svg").first.bounding_box()["height"] > 60
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{wide} pixels of content in {width}"


@pytest.mark.parametrize("name", COMMANDS)
def test_text_stands_out(opened, name):
    page = opened(name)
    # WCAG 2.1, 1.4.3: 4.5 between text and ground.
    found = page.evaluate(
        """() => {
          const light = (text) => {
            const parts = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
              .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
          };
          const ground = light(getComputedStyle(document.body).backgroundColor);
          return [...document.querySelectorAll("h1, h2, p, td, th, label")].map((one) => {
            const ink = light(getComputedStyle(one).color);
            return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
          });
        }"""
    )
    assert min(found) >= 4.5


@pytest.mark.parametrize("name", COMMANDS)
def test_controls_are_named_and_reached_by_keyboard(opened, name):
    page = opened(name)
    controls = page.locator("[data-explore] select, [data-explore] input")
    names = [
        controls.nth(k).evaluate("(one) => one.labels[0]?.innerText.trim()")
        for k in range(controls.count())
    ]
    assert names
    assert all(names)
    seen = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "document.activeElement.closest('[data-explore] label')"
                " ? document.activeElement.tagName : ''"
            )
        )
    assert {"SELECT", "INPUT"} & seen


def test_planners_can_be_switched_and_cells_read(opened):
    page = opened("plan")
    one = page.locator("[data-explore=heat]").first
    said = one.locator(".said")
    first = said.inner_text()
    one.locator("select").select_option(index=1)
    second = said.inner_text()
    assert second.split(",")[0] != first.split(",")[0]
    one.locator("input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    assert said.inner_text() != second
    one.locator("svg").first.focus()
    before = said.inner_text()
    page.keyboard.press("ArrowRight")
    assert said.inner_text() != before
    one.locator("svg rect").nth(3).hover()
    assert "device 3" in said.inner_text()


def test_kinds_of_deployments_can_be_left_out(opened):
    page = opened("capacity")
    one = page.locator("[data-explore=points]")
    marks = one.locator(".mark")
    all_of_them = marks.count()
    assert all_of_them >= 3
    one.locator("input[type=checkbox]").first.uncheck()
    assert 0 <= marks.count() < all_of_them
    assert f"of {all_of_them} shown" in one.locator(".said").inner_text()
    one.locator("input[type=checkbox]").first.check()
    marks.first.focus()
    assert "tokens/s per user" in one.locator(".said").inner_text()


def test_the_budget_moves(opened):
    page = opened("cache")
    one = page.locator("[data-explore=lines]").first
    caption, cell = one.locator("caption"), one.locator("td").first
    before = caption.inner_text(), cell.inner_text()
    one.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    low = caption.inner_text(), cell.inner_text()
    page.keyboard.press("End")
    high = caption.inner_text(), cell.inner_text()
    assert len({before[0], low[0], high[0]}) >= 2
    assert float(high[1].split()[0]) >= float(low[1].split()[0])
    one.locator("select").select_option(index=1)
    assert "tokens/s" in cell.inner_text()


def test_windows_can_be_walked(opened):
    page = opened("rebalancing")
    one = page.locator("[data-explore=lines]")
    caption = one.locator("caption")
    assert "window 1" in caption.inner_text()
    one.locator("input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    assert "frozen moves" in caption.inner_text()
    page.keyboard.press("ArrowRight")
    assert "nobody plans again" in caption.inner_text()
    assert one.locator("tbody tr, tr").count() == 3


def test_slots_for_copies_can_be_moved(opened):
    page = opened("replicas")
    one = page.locator("[data-explore=lines]")
    one.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    none = float(one.locator("td").first.inner_text().split()[0])
    page.keyboard.press("End")
    assert float(one.locator("td").first.inner_text().split()[0]) < none
    assert "more on all devices" in one.locator("caption").inner_text()


def test_every_prediction_is_a_point(opened):
    page = opened("papers")
    one = page.locator("[data-explore=points]")
    assert one.locator(".mark").count() >= 15
    one.locator(".mark").last.hover()
    assert "predicted" in one.locator(".said").inner_text()


def test_measured_runs_are_told_on_hover_and_groups_left_out(opened):
    page = opened("serving")
    assert page.locator("[data-explore=points]").count() == 2  # TPOT and TTFT
    one = page.locator("[data-explore=points]").first
    assert one.locator(".mark").count() == 3  # the fourth run is refused
    one.locator(".mark").first.hover()
    assert "measured 12 ms, predicted" in one.locator(".said").inner_text()
    one.locator("input[type=checkbox]").last.uncheck()
    assert one.locator(".mark").count() == 2
    assert "of 3 shown" in one.locator(".said").inner_text()


def test_pages_are_small(pages):
    assert all(path.stat().st_size < 3_000_000 for path in pages.values())

"""The operations page in a real browser: headless Chromium, a fresh profile, scripts off, nothing asked from elsewhere.

Skipped, visibly, where Chromium is not installed (`apt-get install chromium`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from monitoring.dashboard.server import Dashboard, export
from security.journal import Journal
from tests.dashboards import HOSTILE, SUBJECT, Story, full_story

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    journal = Journal(f"sqlite:///{tmp_path_factory.mktemp('dashboard')}/journal.db")
    story = full_story(journal, datetime.now(UTC))
    story.version(3, name=HOSTILE)
    return story


@pytest.fixture(scope="module")
def url(story: Story) -> Iterator[str]:
    dashboard = Dashboard(story.journal.url, SUBJECT)
    yield dashboard.start()
    dashboard.stop()


class Seen:
    """What the browser asked for and complained about."""

    def __init__(self, page: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))


@pytest.fixture(params=[1280, 390], ids=["desk", "phone"])
def tab(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": request.param, "height": 844}, java_script_enabled=False)
    yield context.new_page()
    context.close()


def test_the_live_page_asks_nobody_else_and_breaks_no_content_policy(tab: Any, url: str) -> None:
    seen = Seen(tab)
    tab.goto(url)
    assert {one for one in seen.requests if not one.startswith("data:")} == {url, f"{url}style.css"}
    assert seen.complaints == []
    assert "CANARY" in tab.inner_text("#release")


def test_the_written_page_looks_the_same_and_asks_nobody(tab: Any, story: Story, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text(export(story.journal, SUBJECT, datetime.now(UTC)))
    seen = Seen(tab)
    tab.goto(target.as_uri())
    assert {one for one in seen.requests if not one.startswith("data:")} == {target.as_uri()}
    assert seen.complaints == []
    assert tab.locator("#verdict").evaluate("node => getComputedStyle(node).borderLeftWidth") == "6px"


def test_the_body_never_scrolls_sideways_and_every_section_is_there(tab: Any, url: str) -> None:
    tab.goto(url)
    width, room = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width == room
    for name in ("verdict", "release", "alarms", "serving", "quality", "training", "intake", "timeline"):
        box = tab.locator(f"#{name}").bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= room and box["height"] > 20


def test_charts_and_bars_are_drawn_in_colour(tab: Any, url: str) -> None:
    tab.goto(url)
    line = tab.locator("#release polyline.good").first
    assert line.evaluate("node => getComputedStyle(node).stroke") == "rgb(31, 95, 153)"
    bar = tab.locator("#release .bar rect.good").first.bounding_box()
    assert bar is not None and bar["width"] > 50


def test_hostile_names_run_nothing_even_with_scripts_on(browser: Any, url: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    raised: list[str] = []
    page.on("dialog", lambda dialog: (raised.append(dialog.message), dialog.dismiss()))
    page.goto(url)
    assert page.locator("script, img").count() == 0 and raised == []
    assert HOSTILE in page.inner_text("#training")
    context.close()


def test_the_live_page_comes_again_by_itself(browser: Any, story: Story, url: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(url)
    story.put("lineage", "head.moved", {"head": "v000077-newer", "reason": "test", "clock": "2026-03-15T00:00:00.000000Z"})
    page.get_by_text("v000077-newer").first.wait_for(timeout=9000)
    context.close()

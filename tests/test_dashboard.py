"""The operations page: what it says of a journal, how old its parts are, and that nothing on it is taken for markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.release_policy import RolloutPolicy
from models.rollout import write
from models.rollout_state import State
from monitoring.alarms import raise_alarm
from monitoring.dashboard import chart
from monitoring.dashboard.facts import NEEDED, Facts
from monitoring.dashboard.page import Page, page
from monitoring.dashboard.releases import _share
from monitoring.dashboard.render import evidence as e_text
from monitoring.dashboard.render import number, render, share, span
from monitoring.dashboard.server import Dashboard, DashboardRefused, export
from monitoring.dashboard.timeline import WORDS
from monitoring.verdict import judge
from security.journal import Journal, stamp
from security.listening import PortInUse
from security.replicas import Replica
from tests.dashboards import BASE, DAY, HOSTILE, POLICY, START, SUBJECT, TASK, WALL, Markup, Story, full_story, text_of


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(Journal(f"sqlite:///{tmp_path / 'journal.db'}"))


def fold(story: Story, policy: RolloutPolicy = POLICY, after: timedelta = timedelta(minutes=3), **more: Any) -> Page:
    return page(story.facts(), policy, window_start=START, clock="stream", now=story.wall + after, **more)


def html(story: Story, **more: Any) -> str:
    return render(fold(story, **more), live=False)


def test_an_empty_journal_gives_a_page_that_says_so_in_every_section(tmp_path: Path) -> None:
    found = page(Facts(TASK), POLICY, window_start=START, clock="stream", now=WALL)
    assert found.strip.body is not None and found.strip.body.word == "NO DATA"
    markup = text_of(render(found, live=False))
    for name in ("releases", "alarms", "serving", "learning", "training", "intake", "timeline"):
        section = getattr(found, name)
        assert section.body is None and section.at is None and section.empty in markup


def test_the_word_is_the_worst_thing_that_is_true(story: Story) -> None:
    def word() -> str:
        strip = fold(story).strip.body
        assert strip is not None
        return strip.word

    story.days(1)
    version = story.version(1)
    assert word() == "OK"
    rollout = story.facts().board.rollouts[version]
    story.decide([write("rollout.paused", replace(rollout, paused=True), story.clock, reason="lunch", actor="ann")])
    assert word() == "HOLD"
    more: dict[str, Any] = {"figure": 12.0, "limit": 10.0, "at": WALL, "actor": "pipeline"}
    raise_alarm(story.journal, TASK, kind="drift", window="w", message="inputs moved", **more)
    assert word() == "HOLD"  # a warning is counted, it does not take over
    raise_alarm(story.journal, TASK, kind="gradient_norm", window="w", message="norm 12 > 10", **more)
    assert word() == "ALARM"
    back = replace(rollout, state=State.ROLLING_BACK, reason="errors: evidence 120 >= 100")
    story.decide([write("rollout.advanced", back, story.clock, to="ROLLING_BACK", reason=back.reason, **{"from": "CANARY"},
                        step=0, weight=0.0, figures={}, actor="gate")])  # fmt: skip
    assert word() == "ROLLING BACK"
    strip = fold(story).strip.body
    assert strip is not None and [kind for kind, _ in strip.reasons] == ["ROLLING BACK", "ALARM"]
    assert strip.warnings == 1


def test_a_gateway_that_lags_holds_the_raise_of_the_weight_and_is_counted(story: Story) -> None:
    policy = story.policy = replace(POLICY, min_blocks=3, alpha=0.2)
    story.acknowledged = False  # while the story goes on
    story.days(1)
    story.version(1)
    story.days(6, 0.09)
    current, lagging = Replica("gateway-1", 1, WALL), Replica("gateway-1", 0, WALL)
    assert fold(story, policy, replicas=[current]).strip.body.word == "OK"  # type: ignore[union-attr]
    strip = fold(story, policy, replicas=[lagging]).strip.body
    assert strip is not None and strip.word == "HOLD" and strip.behind == 1
    assert "replica" in strip.reasons[0][1]


def test_figures_of_a_release_are_those_of_the_gate_and_the_chart_ends_in_them(story: Story) -> None:
    full = full_story(story.journal)
    facts, shown = full.facts(), fold(full).releases.body
    assert shown is not None and [r.rollout.state for r in shown] == [State.CANARY, State.SHADOW]
    for one in shown:
        verdicts = judge(one.rollout, facts.evidence, POLICY, full.clock, acknowledged=True, prepared=None)
        assert one.verdicts == verdicts
        assert [bar.figure for bar in one.bars][:2] == [verdicts.promote_e, verdicts.harm_e]
        assert one.chart is not None
        heights = {line.name: line.dot[1] for line in one.chart.lines if line.dot}
        limit = next(tick.y for tick in one.chart.ticks if tick.kind == "good")
        assert (heights["evidence"] <= limit) == (verdicts.promote_e >= POLICY.promote_threshold)
        assert heights["evidence"] < heights["harm"]
    marks = [(step.name, step.mark) for step in shown[0].ladder]
    assert marks == [("shadow", "done"), ("10 %", "done"), ("50 %", "now"), ("100 %", "ahead"), ("bake", "ahead"),
                     ("stable", "ahead")]  # fmt: skip


def test_a_bar_is_empty_at_one_full_at_the_limit_and_never_full_for_nan() -> None:
    shares = [_share(figure, 60.0) for figure in (0.2, 1.0, 60.0**0.5, 60.0, 1e9, float("nan"))]
    assert shares == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0, 0.0])


@pytest.mark.parametrize("values", [[1.0, 1.0], [-3.0, None, 5.0], [1e-12, 2e-12, 1e-12], [1e9, -1e9], [0.0, 0.0]])
def test_a_chart_stays_in_its_box_and_its_ticks_tell_heights_apart(values: list[float | None]) -> None:
    made = chart.line_chart([("a", "good", values)], first="", last="", about="", limits=[("bad", 2.0)])
    assert made is not None
    points = [float(n) for line in made.lines for run in line.runs for pair in run.split() for n in pair.split(",")[1:]]
    assert all(0.0 <= y <= made.height for y in points + [tick.y for tick in made.ticks])
    labels = [tick.label for tick in made.ticks if tick.kind == "grid"]
    assert len(set(labels)) == len(labels) >= 1


def test_a_gap_in_the_figures_is_a_gap_in_the_line() -> None:
    made = chart.line_chart([("a", "good", [1.0, 2.0, float("nan"), 2.0, 3.0])], first="", last="", about="")
    assert made is not None and len(made.lines[0].runs) == 2
    assert chart.line_chart([("a", "good", [None, float("inf")])], first="", last="", about="") is None


def test_sections_tell_their_age_and_are_stale_when_windows_stop(story: Story) -> None:
    story.days(4)
    fresh, late = fold(story), fold(story, after=timedelta(days=2, minutes=1))
    for name in ("releases", "alarms", "learning", "training", "intake", "timeline", "strip"):
        assert not getattr(fresh, name).stale and getattr(late, name).stale
    assert fresh.intake.at == story.wall and "3 min ago" in html(story)
    strip = late.strip.body
    assert strip is not None and strip.word == "HOLD" and "no window was processed since 2026-05-01 12:00" in str(strip)


def test_hourly_windows_are_late_after_three_hours_and_not_after_two_days(story: Story) -> None:
    story.put("cut", "cut.decided", {"start": stamp(START), "end": stamp(START + timedelta(hours=1))})
    story.put("window", "window.sealed", {"window": "2026-03-02T00:00Z", "rows": {}, "rejects": 0})
    assert not fold(story, after=timedelta(hours=3)).intake.stale
    assert fold(story, after=timedelta(hours=3, seconds=1)).intake.stale


def test_nothing_that_comes_from_outside_becomes_markup(story: Story) -> None:
    plain = Markup()
    plain.feed(html(full_story(Journal(story.journal.url.replace("journal.db", "plain.db")))))
    full_story(story.journal)
    story.day = 13
    story.version(3, HOSTILE, name=HOSTILE)
    story.put("window", "window.sealed", {"window": HOSTILE, "rows": {HOSTILE: 1}, "rejects": 0})
    body = {"update": HOSTILE, "number": 4, "windows": [HOSTILE], "parent": HOSTILE, "message": HOSTILE}
    story.put("lineage", "update.interrupted", body, actor=HOSTILE)
    story.put("rollout", f"rollout.{HOSTILE}", {"version": HOSTILE, "reason": HOSTILE})
    drifted = {"name": HOSTILE, "effect": 0.1, "usual": 0.1, "adjusted": 0.1, "drifted": True}
    test = {"window": HOSTILE, "state": HOSTILE, "message": HOSTILE, "tested": 1, "drifted": [], "share": 0.1}
    story.put("window", "drift.tested", test | {"threshold": 0.1, "top": [drifted], "evidently": {"error": HOSTILE}})
    alarm = {"kind": HOSTILE, "window": HOSTILE, "severity": "critical", "message": HOSTILE, "figure": None}
    story.put("alarm", "alarm.raised", alarm | {"limit": None, "cure": HOSTILE, "docs": HOSTILE})
    for live in (True, False):
        markup = render(fold(story), live=live)
        seen = Markup()
        seen.feed(markup)
        assert seen.tags - plain.tags <= {"link"}
        assert not {name for _, name in seen.attributes if name.startswith("on") or name == "style"}
        assert "".join(seen.text).count("<script>alert(1)</script>") >= 12 and "<script" not in markup
        assert "{{7*7}}" in "".join(seen.text)


def test_an_entry_that_cannot_be_read_is_an_alarm_and_hides_nothing_else(story: Story) -> None:
    story.days(2)
    story.put("rollout", "rollout.advanced", {"version": "v9"})  # written by something else: no `after`
    story.days(1)
    found = fold(story)
    assert found.strip.body is not None and found.strip.body.word == "ALARM"
    assert "cannot be read and is left out" in found.strip.body.reasons[0][1]
    assert found.intake.body is not None and len(found.intake.body) == 3


@pytest.mark.parametrize("stream", ["cut", "window", "lineage", "rollout", "routing", "alarm", "privacy"])
def test_a_page_never_goes_dark_over_an_empty_body(story: Story, stream: str) -> None:
    story.days(1)
    kinds = [*WORDS, *NEEDED, "cut.decided", "evidence.scored", "COMMIT", "RESERVE", "something.new"]
    for kind in kinds:
        story.put(stream, kind, {})
    markup = html(story)
    assert "ALARM" in markup and len(story.facts().faults) == 1


def test_the_timeline_has_words_for_every_decision_newest_first(story: Story) -> None:
    full_story(story.journal)
    lines = fold(story).timeline.body
    assert lines is not None and [line.seq for line in lines] == sorted((line.seq for line in lines), reverse=True)
    kinds = {entry.kind for entry, _ in story.facts().decisions}
    assert kinds <= set(WORDS) and {"rollout.advanced", "routing.set", "alarm.raised", "alarm.acknowledged"} <= kinds
    raised = next(line for line in lines if line.what == "warning alarm")
    assert raised.clock == START + 13 * DAY  # an alarm carries no clock of its own
    moved = next(line for line in lines if line.what == "CANARY at 50 %")
    assert (moved.actor, moved.tone) == ("gate", "good") and "evidence" in moved.why


def test_the_timeline_keeps_sixty_lines(story: Story) -> None:
    for k in range(70):
        story.put("lineage", "head.moved", {"head": f"v{k}", "reason": "test", "clock": stamp(START)})
    lines = fold(story).timeline.body
    assert lines is not None and len(lines) == 60 and lines[0].about == "v69"


def test_updates_that_made_no_version_are_rows_with_their_reason(story: Story) -> None:
    story.days(1)
    story.version(1, blocked="loss_change", finding="loss change 0.62 > max_loss_change 0.5")
    message = "gradient norm 14.2 > max_gradient_norm 10"
    body = {"update": f"{TASK}/000002", "number": 2, "window": "w", "windows": ["w"], "parent": BASE, "message": message}
    story.put("lineage", "update.interrupted", body)
    trained = fold(story).training.body
    assert trained is not None
    assert [(row.state, row.note) for row in trained.rows] == [
        ("INTERRUPTED", message), ("BLOCKED", "loss change 0.62 > max_loss_change 0.5"),
    ]  # fmt: skip
    assert text_of(html(story)).count("INTERRUPTED") == 1


def test_privacy_figures_are_those_of_this_task_on_a_shared_topic(story: Story) -> None:
    full_story(story.journal)
    spent = fold(story).training.body
    assert spent is not None and spent.spending.charges == {"committed": 1} and spent.spending.epsilon == 0.4999
    other = page(_facts(story.journal, "other"), POLICY, window_start=START, clock="stream", now=WALL)
    assert other.training.body is None and other.timeline.body is None


def _facts(journal: Journal, task: str) -> Facts:
    facts = Facts(task)
    facts.refresh(journal)
    return facts


def test_requests_are_shown_by_epoch_and_arm_with_the_version_that_answered(story: Story) -> None:
    full_story(story.journal)
    rows = fold(story).serving.body
    assert rows is not None
    canary = next(row for row in rows if row.arm == "canary" and row.epoch == 2)
    assert (canary.version, canary.weight, canary.served.requests) == ("v000001-00000001", 0.1, 100)


def test_losses_are_those_of_who_was_stable_and_head_when_they_were_scored(story: Story) -> None:
    story.days(1)
    head = story.version(1)
    story.days(1)
    losses = story.facts().losses
    assert [(p.base, p.stable, p.head) for p in losses] == [(0.45, 0.45, 0.45), (0.5, 0.5, 0.45)]
    assert story.facts().board.head == head


def test_folding_on_reads_only_what_is_new_and_gives_the_same_page(story: Story) -> None:
    facts = _facts(story.journal, TASK)
    full_story(story.journal)
    assert facts.refresh(story.journal) and not facts.refresh(story.journal)
    arguments: dict[str, Any] = {"window_start": START, "clock": "stream", "now": WALL}
    assert page(facts, POLICY, **arguments) == page(_facts(story.journal, TASK), POLICY, **arguments)


def test_numbers_that_are_not_known_are_a_dash_and_never_a_zero() -> None:
    assert {number(None), number(float("nan")), share(None), e_text(float("inf")), span(None)} == {"–"}
    assert number(-0.0017, 4, True) == "−0.0017" and number(0.05, 2, True) == "+0.05"
    assert [e_text(x) for x in (0.5, 12.34, 915.8, 12_345.0, 1.2e7)] == ["0.50", "12.3", "915.8", "12,345", "1.2e7"]
    spans = [span(timedelta(seconds=s)) for s in (0, 59, 61, 7260, 180000)]
    assert spans == ["0 s", "59 s", "1 min 1 s", "2 h 1 min", "2 d 2 h"]


def test_the_written_page_stands_alone_and_allows_only_its_own_style(story: Story) -> None:
    markup = export(story.journal, SUBJECT, WALL)
    sheet = markup.split("<style>")[1].split("</style>")[0]
    seal = base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()
    assert f"'sha256-{seal}'" in unescape(markup) and "stylesheet" not in markup and 'equiv="refresh"' not in markup
    assert not re.search(r"(src|href)=\"(?!#|data:)", markup) and "url(" not in sheet and "@import" not in sheet


@pytest.fixture
def served(story: Story) -> Iterator[tuple[Story, Dashboard, str]]:
    full_story(story.journal, datetime.now(UTC))
    dashboard = Dashboard(story.journal.url, SUBJECT)
    yield story, dashboard, dashboard.start()
    dashboard.stop()


def test_the_served_page_may_load_nothing_from_elsewhere_and_comes_again(served: tuple[Story, Dashboard, str]) -> None:
    _, _, url = served
    answer = httpx.get(url)
    assert answer.status_code == 200 and '<meta http-equiv="refresh" content="5">' in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; img-src data:") and "script" not in policy
    assert "style=" not in answer.text and "<script" not in answer.text
    assert "headgate_evidently_drifted_columns" in httpx.get(f"{url}metrics").text
    assert httpx.get(f"{url}style.css").headers["content-type"].startswith("text/css")


def test_the_server_changes_nothing_and_offers_nothing_else(served: tuple[Story, Dashboard, str]) -> None:
    story, _, url = served
    before = story.journal.head()
    assert [httpx.request(verb, url).status_code for verb in ("POST", "PUT", "DELETE")] == [405] * 3
    assert [httpx.get(url + path).status_code for path in ("docs", "openapi.json", "../page.html")] == [404] * 3
    assert httpx.get(url).status_code == 200 and story.journal.head() == before


def test_a_request_that_names_another_host_is_refused(served: tuple[Story, Dashboard, str]) -> None:
    _, _, url = served
    answer = httpx.get(url, headers={"Host": "rebound.example"})
    assert answer.status_code == 421 and TASK not in answer.text
    assert httpx.get(url.replace("127.0.0.1", "localhost")).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "dashboard.example"])
def test_an_address_that_others_can_reach_is_refused_with_the_cure(host: str) -> None:
    with pytest.raises(DashboardRefused, match=r"no login: use 127\.0\.0\.1"):
        Dashboard("sqlite://", SUBJECT, host=host)


def test_a_port_in_use_is_one_sentence(served: tuple[Story, Dashboard, str]) -> None:
    story, _, url = served
    port = httpx.URL(url).port
    assert port is not None
    second = Dashboard(story.journal.url, SUBJECT)
    with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is in use"):
        second.start(port)


def test_the_page_shows_a_new_decision_at_the_next_look(served: tuple[Story, Dashboard, str]) -> None:
    story, _, url = served
    assert "v000099" not in httpx.get(url).text
    story.put("lineage", "head.moved", {"head": "v000099-cafecafe", "reason": "test", "clock": stamp(START)})
    assert "v000099-cafecafe" in httpx.get(url).text


def test_while_the_journal_does_not_answer_the_page_says_so_and_shows_what_was_known(
    served: tuple[Story, Dashboard, str],
) -> None:
    story, dashboard, url = served
    with sqlite3.connect(httpx.URL(story.journal.url).path) as database:
        database.execute("ALTER TABLE journal_head RENAME TO gone")
    answer = httpx.get(url)
    assert answer.status_code == 503 and "journal cannot be read" in answer.text and "v000001-00000001" in answer.text
    assert dashboard.page(datetime.now(UTC)).intake.stale


def test_the_first_byte_of_84_days_comes_within_200_ms(story: Story) -> None:
    story.days(2)
    story.version(1)
    for number_ in range(2, 12):
        story.days(7, 0.01)
        story.version(number_, BASE)
    story.days(12, 0.01)
    dashboard = Dashboard(story.journal.url, SUBJECT)
    url = dashboard.start()
    try:
        took = []
        for _ in range(5):
            began = time.perf_counter()
            httpx.get(url).raise_for_status()
            took.append(time.perf_counter() - began)
    finally:
        dashboard.stop()
    assert sorted(took)[1] < 0.2  # the machine may be busy with something else in some of them


def test_the_command_writes_the_page_of_the_configured_task(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from pipelines.cli import cli

    config = tmp_path / "headgate.toml"
    config.write_text(f'task = "tests.tasks:TwoBlobs"\n[journal]\nurl = "sqlite:///{tmp_path}/journal.db"\n')
    target = tmp_path / "out" / "page.html"
    done = CliRunner().invoke(cli, ["--config", str(config), "dashboard", "--export", str(target), "--json"])
    assert done.exit_code == 0 and json.loads(done.output) == {"file": str(target)}
    assert "NO DATA" in target.read_text() and [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_the_command_refuses_an_open_address(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from pipelines.cli import cli

    config = tmp_path / "headgate.toml"
    config.write_text(f'task = "tests.tasks:TwoBlobs"\n[journal]\nurl = "sqlite:///{tmp_path}/journal.db"\n')
    done = CliRunner().invoke(cli, ["--config", str(config), "dashboard", "--host", "0.0.0.0"])
    assert isinstance(done.exception, DashboardRefused) and "ssh -L" in str(done.exception)

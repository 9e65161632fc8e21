"""What follows in MLflow: a picture of the board, drawn at least once, mended when somebody moves it, waited for by nobody."""

from __future__ import annotations

import logging
import os
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from models import release_verbs
from monitoring.registry import STATE_TAG, VERSION_TAG, Releases, releases_of
from monitoring.switches import silence
from monitoring.tracking import Tracker
from pipelines import effects
from pipelines.effects import Outbox, deliver
from security.effects import EffectsDone
from security.journal import Journal
from tests.dashboards import BASE, TASK, Story
from tests.gateways import wait_until

silence(os.environ)  # as pipelines/settings.py does, before MLflow is imported


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    """One database for the module: making MLflow's schema takes seconds."""
    return Tracker(f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db", patience=300)


@pytest.fixture
def client(tracker):
    from mlflow import MlflowClient

    yield (found := MlflowClient(tracking_uri=tracker.url, registry_uri=tracker.url))
    if found.search_registered_models():
        found.delete_registered_model(TASK)


@pytest.fixture
def story(tmp_path):
    return Story(Journal(f"sqlite:///{tmp_path}/journal.db"))


def aliases(client) -> dict[str, str]:
    """Alias -> our version."""
    model = client.get_registered_model(TASK)
    return {alias: client.get_model_version(TASK, number).tags[VERSION_TAG] for alias, number in model.aliases.items()}


def states(client) -> list[tuple[str, str]]:
    found = client.search_model_versions(f"name = '{TASK}'")
    return sorted((one.tags[VERSION_TAG], one.tags[STATE_TAG]) for one in found)


def test_the_registry_follows_the_board_from_the_base_to_a_promotion(story, tracker, client):
    outbox = Outbox(story.journal, TASK, tracker.show_releases)
    outbox.apply()
    assert aliases(client) == {"stable": BASE} and states(client) == [(BASE, "BASE")]
    story.days(2)
    version = story.version(1)
    while story.facts().board.canary is None:
        story.days(1, 0.08)
    assert outbox.waits() and outbox.apply()
    assert aliases(client) == {"stable": BASE, "canary": version} and not outbox.waits()
    while story.facts().board.stable == BASE:
        story.days(1, 0.08)
    outbox.apply()
    assert aliases(client) == {"stable": version}
    assert states(client) == [(BASE, "BASE"), (version, "PROMOTED")]
    assert EffectsDone(story.journal.engine).of(f"mlflow/{TASK}") > 0


def test_a_version_points_at_the_logged_model_of_its_training(story, tracker, client, tmp_path):
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(b"weights")
    version = story.version(1)
    run = tracker.record_update(TASK, version, {}, {"epsilon": 0.5}, curves={}, files=[file])
    Outbox(story.journal, TASK, tracker.show_releases).apply()
    (found,) = [one for one in client.search_model_versions(f"name = '{TASK}'") if one.tags[VERSION_TAG] == version]
    assert found.run_id == run and found.source.startswith("file:") and "m-" in found.source
    (base,) = [one for one in client.search_model_versions(f"name = '{TASK}'") if one.tags[VERSION_TAG] == BASE]
    assert base.source == f"headgate://{TASK}/{BASE}"


def test_killed_anywhere_in_an_effect_it_is_done_again_with_the_same_result(story, tracker, client):
    story.days(2)
    story.version(1)
    while story.facts().board.canary is None:
        story.days(1, 0.08)

    class Killed(BaseException):
        pass

    class Dying:
        """The n-th writing call is the last of the process: before it, or after it."""

        def __init__(self, left: int) -> None:
            self.left = left

        def __getattr__(self, name):
            real = getattr(client, name)
            if not name.startswith(("create", "set", "delete")):
                return real

            def call(*args, **kwargs):
                self.left -= 1
                if self.left == 0:
                    raise Killed
                done = real(*args, **kwargs)
                self.left -= 1
                if self.left == 0:
                    raise Killed
                return done

            return call

    from monitoring.registry import project

    deaths = 0
    for moment in (1, *[2] * 20):  # before the first write, then after each one
        dying = Outbox(story.journal, TASK, lambda task, wanted, n=moment: project(Dying(n), task, wanted))
        try:
            dying.apply()
            break
        except Killed:
            deaths += 1
            assert EffectsDone(story.journal.engine).of(f"mlflow/{TASK}") == 0, "the mark comes last"
    assert deaths == 6
    board = story.facts().board
    assert aliases(client) == {"stable": BASE, "canary": board.canary.version}
    assert states(client) == [(BASE, "BASE"), (board.canary.version, "CANARY")], "nothing twice"
    assert Outbox(story.journal, TASK, tracker.show_releases).apply() == []


def test_an_alias_that_somebody_moved_is_moved_back_and_it_is_said(story, tracker, client, caplog):
    version = story.version(1)
    Outbox(story.journal, TASK, tracker.show_releases).apply()
    client.set_registered_model_alias(TASK, "stable", "2")
    client.set_registered_model_alias(TASK, "champion", "2")  # somebody's own: not ours to touch
    caplog.set_level(logging.WARNING)
    changes = Outbox(story.journal, TASK, tracker.show_releases).apply()
    assert changes == [f"alias stable is {BASE} (version 1), was version 2"]
    assert "changed by somebody else and is changed back: alias stable" in caplog.text
    assert aliases(client) == {"stable": BASE, "champion": version}


def test_mlflow_away_is_asked_again_and_the_newest_picture_is_what_it_gets(story, monkeypatch, caplog):
    monkeypatch.setattr(effects, "POLL", timedelta(seconds=0.02))
    monkeypatch.setattr(effects, "LONGEST_POLL", timedelta(seconds=0.1))
    away, shown = threading.Event(), list[Releases]()
    away.set()

    def show(task: str, wanted: Releases) -> list[str]:
        if away.is_set():
            raise ConnectionError("nobody listens")
        shown.append(wanted)
        return []

    outbox, stop = Outbox(story.journal, TASK, show), threading.Event()
    thread = threading.Thread(target=deliver, args=(outbox, stop))
    thread.start()
    try:
        time.sleep(0.3)
        version = story.version(1)
        board = story.facts().board
        said = {"actor": "ana", "reason": "drill"}
        story.decide(release_verbs.abort(board, version, story.clock, **said))
        away.clear()
        wait_until(lambda: shown)
    finally:
        stop.set()
        thread.join()
    assert shown[-1] == releases_of(story.facts().board) and shown[-1].states[version] == "REJECTED"
    assert caplog.text.count("aliases wait, decisions do not") == 1 and "answers again" in caplog.text


def test_a_mark_is_never_lowered_and_each_effect_has_its_own(journal):
    done, now = EffectsDone(journal.engine), datetime.now(UTC)
    assert done.of("mlflow/a") == 0
    done.raise_to("mlflow/a", 7, now)
    done.raise_to("mlflow/a", 5, now)
    assert (done.of("mlflow/a"), done.of("mlflow/b")) == (7, 0)

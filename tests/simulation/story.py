"""The demo's 84 windows again and again, with fresh noise each time: is the honest version promoted, the bad one stopped?

    python -m tests.simulation.story --runs 20 --folder var/story

The stream is sealed and joined once (embedded log); every run starts from a copy of that journal and goes through the same
steps as production from evidence to version. Without a gateway there are no requests, so the canary's traffic conditions
are off; everything else is the demo's policy. Prints one line a run and the table of docs/story.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from assets.base import train_and_register
from assets.steps import STEPS
from assets.stream.embedded import EmbeddedLog
from assets.windows.clock import windows_between
from assets.workspace import Workspace
from pipelines.demo.policy import demo_settings
from pipelines.demo.replay import Replayer
from pipelines.demo.replay import Topics as ReplayTopics
from pipelines.demo.story import Story
from pipelines.opening import workspace_of
from security.journal import Draft, Journal, stamp, unstamp
from security.keys import make_keys

STORY = Story()
RELEASE = [(name, step) for name, step in STEPS if name in ("evidence", "rollout", "adapter", "version")]
BAD_UPDATE = 7  # covers the week whose labels have the wrong sign


@dataclass(frozen=True)
class Outcome:
    """Days count from 1; None: did not happen."""

    promoted: str | None
    promoted_day: int | None
    stopped_day: int | None
    stopped_by: str
    withdrawn: int
    seconds: float

    @property
    def good(self) -> bool:
        return self.promoted_day is not None and self.stopped_day is not None


def prepare(folder: Path) -> None:
    """Seal and join the 84 windows once, and register the base."""
    settings = demo_settings(folder, bootstrap_servers="embedded", tracking=False, min_requests=0)
    make_keys(folder / "keys")
    log = EmbeddedLog(folder / "log.db")
    topics = ReplayTopics(settings.stream.events, settings.stream.labels, settings.stream.partitions)
    replayer = Replayer(
        log, topics, start=STORY.start, end=STORY.end, wrong_labels=STORY.wrong_labels, cache=folder / "cache"
    )
    log.create_topic(settings.stream.predictions, settings.stream.partitions, timestamp_type="CreateTime", retention_ms=-1)
    replayer.publish_until(STORY.end)
    journal = Journal(settings.journal.url)
    workspace = workspace_of(settings, journal, log)
    train_and_register(workspace)
    ended = Draft(f"window/{workspace.task.name}", "stream.ended", {"at": stamp(STORY.end)})
    journal.append(ended, actor="story", at=workspace.now())
    for window in windows(workspace):
        for _, step in STEPS[:2]:
            step(window, workspace)
    journal.close()
    log.close()


def windows(workspace: Workspace) -> list[str]:
    starts = STORY.windows
    return windows_between(workspace.policies.window, *(f"{day:%Y-%m-%dT%H:%MZ}" for day in (starts[0], starts[-1])))


def play(folder: Path, run: Path) -> Outcome:
    """One run on a copy of the prepared journal."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    shutil.copy(folder / "journal.db", run / "journal.db")
    shutil.copytree(folder / "store", run / "store")
    settings = demo_settings(run, bootstrap_servers="embedded", tracking=False, min_requests=0)
    settings = dataclasses.replace(settings, keys=dataclasses.replace(settings.keys, directory=str(folder / "keys")))
    log, journal = EmbeddedLog(folder / "log.db"), Journal(settings.journal.url)
    workspace = workspace_of(settings, journal, log)
    started = time.process_time()
    for window in windows(workspace):
        for _, step in RELEASE:
            step(window, workspace)
    outcome = read(workspace, time.process_time() - started)
    journal.close()
    log.close()
    return outcome


def read(workspace: Workspace, seconds: float) -> Outcome:
    """What happened, from the journal."""
    promoted = stopped = None
    bad = next(v for v, body in workspace.lineage().versions.items() if body["number"] == BAD_UPDATE)
    withdrawn = 0
    for entry in workspace.journal.read(f"rollout/{workspace.task.name}"):
        body = entry.body
        withdrawn += entry.kind == "rollout.withdrawn"
        if "to" not in body:
            continue
        day = (unstamp(body["clock"]) - STORY.start).days
        if body["to"] == "PROMOTED" and promoted is None:
            promoted = (body["version"], day)
        if body["version"] == bad and body["to"] in ("REJECTED", "ROLLING_BACK"):
            stopped = (day, body["reason"])
    return Outcome(
        *(promoted or (None, None)), *(stopped or (None, "not stopped")), withdrawn=withdrawn, seconds=seconds
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("var/story"))
    asked = parser.parse_args()
    if not (asked.folder / "journal.db").exists():
        prepare(asked.folder)
    outcomes = []
    for number in range(asked.runs):
        outcomes.append(play(asked.folder, asked.folder / "run"))
        print(number + 1, outcomes[-1], flush=True)
    good = sum(outcome.good for outcome in outcomes)
    print(f"honest version promoted and bad one stopped: {good} of {len(outcomes)}")


if __name__ == "__main__":
    main()

"""What Dagster costs for one scheduled window, beyond the window's own work. Goal: 4 CPU s.

Two equal installations get the same windows. In one, each window is a run of Dagster in a fresh process, as the daemon
starts it; in the other it is `headgate run-window`. The sides take turns in going first. `figure` is the median
difference; `peer_figure` is the median of the window's own work.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import cpu_seconds, result, show
from tests.worlds import World, make_world

DAYS = 6  # windows 2, 4 and 6 train an update and make a version


def through_dagster(world: World, window: str) -> float:
    home = world.folder / "dagster"
    home.mkdir(exist_ok=True)
    environ = {"HEADGATE_CONFIG": str(world.folder / "headgate.toml"), "DAGSTER_HOME": str(home)}
    tags = json.dumps({"dagster/partition": window})
    job = ["job", "execute", "-m", "pipelines.definitions", "-j", "window_job", "--tags", tags]
    return cpu_seconds([sys.executable, "-m", "dagster", *job], world.folder, environ)


def directly(world: World, window: str) -> float:
    return cpu_seconds([sys.executable, "-m", "pipelines.cli", "run-window", window], world.folder, {})


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        worlds = [make_world(Path(folder) / name) for name in ("dagster", "own")]
        for world in worlds:
            world.publish(DAYS)
        sides = (through_dagster, directly)
        spent: dict[str, list[float]] = {side.__name__: [] for side in sides}
        for day in range(DAYS):
            window = worlds[0].window(day)
            for side, world in sorted(zip(sides, worlds, strict=True), key=lambda pair: pair[0] is sides[day % 2]):
                spent[side.__name__].append(side(world, window))
            last = {name: round(seconds[-1], 2) for name, seconds in spent.items()}
            print(f"{window}  CPU s {last}", file=sys.stderr)
        for world in worlds:
            check_complete(world)
    own = spent["directly"]
    extra = [run - alone for run, alone in zip(spent["through_dagster"], own, strict=True)]
    show(result("window", "CPU s of Dagster a window", extra, "the window's own CPU s (headgate run-window)", own, ["dagster"]))


def check_complete(world: World) -> None:
    """A run that did nothing would be cheap: every window must be finished, and versions made."""
    finished = [entry for entry in world.journal.read("window/blobs") if entry.kind == "window.finished"]
    versions = [entry for entry in world.journal.read("lineage/blobs") if entry.kind == "version.registered"]
    if (len(finished), len(versions)) != (DAYS, DAYS // 2):
        sys.exit(f"{world.folder.name}: {len(finished)} of {DAYS} windows finished, {len(versions)} versions made")
    world.journal.close()
    world.log.close()


if __name__ == "__main__":
    main()

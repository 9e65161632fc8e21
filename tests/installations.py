"""A small installation and a command line to type at it."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.run_window import run_window
from tests.worlds import make_world

DAYS = 4  # an update every two days: two versions, the second trained from the first


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def headgate(capsys, monkeypatch):
    """Type a command into the current folder; it runs in this process, through the console script's own door."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    level = logging.getLogger("kafka").level

    def type_in(*words: str) -> Answer:
        with pytest.raises(SystemExit) as left:
            main(words)
        return Answer(int(left.value.code or 0), *capsys.readouterr())

    yield type_in
    logging.getLogger("kafka").setLevel(level)
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An installation with seven days on its stream, of which four were run."""
    world = make_world(tmp_path_factory.mktemp("cli") / "world")
    world.publish(7)
    for day in range(DAYS):
        run_window(world.window(day), world.workspace)
    world.journal.close()
    world.log.close()
    return world.folder


@pytest.fixture
def installed(template, tmp_path, monkeypatch):
    """A copy of it, as the current folder."""
    folder = tmp_path / "installed"
    shutil.copytree(template, folder)
    settings = folder / "headgate.toml"
    settings.write_text(settings.read_text().replace(str(template), str(folder)))
    monkeypatch.chdir(folder)
    return folder

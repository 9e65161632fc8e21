"""The documentation cannot name what does not exist: commands, files, links, anchors."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from monitoring.alarms import KINDS
from pipelines.cli import COMMANDS, cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("infra/decisions/*.md")])
ROOMS = ("pipelines", "assets", "monitoring", "models", "security")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def mentioned_commands(text: str) -> set[tuple[str, ...]]:
    found = re.findall(r"headgate (?:--config \S+ )?([a-z][a-z-]+)(?: ([a-z|-]+))?", text)
    return {(first, *(second.split("|") if second else ())) for first, second in found}


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_files_in_code_type_exist(page):
    for name in re.findall(r"`((?:pipelines|assets|monitoring|models|security|tests|infra|docs)/[\w/.-]*)`", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=names)
def test_commands_in_code_type_exist(path):
    context = click.Context(cli)
    for quoted in re.findall(r"`(headgate [^`]+)`", path.read_text()):
        for first, *rest in mentioned_commands(quoted):
            assert first in COMMANDS, quoted
            group = cli.get_command(context, first)
            if isinstance(group, click.Group):
                assert all(name in group.commands for name in rest), quoted


def test_every_anchor_of_an_alarm_is_a_heading():
    text = (ROOT / "docs/alarms.md").read_text()
    headings = {heading.strip().lower().replace(" ", "-").replace("_", "-") for heading in re.findall(r"^#+ (.+)$", text, re.M)}
    for kind in KINDS.values():
        assert kind.docs.split("#")[1] in headings, kind.docs
    for path in SOURCES:
        for anchor in re.findall(r"docs/alarms\.md#([a-z-]+)", path.read_text()):
            assert anchor in headings, (path, anchor)

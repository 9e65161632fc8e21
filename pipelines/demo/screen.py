"""What the demo shows while it runs: a progress bar and the decisions on stderr, the table on stdout at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from assets.workspace import Workspace
from pipelines.demo.retraining import Retraining
from pipelines.run_window import WindowResult

COLUMNS = ("day", "window", "examples", "frozen", "served", "candidate", "retrained", "epsilon", "evidence", "decision")
WIDTH = 132  # of a table that goes to a file
ROW_EVERY = 7  # the table shows a line a week, and every day on which something was decided


class Screen:
    """A terminal, or a file when nobody is watching."""

    def __init__(self) -> None:
        self.notes = Console(stderr=True)
        self.answer = Console(width=None if Console().is_terminal else WIDTH)

    def say(self, text: str) -> None:
        """One line for the person who waits."""
        self.notes.print(text, highlight=False, markup=False)

    def progress(self, windows: Sequence[str]) -> Iterator[str]:
        """The windows, with a bar."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.notes, transient=True) as bar:
            task = bar.add_task("flights", total=len(windows))
            for window in windows:
                bar.update(task, description=window[:10])
                yield window
                bar.advance(task)

    def decisions(self, window: str, result: WindowResult) -> None:
        """What the release rules decided on this window."""
        for sentence in result.steps["rollout"].get("decisions", ()):
            self.say(f"{window[:10]}  {sentence}")

    def table(self, workspace: Workspace, retraining: Retraining, windows: Sequence[str]) -> None:
        """By window: examples, losses, evidence of the leading version, decisions."""
        table = Table(title="By window (log loss in nats; a line a week and each decision)", title_justify="left")
        for name in COLUMNS:
            table.add_column(name, justify="left" if name in ("window", "decision") else "right")
        decided = _decided(workspace)
        for day, window in enumerate(windows, 1):
            if day % ROW_EVERY and window not in decided:
                continue
            body: Any = workspace.body("evidence.scored", window)
            versions, losses = workspace.lineage().versions, body["losses"]
            base = workspace.lineage().registered_base()["version"]
            made = [v for v in versions.values() if v["clock"] <= body["end"]]
            table.add_row(
                str(day), window[:10], str(body["examples"]), _figure(losses.get(base)), _figure(losses.get(body["stable"])),
                _figure(next((losses[v] for v in losses if v not in (base, body["stable"])), None)),
                _figure(retraining.losses.get(window)), _figure(made[-1]["privacy"]["epsilon"]) if made else "-",
                decided.get(window, ("-", ""))[0], decided.get(window, ("", ""))[1],
            )  # fmt: skip
        self.answer.print(table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _decided(workspace: Workspace) -> dict[str, tuple[str, str]]:
    """Window -> (evidence figure, what was decided) for moves that people care about."""
    found: dict[str, tuple[str, str]] = {}
    shown = ("CANARY", "PROMOTED", "REJECTED", "ROLLING_BACK", "EXPIRED")
    ends = {workspace.body("evidence.scored", w)["end"]: w for w in workspace.history.windows("evidence.scored")}  # type: ignore[index]
    for entry in workspace.journal.read(f"rollout/{workspace.task.name}"):
        body = entry.body
        if body.get("to") in shown and body["clock"] in ends:
            harm = body["to"] in ("REJECTED", "ROLLING_BACK")
            figure = body["figures"]["harm_e" if harm else "promote_e"]
            share = f" {body['weight']:.0%}" if body["to"] == "CANARY" else ""
            words = f"{body['version'][:7]} {body['to']}{share}"
            found[ends[body["clock"]]] = (f"{'harm ' if harm else ''}{figure:.1f}", words)
    return found

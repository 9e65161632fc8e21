"""`headgate rollout rank`: versions without traffic, ordered by a log of decisions; it reads and writes nothing."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.release import enqueue, found, step_board
from models.release_board import Board, fold_all
from models.release_policy import RolloutPolicy
from pipelines.cli import main
from security.journal import Draft, Journal

START = datetime(2026, 1, 1, tzinfo=UTC)
BASE, FIRST, SECOND = "base-1", "v000001-00000001", "v000002-00000002"
ROWS = 1000


@pytest.fixture
def rank(tmp_path, capsys):
    """Type the command for a log of these columns: exit code, what it said, and its complaint. Two versions are in shadow."""
    journal = Journal(f"sqlite:///{tmp_path / 'journal.db'}")
    board, parent, decisions = Board(), BASE, found(BASE, START)
    for number, version in enumerate((FIRST, SECOND), 1):
        board = fold_all(Board(), decisions)
        decisions += enqueue(board, version, number, parent, START)
        parent = version
    decisions += step_board(fold_all(Board(), decisions), {}, RolloutPolicy(), START + timedelta(days=1))
    journal.append_all([Draft(f"{d.room}/blobs", d.kind, d.body) for d in decisions], actor="test", at=START)
    settings = tmp_path / "headgate.toml"
    settings.write_text(f'task = "tests.worlds:Blobs"\n[journal]\nurl = "sqlite:///{tmp_path / "journal.db"}"\n')

    def type_in(log: dict[str, np.ndarray] | None, *words: str) -> tuple[int, str, str]:
        file = tmp_path / "log.parquet" if log is not None else settings
        if log is not None:
            pq.write_table(pa.table(log), file)
        before = len(list(journal.tail()))
        with pytest.raises(SystemExit) as left:
            main(["--config", str(settings), "rollout", "rank", str(file), *words])
        assert len(list(journal.tail())) == before, "nothing is written"
        return int(left.value.code or 0), *capsys.readouterr()

    yield type_in
    journal.close()


def decisions() -> dict[str, np.ndarray]:
    """Two actions at even odds; the one rewarded in 6 of 10 rather than 3 is what the second version takes more often."""
    action = np.arange(ROWS) % 2
    reward = np.where(np.arange(ROWS) // 2 % 10 < np.where(action, 6, 3), 1.0, 0.0)
    likes = {FIRST: np.where(action, 0.2, 0.8), SECOND: np.where(action, 0.8, 0.2), BASE: np.full(ROWS, 0.5)}
    return {"reward": reward, "propensity": np.full(ROWS, 0.5), **likes}


def test_the_version_that_would_have_earned_most_comes_first_and_stable_is_there_to_compare(rank):
    code, out, _ = rank(decisions(), "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["name"] for row in rows] == [SECOND, BASE, FIRST]
    assert [row["snips"]["value"] for row in rows] == pytest.approx([0.54, 0.45, 0.36])
    assert [row["robust"] for row in rows] == [None] * 3
    _, text, said = rank(decisions())
    assert re.search(rf"^{SECOND}  clipped SNIPS 0.54 \(0\.\d+, 0\.\d+\)  effective sample 735$", text, re.M)
    assert f"{BASE} (stable)  clipped" in text and "no evidence: nothing was written" in said


def test_with_a_reward_model_the_doubly_robust_figure_is_shown(rank):
    log = decisions()
    log |= {"expected": np.where(np.arange(ROWS) % 2, 0.5, 0.2)}
    log |= {f"{SECOND} expected": np.full(ROWS, 0.44), f"{FIRST} expected": np.full(ROWS, 0.26)}
    code, _, said = rank(log)
    assert code == 1 and f"no column '{BASE} expected'" in said
    log[f"{BASE} expected"] = np.full(ROWS, 0.35)
    rows = [json.loads(line) for line in rank(log, "--json")[1].splitlines()]
    assert [row["robust"]["value"] for row in rows] == pytest.approx([0.54, 0.45, 0.36])


def test_a_version_the_log_cannot_judge_gets_a_reason_instead_of_a_figure(rank):
    log = {name: values[:250] for name, values in decisions().items() if name != SECOND}
    code, out, _ = rank(log)
    assert code == 0 and out.splitlines()[0].startswith(f"{BASE} (stable)  clipped SNIPS")
    lines = rf"^{FIRST}  no figure: effective sample 184 of 250 rows < 200.*\n{SECOND}  no figure: .*no column"
    assert re.search(lines, out, re.M)


def test_a_log_without_what_it_takes_is_refused_in_a_sentence(rank):
    log = decisions()
    unlogged = np.where(np.arange(ROWS) == 7, np.nan, log["propensity"])
    for columns, complaint in (
        ({"reward": log["reward"], FIRST: log[FIRST]}, "log.parquet: the log has no column 'propensity'"),
        ({"reward": log["reward"], BASE: log[BASE]}, f"none of the versions that wait: {FIRST}, {SECOND}"),
        (log | {"propensity": unlogged}, "propensity of row 7 is nan, above 0 and at most 1 wanted"),
        (None, "Error: .*headgate.toml: "),
    ):
        code, out, said = rank(columns)
        assert (code, out) == (1, "") and re.search(complaint, said), said

"""Decisions derived again: an honest journal follows from its evidence, and an edited one is caught with its chain intact."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models import release_verbs
from monitoring.rollout_audit import Audit, audit
from monitoring.verdict import judge
from pipelines.cli import main
from security.journal import GENESIS, Journal, _entry_hash, canonical
from tests.dashboards import POLICY, TASK, Story
from tests.worlds import Blobs

STREAMS = [f"{room}/{TASK}" for room in ("rollout", "routing", "lineage", "window")]
WHO = {"actor": "ana", "reason": "release drill"}


class Parcels(Blobs):
    name = TASK


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    """A good version promoted with a pause on its way; a bad one convicted with its child; one that a person aborts."""
    file = tmp_path_factory.mktemp("verify") / "journal.db"
    story = Story(Journal(f"sqlite:///{file}"))
    story.days(2)
    first = story.version(1)
    story.days(9, 0.08)
    story.decide(release_verbs.pause(story.facts().board, first, story.clock, **WHO))
    story.days(2, 0.08)
    story.decide(release_verbs.resume(story.facts().board, first, story.clock, **WHO))
    story.days(8, 0.08, served=True)
    second = story.version(2, first)
    story.days(2, -0.09)
    story.version(3, second)
    story.days(12, -0.09)
    fourth = story.version(4, first)
    story.days(1, 0.01)
    story.decide(release_verbs.abort(story.facts().board, fourth, story.clock, **WHO))
    states = {version: one.state.value for version, one in story.facts().board.rollouts.items()}
    assert list(states.values()) == ["PROMOTED", "REJECTED", "WITHDRAWN", "REJECTED"]
    story.journal.close()
    return file


def audited(file: Path, policy=POLICY) -> Audit:
    journal = Journal(f"sqlite:///{file}")
    found = audit(journal.tail(streams=STREAMS), policy)
    assert journal.verify().faults == (), "the attacker has computed the chain anew"
    journal.close()
    return found


def tampered(honest: Path, folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    """A copy whose rows somebody with the database's password has changed, hashes and head included."""
    file = folder / "journal.db"
    source, copy = sqlite3.connect(honest), sqlite3.connect(file)
    source.backup(copy)
    source.close()
    copy.row_factory = sqlite3.Row
    rows = [dict(row) | {"body": json.loads(row["body"])} for row in copy.execute("SELECT * FROM journal ORDER BY seq")]
    change(rows)
    prev, lengths = GENESIS, dict[str, int]()
    for seq, row in enumerate(rows, 1):
        lengths[row["stream"]] = lengths.get(row["stream"], 0) + 1
        row |= {"seq": seq, "stream_seq": lengths[row["stream"]], "body": canonical(row["body"]), "prev_hash": prev}
        row["hash"] = prev = _entry_hash(row)
    for name in ("no_update", "no_delete", "in_order"):
        copy.execute(f"DROP TRIGGER journal_{name}")
    copy.execute("DELETE FROM journal")
    names = list(rows[0])
    marks = ", ".join("?" * len(names))
    copy.executemany(f"INSERT INTO journal ({', '.join(names)}) VALUES ({marks})", [tuple(r.values()) for r in rows])
    copy.execute("UPDATE journal_head SET seq = ?, hash = ?", (len(rows), prev))
    copy.commit()
    copy.close()
    return file


def first(rows: list[dict[str, Any]], kind: str, **wanted: Any) -> dict[str, Any]:
    return next(r for r in rows if r["kind"] == kind and all(r["body"].get(k) == v for k, v in wanted.items()))


def test_every_decision_of_an_honest_journal_follows_from_the_entries_before_it(honest) -> None:
    found = audited(honest)
    assert found.faults == {} and len(found.entries) == 4 and found.looks > 35


@pytest.mark.parametrize("seed", range(3))
def test_no_honest_history_is_accused_whatever_happens_in_it(tmp_path, seed) -> None:
    rng = random.Random(seed)
    story, number, parent = Story(Journal(f"sqlite:///{tmp_path}/journal.db")), 0, "base-0011aabb"
    for _ in range(60):
        story.days(1, rng.gauss(0.03, 0.06), served=rng.random() < 0.5)
        live = [one.version for one in story.facts().board.rollouts.values() if one.live]
        if rng.random() < 0.2:
            number += 1
            parent = story.version(number, story.facts().board.head or parent)
        elif live and rng.random() < 0.3:
            board, version = story.facts().board, rng.choice(live)
            verb = rng.choice(["pause", "resume", "approve", "abort", "promote", "full"])
            try:
                if verb in ("promote", "full"):
                    known = judge(
                        board.rollouts[version], story.facts().evidence, POLICY, story.clock, acknowledged=True, prepared=None
                    )
                    said = release_verbs.promote(board, version, known, POLICY, story.clock, full=verb == "full", **WHO)
                else:
                    said = getattr(release_verbs, verb)(board, version, story.clock, **WHO)
            except release_verbs.VerbRefused:
                continue
            story.decide(said)
    story.journal.close()
    assert audited(tmp_path / "journal.db").faults == {}


def better(rows):  # block sums of the convicted version, as if it had been good, with their squares
    for row in rows:
        for pair in row["body"].get("pairs", ()):
            if pair["candidate"].startswith("v000002"):
                pair["blocks"] = [[k, n, abs(total), squares, bad] for k, n, total, squares, bad in pair["blocks"]]


def one_block(rows):  # a single sum, a thousandth part of it
    scored = [r for r in rows if r["kind"] == "evidence.scored" and r["body"]["pairs"]]
    scored[2]["body"]["pairs"][0]["blocks"][0][2] *= 0.999


def figure(rows):
    first(rows, "rollout.advanced", to="CANARY")["body"]["figures"]["promote_e"] *= 1.000001


def earlier_step(rows):
    row = first(rows, "rollout.advanced", to="CANARY")
    row["body"]["after"]["weight"] = row["body"]["weight"] = 0.5


def whom(rows):
    first(rows, "rollout.paused")["body"]["after"]["weight"] = 0.9


def more_traffic(rows):
    first(rows, "routing.set", weight=0.1)["body"]["weight"] = 0.3


def stray_routing(rows):
    row = first(rows, "routing.set", weight=0.1)
    body = {**row["body"], "canary": None, "weight": 0.0, "epoch": 99}
    rows.append({**row, "body": body, "at": "2026-05-02T00:00:00.000000Z"})


def without_conviction(rows):
    bad = first(rows, "rollout.advanced", to="REJECTED")
    rows.remove(bad)


def without_evidence(rows):
    rows.remove([r for r in rows if r["kind"] == "evidence.scored"][5])


def evidence_of_a_day_nobody_was_tested(rows):
    rows.remove(first(rows, "evidence.scored", pairs=[]))


def unread(rows):  # a count no later decision reads: it contradicts the size of its own window
    newest = [r for r in rows if r["kind"] == "evidence.scored" and r["body"]["pairs"]][-1]
    newest["body"]["pairs"][0]["blocks"][0][1] += 10


def unread_square(rows):
    newest = [r for r in rows if r["kind"] == "evidence.scored" and r["body"]["pairs"]][-1]
    newest["body"]["pairs"][0]["blocks"][0][3] = 0.0


def without_after(rows):
    del first(rows, "rollout.advanced", to="CANARY")["body"]["after"]


TRICKS = [
    better, one_block, figure, earlier_step, whom, more_traffic, stray_routing, without_conviction, without_evidence,
    without_after, evidence_of_a_day_nobody_was_tested, unread, unread_square,
]


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_an_edited_entry_is_caught_although_the_chain_of_hashes_is_whole(honest, tmp_path, trick) -> None:
    found = audited(tampered(honest, tmp_path, trick))
    assert not found.sound
    assert all(fault.seq > 0 and fault.text for fault in found.faults.values())


def test_a_fault_names_the_first_entry_that_does_not_follow_and_both_figures(honest, tmp_path) -> None:
    found = audited(tampered(honest, tmp_path, figure))
    fault = found.faults["v000001-00000001"]
    journal = Journal(f"sqlite:///{tmp_path / 'journal.db'}")
    entry = journal.tail(after=fault.seq - 1, limit=1)[0]
    assert entry.kind == "rollout.advanced" and entry.body["to"] == "CANARY"
    assert "figures.promote_e" in fault.text and ", derived " in fault.text
    assert set(found.faults) == {"v000001-00000001"}, "what comes after is derived on the journal as it stands"


def test_copying_a_journal_row_by_row_is_no_fault(honest, tmp_path) -> None:
    assert audited(tampered(honest, tmp_path, lambda rows: None)).sound


def test_a_policy_changed_since_explains_the_journal_as_it_was_decided(honest) -> None:
    found = audited(honest, replace(POLICY, alpha=0.2))
    assert found.sound and list(found.policies.values()) == [POLICY]


def test_another_policy_in_the_journal_does_not_explain_its_decisions(honest, tmp_path) -> None:
    def laxer(rows: list[dict[str, Any]]) -> None:
        row = next(row for row in rows if row["kind"] == "policy.set")
        policy = replace(POLICY, alpha=0.2)
        row["body"] |= {"policy": policy.to_body(), "digest": policy.digest}

    assert not audited(tampered(honest, tmp_path, laxer)).sound


def test_the_command_prints_ok_for_each_rollout_and_leaves_with_1_at_a_fault(honest, tmp_path, capsys, monkeypatch) -> None:
    for file, code, word in ((honest, 0, "ok     v000001"), (tampered(honest, tmp_path, figure), 1, "FAULT  v000001")):
        settings = tmp_path / "headgate.toml"
        settings.write_text(
            f'task = "tests.test_rollout_verify:Parcels"\n[journal]\nurl = "sqlite:///{file}"\n[window]\nevery = "1d"\n'
            'start = 2026-03-02T00:00:00Z\nclock = "stream"\n[rollout]\nsteps = ["shadow", 10, 50, 100]\n'
            'min_requests = 0\nmin_hold = "1d"\nbake = "1d"\nshadow_slots = 2\n'
        )
        for words in ([], ["--json"]):
            with pytest.raises(SystemExit) as left:
                main(["--config", str(settings), "rollout", "verify", *words])
            said = capsys.readouterr().out
            assert left.value.code == code
            assert word in said if not words else [r["ok"] for r in json.loads(said)["rollouts"]].count(False) == code

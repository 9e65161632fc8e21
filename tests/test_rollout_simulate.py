"""A rehearsal decides as the gate does, on noise that hangs together as the history does."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from models.release_policy import RolloutPolicy
from monitoring.block_history import BlockHistory
from monitoring.gate_rehearsal import noise, play, rehearse
from monitoring.sequential import bet
from pipelines.cli import main
from security.journal import Journal
from tests.dashboards import Story
from tests.simulation.release_runs import Stream

DAY = timedelta(days=1)
POLICY = RolloutPolicy(steps=("shadow", 10, 50, 100), min_requests=0, min_hold=2 * DAY, bake=2 * DAY)


def history(rho: float = 0.0, blocks: int = 1000, sd: float = 0.03) -> BlockHistory:
    rng = np.random.default_rng(2)
    x = np.zeros(blocks)
    for k in range(1, blocks):
        x[k] = rho * x[k - 1] + sd * (1 - rho**2) ** 0.5 * rng.standard_normal()
    return BlockHistory(means=(0.01,), residuals=(x,), examples=900.0, requests=100.0)


@pytest.mark.parametrize("gain", [0.08, 0.05, 0.032, 0.0, -0.05])
def test_a_rehearsed_rollout_ends_as_the_board_ends_it_and_on_the_same_day(gain) -> None:
    for seed in range(4):
        days = gain + 0.03 * np.random.default_rng(seed).standard_normal(70)
        stream = Stream(POLICY)
        stream.add("v1", 1, "base-1")
        for gained in days[:60].tolist():
            stream.pass_day(lambda _, __, gained=gained: gained)
        ends = {
            "promoted": ("PROMOTED",), "rolled back": ("REJECTED", "ROLLING_BACK"), "expired": ("EXPIRED", "ROLLING_BACK"),
        }
        end, spent = play(POLICY, DAY, days, None)
        assert stream.first("v1", *ends[end]) == spent
        if end == "promoted":
            assert stream.first("v1", "ROLLING_BACK", "REJECTED", "EXPIRED") is None


def test_skipping_idle_looks_changes_no_decision() -> None:
    hourly = replace(POLICY, min_hold=timedelta(hours=3), bake=timedelta(hours=5))
    end, spent = play(hourly, timedelta(hours=1), np.full(60, 0.06), None)
    blocks = next(n for n in range(7, 28) if bet([0.6] * n).e_value >= POLICY.promote_threshold)
    # two steps of 3 h, then at 100 % one look until it bakes, and 5 h of that
    assert (end, spent) == ("promoted", blocks + (3 + 3 + 1 + 5) / 24)


def test_the_bootstrap_keeps_the_spread_and_the_serial_dependence_of_the_history() -> None:
    rng = np.random.default_rng(7)
    for rho, low, high in ((0.0, -0.06, 0.06), (0.6, 0.45, 0.65)):  # pieces of 10 blocks keep nine tenths of it
        drawn = noise(rng, history(rho), POLICY, 5000)
        assert drawn.std() == pytest.approx(0.03, rel=0.15)
        assert low < float(drawn[:-1] @ drawn[1:] / (drawn @ drawn)) < high


def test_better_versions_are_promoted_worse_ones_stopped_and_equal_ones_hardly_ever_promoted() -> None:
    # equal: at most alpha / slots = 1.7 %; of 150 runs more than 9 would be promoted once in 2,000 tests at that rate
    found = {gain: rehearse(POLICY, DAY, history(), gain, runs=150, seed=1) for gain in (0.06, 0.0, -0.06)}
    assert found[0.06].share("promoted") > 0.95 and found[-0.06].share("rolled back") > 0.95
    assert found[0.0].share("promoted") <= 9 / 150
    assert found[0.06].quantile("promoted", 0.5) <= found[0.06].quantile("promoted", 0.9) <= 40
    for one in found.values():
        assert sum(one.share(end) for end in one.days) == pytest.approx(1.0)


def test_the_same_seed_gives_the_same_answer_and_another_one_does_not() -> None:
    first, again, other = (rehearse(POLICY, DAY, history(), 0.03, runs=20, seed=seed).days for seed in (4, 4, 5))
    assert all(np.array_equal(first[end], again[end]) for end in first)
    assert not all(np.array_equal(first[end], other[end]) for end in first)


def test_the_command_answers_from_the_journal_and_without_one(tmp_path: Path, capsys) -> None:
    story = Story(Journal(f"sqlite:///{tmp_path}/journal.db"))
    story.days(1)
    story.version(1)
    for gain in (0.04, 0.06, 0.02, 0.05, 0.09, -0.01, 0.03):
        story.days(1, gain)
    story.journal.close()
    for name, blocks in (("journal", 7), ("none", 0)):
        settings = tmp_path / "headgate.toml"
        settings.write_text(
            f'task = "tests.test_rollout_verify:Parcels"\n[journal]\nurl = "sqlite:///{tmp_path}/{name}.db"\n'
            '[window]\nevery = "1d"\nstart = 2026-03-02T00:00:00Z\nclock = "stream"\n'
        )
        said = []
        for words in ([], ["--json"]):
            with pytest.raises(SystemExit) as left:
                main(["--config", str(settings), "rollout", "simulate", "--effect", "0.09", "--runs", "5", *words])
            assert left.value.code == 0
            said.append(capsys.readouterr().out)
        found = json.loads(said[1])
        assert found["blocks"] == blocks and ("assumed" in said[0]) == (not blocks)
        assert set(found["effects"]) == ({"equal", "observed", "given"} if blocks else {"equal", "given"})
        assert found["effects"]["given"]["promoted"]["share"] == 1.0


def test_where_outcomes_decide_a_better_version_is_promoted_and_a_worse_one_goes() -> None:
    policy = RolloutPolicy(strategy="ab", min_requests=0)
    history = BlockHistory(outcomes=2000.0, cost=0.3)
    ends = {gain: rehearse(policy, DAY, history, gain, runs=60, seed=3) for gain in (0.03, 0.0, -0.05)}
    assert ends[0.03].share("promoted") > 0.9 and (ends[0.03].quantile("promoted", 0.0) or 0.0) > 14
    assert ends[0.0].share("promoted") <= 0.1  # alpha / 3 and 60 runs: 6 or more in one of 4,000 such tests
    assert ends[-0.05].share("rolled back") > 0.9

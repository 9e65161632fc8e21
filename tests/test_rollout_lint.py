"""A policy that cannot decide is refused before anything waits four weeks for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from models.release_policy import RolloutPolicy
from models.retention import size_told
from monitoring.block_history import BlockHistory, block_history
from monitoring.evidence import BlockSum, Evidence, milliseconds, score
from monitoring.gate_power import Circumstances, Level, check, first_pass, least_effect, least_gain
from monitoring.outcome import bets
from monitoring.sequential import bet
from pipelines.cli import main

DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = RolloutPolicy(steps=("shadow", 10, 50, 100))
BARE = Circumstances(DAY, 52.0, "assumed")


def seen(days: np.ndarray, examples: int = 900, requests: float = 500.0) -> Circumstances:
    """Circumstances with one pair of these block means."""
    starts = [milliseconds(START + k * DAY) for k in range(len(days))]
    sums = {
        block: BlockSum(block, examples, examples * float(mean), examples * 0.01)
        for block, mean in zip(starts, days, strict=True)
    }
    evidence = Evidence(processed=START + len(days) * DAY, pairs={("v1", "base"): sums})
    return replace(BARE, history=replace(block_history(evidence, DAY), requests=requests))


def normal(n: int = 60, sd: float = 0.03, mean: float = 0.05) -> np.ndarray:
    return mean + sd * np.random.default_rng(5).standard_normal(n)


def levels(policy: RolloutPolicy, around: Circumstances = BARE) -> dict[str, Level]:
    return {one.check: one.level for one in check(policy, around)}


def failed(policy: RolloutPolicy, around: Circumstances = BARE) -> set[str]:
    return {name for name, level in levels(policy, around).items() if level is Level.FAIL}


def test_the_default_policy_can_decide_and_says_what_it_could_not_look_at() -> None:
    found = levels(RolloutPolicy())
    assert Level.FAIL not in found.values()
    assert {name for name, level in found.items() if level is Level.UNSEEN} == {"traffic", "clip", "dependence", "golden"}
    assert Level.UNSEEN not in levels(POLICY, replace(seen(normal()), golden=[(True, False, "large enough")])).values()


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"max_age": 7 * DAY}, "reach"),  # 7 blocks reach 17 at best: with alpha .05 nothing is ever promoted
        ({"max_age": 12 * DAY}, "reach"),
        ({"alpha": 1e-7}, "reach"),
        ({"min_blocks": 29}, "reach"),
        ({"min_hold": 10 * DAY}, "steps"),
        ({"steps": ("shadow", *range(1, 100, 4), 100), "min_hold": DAY}, "steps"),
    ],
)
def test_a_policy_that_no_version_can_pass_fails(change, check) -> None:
    assert failed(replace(POLICY, **change)) == {check}


@pytest.mark.parametrize(
    ("policy", "around", "check"),
    [
        (POLICY, seen(normal(), examples=5), "samples"),  # 200 examples at 5 a day: day 40
        (POLICY, seen(normal(), requests=0.5), "requests"),
        (replace(POLICY, margin=0.02), seen(normal()), "clip"),  # .02 x .1 / .03^2 = 2.2
        (POLICY, replace(seen(normal()), golden=[(size_told("history", 500, 0.995)[0], True, "500 rows")]), "golden"),
    ],
)
def test_what_the_windows_show_makes_a_policy_fail(policy, around, check) -> None:
    assert failed(policy, around) == {check}
    assert failed(POLICY, seen(normal())) == set()


def test_a_margin_that_fits_the_spread_passes_and_one_above_does_not() -> None:
    sd = seen(normal()).history.sd
    edge = 0.5 * sd**2 / POLICY.cap
    assert failed(replace(POLICY, margin=edge * 0.99), seen(normal())) == set()
    assert failed(replace(POLICY, margin=edge * 1.01), seen(normal())) == {"clip"}


def test_nobody_is_failed_for_a_gateway_that_has_not_started_nor_for_models_that_were_too_alike() -> None:
    assert levels(POLICY, seen(normal(), requests=0.0))["requests"] is Level.WARN
    assert levels(POLICY, seen(normal(mean=0.001)))["power"] is Level.WARN
    assert levels(POLICY, seen(normal(mean=0.05)))["power"] is Level.OK


def test_the_least_steady_gain_reaches_the_limit_and_a_smaller_one_does_not() -> None:
    for blocks in (10, 24, 200):
        gain = least_gain(POLICY, blocks)
        assert bet([gain / POLICY.cap] * blocks).e_value >= POLICY.promote_threshold
        assert bet([(gain - 2e-5) / POLICY.cap] * blocks).e_value < POLICY.promote_threshold
    assert least_gain(POLICY, 7) is None and first_pass(replace(POLICY, max_age=7 * DAY)) is None


def clustered(rho_sd: float, days: int = 200, n: int = 300) -> BlockHistory:
    """Paired losses with sd 1 in a day and a shift of sd `rho_sd` common to the day: design effect 1 + n rho_sd^2."""
    rng = np.random.default_rng(11)
    difference = (rng.standard_normal((days, 1)) * rho_sd + rng.standard_normal((days, n))).ravel()
    matured = np.repeat([milliseconds(START + k * DAY) for k in range(days)], n)
    blocks = score(difference, np.zeros(days * n), matured, DAY, milliseconds(START))
    evidence = Evidence(processed=START + days * DAY, pairs={("v1", "base"): {b.block: b for b in blocks}})
    return block_history(evidence, DAY)


def test_the_design_effect_is_that_of_the_data() -> None:
    # 200 days: the F ratio has a relative standard error of sqrt(2 / 199) = 10 %; 35 % are three and a half of them
    assert clustered(0.0).design_effect == pytest.approx(1.0, rel=0.35)
    assert clustered((17 / 300) ** 0.5).design_effect == pytest.approx(18.0, rel=0.35)


def test_the_spread_is_not_shrunk_by_the_mean_that_was_taken_off() -> None:
    days = normal(6)
    assert seen(days).history.sd == pytest.approx(float(np.std(days, ddof=1)))


def walk(rho: float, n: int = 400) -> Iterable[float]:
    rng, x = np.random.default_rng(3), 0.0
    for _ in range(n):
        x = rho * x + 0.03 * rng.standard_normal()
        yield x


def test_blocks_that_hang_together_are_told_apart_from_blocks_that_do_not() -> None:
    # the correlation of 400 independent blocks has a standard error of .05; the limit is .25
    assert levels(POLICY, seen(np.array(list(walk(0.0)))))["dependence"] is Level.OK
    assert levels(POLICY, seen(np.array(list(walk(0.6)))))["dependence"] is Level.WARN


def test_attempts_are_priced_by_their_share_of_alpha() -> None:
    one = next(f for f in check(POLICY, replace(BARE, attempts=60.0)) if f.check == "attempts")
    assert "60 tests a year" in one.text and "at most 1.00 false promotions" in one.text and one.level is Level.OK
    assert levels(POLICY, replace(BARE, attempts=365.0))["attempts"] is Level.WARN


@pytest.mark.parametrize(("max_age", "code"), [("28d", 0), ("7d", 1)])
def test_the_command_works_without_a_journal_and_fails_by_its_exit_code(tmp_path: Path, capsys, max_age, code) -> None:
    settings = tmp_path / "headgate.toml"
    settings.write_text(
        f'task = "tests.worlds:Blobs"\n[journal]\nurl = "sqlite:///{tmp_path}/none.db"\n[window]\nevery = "1d"\n'
        f'start = 2026-01-01T00:00:00Z\n[rollout]\nmax_age = "{max_age}"\n'
    )
    for words in ([], ["--json"]):
        with pytest.raises(SystemExit) as left:
            main(["--config", str(settings), "rollout", "lint", *words])
        said = capsys.readouterr().out
        assert left.value.code == code
        assert not (tmp_path / "none.db").exists(), "a look makes no journal"
    found = json.loads(said)
    assert found["failed"] == code and not found["journal"]


AB = RolloutPolicy(strategy="ab", shadow_slots=1)


def users(cost: float = 0.2, a_window: int = 500, windows: int = 10) -> Circumstances:
    """Circumstances with so many users a day whose outcome is known."""
    n = a_window * windows
    evidence = Evidence(frozenset(map(str, range(windows))), stable_outcome=(n, n * cost))
    return replace(BARE, history=block_history(evidence, DAY))


def test_a_policy_on_outcomes_is_told_the_smallest_effect_it_can_prove() -> None:
    found = {one.check: one for one in check(AB, users())}
    told = "13500 units by max_age, mean outcome 0.2000: a fall by 0.0"
    assert found["power"].level is Level.OK and told in found["power"].text
    assert found["steps"].level is Level.OK and "14d" in found["steps"].text and "reach" not in found
    assert {one.check: one for one in check(AB, users(0.001, 10))}["power"].level is Level.WARN
    assert levels(AB)["power"] is Level.UNSEEN
    assert failed(replace(AB, min_test=28 * DAY)) == {"steps"}
    assert failed(AB, replace(BARE, misfits=["the task has no outcome"])) == {"task"}


def test_the_smallest_effect_is_proven_in_about_4_of_5_rollouts() -> None:
    """300 tests of 6,000 users at the figure lint gives: 80 % expected, a standard error of 2.3 points."""
    draw, cost, n = np.random.default_rng(3), 0.2, 6000
    effect = least_effect(AB, [(n / 2, 0.1), (n / 2, 0.5)], cost)
    assert effect is not None and 0.02 < effect < 0.05
    pi = np.repeat([0.1, 0.5], n // 2)
    proven = 0
    for _ in range(300):
        arm = draw.random(n) < pi
        outcome = draw.random(n) < cost - effect * arm
        proven += bets(arm, pi, outcome, cost).promote.e_value >= AB.promote_threshold
    assert 0.70 < proven / 300 < 0.90, proven / 300
    assert least_effect(AB, [(100.0, 0.5)], 0.01) is None

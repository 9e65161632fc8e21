"""What `explain` says of effect and pace."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from models.release_policy import RolloutPolicy, Verdict
from models.rollout import explain
from models.rollout_state import Rollout, State, Taken
from monitoring import outlook as outlooks
from monitoring.evidence import BlockSum, Evidence, Exposed, milliseconds
from monitoring.outcome import bets
from monitoring.sample_ratio import SampleRatio
from monitoring.verdict import judge
from tests.test_rollout import DAY, POLICY, QUIET, T0


def outlook(rollout: Rollout, evidence: Evidence, policy: RolloutPolicy) -> list[str]:
    verdicts = judge(rollout, evidence, policy, T0 + DAY, acknowledged=True, prepared=None)
    return outlooks.outlook(rollout, verdicts, evidence, policy)


ONE = Rollout("v1", 1, None, "base-1", State.SHADOW, T0, T0)


def after(*gains: float) -> Evidence:
    sums = {(ms := milliseconds(T0 + k * DAY)): BlockSum(ms, 900, 900 * gain, 900 * gain**2) for k, gain in enumerate(gains)}
    return Evidence(processed=T0 + len(gains) * DAY, pairs={("v1", "base-1"): sums})


def test_the_pace_is_about_what_a_steady_gain_takes() -> None:
    (early,), (late,) = outlook(ONE, after(*[0.05] * 6), POLICY), outlook(ONE, after(*[0.05] * 20), POLICY)
    assert early.startswith("Gain a block +0.0500 (") and "6 of about" in early
    said = int(early.split("of about ")[1].split()[0])
    needed = next(n for n in range(1, 40) if "were enough" in outlook(ONE, after(*[0.05] * n), POLICY)[0])
    assert abs(said - needed) <= 4
    assert "20 blocks were enough" in late


def test_what_does_not_grow_has_no_pace_and_no_evidence_has_no_sentence() -> None:
    assert "does not grow" in outlook(ONE, after(*[-0.01] * 6), POLICY)[0]
    assert outlook(ONE, Evidence(), POLICY) == []


def test_an_effect_on_users_is_told_with_its_interval() -> None:
    policy = replace(POLICY, evidence="outcome")
    rollout = replace(ONE, state=State.CANARY, step=0, taken=(Taken(0, 0.5, 2, T0),))
    arms = [0, 1] * 500
    exposed = Exposed("v1", 2, bets(arms, 0.5, [0.3 - 0.2 * a for a in arms], 0.2), SampleRatio(0.5, 500, 500))
    evidence = replace(after(0.01), exposed={("v1", 2): exposed})
    sentence = outlook(rollout, evidence, policy)[-1]
    assert sentence.startswith("Effect on the outcome -0.2000 (") and "less is better" in sentence
    text = explain(rollout, QUIET, policy, T0 + timedelta(hours=5), outlook=outlook(rollout, evidence, policy))
    assert sentence in text


def test_a_gate_that_only_reports_is_told() -> None:
    policy = replace(POLICY, dry_run=("errors",))
    rollout = replace(ONE, state=State.CANARY, step=0, taken=(Taken(0, 0.1, 2, T0),))
    text = explain(rollout, replace(QUIET, errors=Verdict.WORSE, errors_e=140.0), policy, T0 + DAY)
    assert "Reported only (errors is in dry_run): errors: evidence 140.0" in text

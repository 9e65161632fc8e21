"""Error rates of the release gate, by simulation. Each test states R and its limit: nominal rate + 3 standard errors.

The seeds are fixed, so a test fails when the code changes, not by chance. Two negative controls, the peeked z-test and
the per-event test on clustered losses, must stay wrong: they show that these simulations can see the disease.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from models.release_policy import RolloutPolicy
from monitoring.sequential import BETS, RELATIVE_RISKS, attribute, path
from tests.simulation.release_runs import Stream, gate, normal, storms, ties

POLICY = RolloutPolicy(steps=("shadow", 10, 50, 100), min_requests=0)
SINGLE = RolloutPolicy(steps=("shadow", 10, 50, 100), min_requests=0, shadow_slots=1)  # the whole alpha on one version
NULLS = {"equal": lambda rng, runs, days: normal(rng, runs, days, 0.0), "storms": storms, "ties": ties}


def limit(rate: float, runs: int) -> float:
    return rate + 3 * sqrt(rate * (1 - rate) / runs)


def false_rates(name: str, runs: int, days: int, seed: int = 1) -> tuple[float, float, float]:
    """Share of equal models that are promoted at alpha / 3, at alpha, and that are rejected."""
    block_means = NULLS[name](np.random.default_rng(seed), runs, days)
    sliced, single = gate(block_means, POLICY), gate(block_means, SINGLE)
    return sliced.share("promoted"), single.share("promoted"), sliced.share("harmed")


@pytest.mark.parametrize("name", NULLS)
def test_equal_models_are_promoted_and_rejected_at_most_at_alpha(name: str) -> None:
    """R = 4,000 rollouts of 28 day blocks, a look after each."""
    sliced, single, rejected = false_rates(name, 4000, 28)
    assert sliced <= limit(0.05 / 3, 4000)
    assert single <= limit(0.05, 4000)
    assert rejected <= limit(0.05, 4000)


def test_a_better_model_is_promoted_within_28_blocks_and_a_worse_one_caught() -> None:
    """R = 2,000 each; .04 nats is the gain measured on flights, .10 the loss of labels with a wrong sign."""
    rng = np.random.default_rng(2)
    better = gate(normal(rng, 2000, 28, 0.04), POLICY)
    assert better.share("promoted") > 0.95 and better.median("promoted") <= 20 and better.share("harmed") < 0.01
    sign_error = gate(normal(rng, 2000, 28, -0.10), POLICY)
    assert sign_error.share("harmed") > 0.999 and sign_error.median("harmed") <= 9
    assert sign_error.share("promoted") == 0.0


def clustered(rng: np.random.Generator, runs: int, days: int, daily: int) -> np.ndarray:
    """Differences of equal models by event: a day effect of sd .047 and an event noise of sd .35 nats, which make the
    design effect by day 1 + daily x (.047 / .35)^2 = 18 at 940 events a day, as on flights."""
    return 0.047 * rng.standard_normal((runs, days, 1)) + 0.35 * rng.standard_normal((runs, days, daily))


def clustered_rates(runs: int) -> tuple[float, float]:
    """False promotions of the per-event test (looked at once a day) and of the day-block test, at alpha 5 %."""
    rng, by_event, by_block = np.random.default_rng(3), 0, 0
    for _ in range(runs // 50):
        events = clustered(rng, 50, 28, 940)
        x = np.clip(events / 2.0, -1, 1)
        logs = np.stack([np.cumsum(np.log1p(b * x).sum(axis=2), axis=1) for b in BETS])
        figure = np.log(np.exp(np.minimum(logs, 600)).mean(axis=0))
        by_event += int((figure >= np.log(20)).any(axis=1).sum())
        by_block += int((gate(events.mean(axis=2), SINGLE).promoted > 0).sum())
    return by_event / runs, by_block / runs


def test_the_per_event_test_fails_on_clustered_losses_where_the_block_test_holds() -> None:
    """R = 200: the block test within 5 % + 3 SE (9.6 %), the per-event test wrong in more than a fifth."""
    by_event, by_block = clustered_rates(200)
    assert by_event > 0.20
    assert by_block <= limit(0.05, 200)


def paired(rng: np.random.Generator, runs: int, n: int, better: float) -> np.ndarray:
    """Right-or-wrong pairs that differ in 10 % of the records; mean difference `better`, margin .01."""
    difference = rng.choice([-1, 0, 1], p=[0.05 - better / 2, 0.9, 0.05 + better / 2], size=(runs, n))
    return (difference + 0.01) / 1.01


def peeked_z(x: np.ndarray) -> np.ndarray:
    """The fixed-horizon z-test, looked at after every record from the 30th on: the error to be avoided."""
    n = np.arange(1, x.shape[1] + 1)
    total, squares = np.cumsum(x, axis=1), np.cumsum(x * x, axis=1)
    spread = np.sqrt(np.maximum(squares / n - (total / n) ** 2, 1e-12) / n)
    return ((total / n / spread)[:, 29:] > 1.645).any(axis=1)


def record_rates(runs: int, n: int, chunk: int) -> tuple[float, float, float, float]:
    """False promotion of the e-process and of peeked z at the margin; power and median records when better by it."""
    rng, false, peeked, times = np.random.default_rng(4), 0, 0, []
    for _ in range(runs // chunk):
        null = paired(rng, chunk, n, -0.01)
        false += int((path(null) >= np.log(20)).any(axis=1).sum())
        peeked += int(peeked_z(null).sum())
        hits = path(paired(rng, chunk, n, 0.01)) >= np.log(20)
        times.append(np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf))
    decided = np.concatenate(times)
    return false / runs, peeked / runs, float(np.isfinite(decided).mean()), float(np.median(decided))


def test_looking_after_every_record_costs_the_e_process_nothing_and_ruins_the_z_test() -> None:
    """R = 400 runs of 4,000 records: 5 % + 3 SE = 8.3 % against more than 20 %."""
    false, peeked, _, median = record_rates(400, 4000, 50)
    assert false <= limit(0.05, 400)
    assert peeked > 0.20
    assert median <= 2000


def guard_rates(runs: int, risk: float, incidents: bool = True) -> tuple[float, float]:
    """Share of rollouts stopped by the error guardrail and the median of canary errors then: 500 hours of 100 requests,
    weight .1, .5 % errors; incidents of x20 hit both arms in 2 % of the hours. A look after every hour."""
    rng = np.random.default_rng(5)
    rate = 0.005 * np.where(incidents & (rng.random((runs, 500)) < 0.02), 20.0, 1.0)
    canary = rng.binomial(10, np.minimum(rate * risk, 1.0)).cumsum(axis=1)
    stable = rng.binomial(90, rate).cumsum(axis=1)
    one, other = np.array(attribute(1, 0, 0.1).logs), np.array(attribute(0, 1, 0.1).logs)
    figures = sum(np.exp(np.minimum(canary * a + stable * b, 600)) for a, b in zip(one, other, strict=True))
    hits = figures / len(RELATIVE_RISKS) >= 100
    first = np.where(hits.any(axis=1), hits.argmax(axis=1), -1)
    errors = np.where(first >= 0, canary[np.arange(runs), first], np.inf)
    return float((first >= 0).mean()), float(np.median(errors))


@pytest.mark.parametrize("risk", [1.0, 1.2])
def test_the_guardrail_stops_a_tolerated_risk_at_most_at_its_alpha(risk: float) -> None:
    """R = 2,000, alpha 1 %: at most 1.67 %, incidents included."""
    assert guard_rates(2000, risk)[0] <= limit(0.01, 2000)


def test_the_guardrail_decides_a_fivefold_error_rate_after_a_dozen_canary_errors() -> None:
    share, errors = guard_rates(1000, 5.0, incidents=False)
    assert share > 0.999 and errors <= 12


def run_product(days: np.ndarray) -> tuple[int | None, int | None]:
    stream = Stream(POLICY)
    stream.add("v1", 1, "base-1")
    for gain in days:
        stream.pass_day(lambda candidate, stable, gain=gain: float(gain))
    return stream.first("v1", "CANARY"), stream.first("v1", "REJECTED")


def test_the_product_ends_each_rollout_on_the_day_the_simulation_says() -> None:
    """The arrays of `gate` against verdicts and board of the product: 60 rollouts of mixed worth, no difference."""
    rng = np.random.default_rng(6)
    days = np.concatenate([normal(rng, 15, 28, gain, 0.05) for gain in (-0.08, 0.0, 0.03, 0.06)])
    ends = gate(days, POLICY)
    for k in range(len(days)):
        assert run_product(days[k]) == (int(ends.promoted[k]) or None, int(ends.harmed[k]) or None), k


def poisoned_story(seed: int) -> tuple[bool, bool, bool]:
    """84 days, an update a week. Update 1 gains .01 nats on the base, later ones .045; update 7 learns from wrong
    labels and loses .06, its descendants .03. -> honest version promoted; bad one stopped; bad one never stable."""
    rng = np.random.default_rng(seed)
    stream = Stream(POLICY)

    def worth(version: str) -> float:
        own = {"base-1": 0.0, "v1": 0.01, "v7": -0.06}
        return own.get(version, -0.03 if stream.board.descends(version, "v7") else 0.045)

    def gain(candidate: str, stable: str) -> float:
        return worth(candidate) - worth(stable) + 0.03 * float(rng.standard_normal())

    for number in range(1, 13):
        for _ in range(7):
            stream.pass_day(gain)
        stream.add(f"v{number}", number, stream.board.head or "base-1")
    honest = any(stream.first(f"v{k}", "PROMOTED") for k in range(1, 7))
    return honest, stream.first("v7", "REJECTED", "ROLLING_BACK") is not None, stream.first("v7", "PROMOTED") is None


def test_an_honest_version_is_promoted_and_the_poisoned_one_stopped_with_its_family() -> None:
    """20 noise seeds, at least 19 of 20 each; the poisoned version is never stable."""
    runs = [poisoned_story(seed) for seed in range(20)]
    assert sum(honest for honest, _, _ in runs) >= 19
    assert sum(stopped for _, stopped, _ in runs) >= 19
    assert all(clean for _, _, clean in runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", NULLS)
def test_ten_thousand_rollouts_stay_within_5_65_percent(name: str) -> None:
    for days in (28, 365):
        sliced, single, rejected = false_rates(name, 10_000, days, seed=7)
        assert sliced <= limit(0.05 / 3, 10_000) and single <= 0.0565 and rejected <= 0.0565


@pytest.mark.slow
def test_clustered_losses_over_two_thousand_rollouts() -> None:
    """R = 2,000: the block test within 6.5 %."""
    by_event, by_block = clustered_rates(2000)
    assert by_event > 0.20 and by_block <= limit(0.05, 2000)


@pytest.mark.slow
def test_ten_thousand_runs_of_twenty_thousand_records() -> None:
    """At most 5.65 % false promotions; the median at a true gain below 1.1 x the untuned grid's 1,757."""
    false, peeked, power, median = record_rates(10_000, 20_000, 50)
    assert false <= 0.0565 and peeked > 0.20
    assert power > 0.99 and median <= 1.1 * 1757

"""Error rates of the release gate, by simulation. Each test states R and its limit: nominal rate + 3 standard errors.

The seeds are fixed, so a test fails when the code changes, not by chance. Two negative controls, the peeked z-test and
the per-event test on clustered losses, must stay wrong: they show that these simulations can see the disease.
"""

from __future__ import annotations

import numpy as np
import pytest

from models.release_policy import RolloutPolicy
from monitoring.sequential import BETS, bet, path
from tests.simulation.looks import LIMIT, first_looks, limit, median, share
from tests.simulation.record_runs import POINTS, drawn, harm_looks, peeked_rate, promote_looks
from tests.simulation.release_runs import Stream, gate, normal, storms, ties

POLICY = RolloutPolicy(steps=("shadow", 10, 50, 100), min_requests=0)
SINGLE = RolloutPolicy(steps=("shadow", 10, 50, 100), min_requests=0, shadow_slots=1)  # the whole alpha on one version
NULLS = {"equal": lambda rng, runs, days: normal(rng, runs, days, 0.0), "storms": storms, "ties": ties}


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


def test_looking_after_every_record_costs_the_e_process_nothing_and_ruins_the_z_test() -> None:
    """R = 1,000 runs of 20,000 records: 5 % + 3 SE = 7.1 %, for equal versions rolled back too; the z-test, R = 100 of
    4,000, above 20 %."""
    assert share(promote_looks(1000, -0.01, 4)) <= limit(0.05, 1000)
    assert share(harm_looks(1000, 0.0, 5)) <= limit(0.05, 1000)
    assert peeked_rate(100, -0.01, 4, n=4000) > 0.20
    assert (median(promote_looks(400, 0.01, 6)) or np.inf) <= 2000


def test_the_fast_looks_are_those_of_the_product_record_by_record() -> None:
    rng = np.random.default_rng(7)
    records = drawn(0.01)(rng, 40, 0, 3000)
    logs = np.array([[bet([x]).logs for x in (POINTS + 0.01) / 1.01]])
    for row in records:
        fast = first_looks(1, 3000, lambda rng, rows, begin, end, row=row: row[None, begin:end], lambda begin: logs, 0)
        hits = path((POINTS[row] + 0.01) / 1.01) >= LIMIT
        assert fast.item() == (hits.argmax() + 1.0 if hits.any() else np.inf)


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

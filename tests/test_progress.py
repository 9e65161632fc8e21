"""How far an update under privacy has come: no death is reckoned short, and no record but the right one is read."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np
import pytest

from models.adapters import lora
from models.private import private_sgd
from models.progress import Progress, ProgressLost, left_behind
from models.training import train
from security.checkpoint import Checkpoint
from tests.deaths import Deaths, Killed
from tests.updates import PRIVATE, TASK, WINDOW, W, attached, batch, law, trained_base

KEY, FACTS, STEPS = b"k" * 32, {"update": "u1", "rate": 0.1}, 6
LAW = law(800, steps=STEPS, spare=4)
PARTS, TRUTH = batch(800)


@pytest.fixture(scope="module")
def trained() -> bytes:
    return trained_base()


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    return Checkpoint(tmp_path / "progress", KEY)


def begun(checkpoint, **changes):
    made = replace(Progress(FACTS, None, checkpoint), **changes)
    made.start()
    return made


def again(checkpoint, spare=LAW.spare):
    """As another process would: nothing remembered but the files."""
    found = left_behind(Checkpoint(checkpoint.copies[0].with_suffix(""), KEY), FACTS, spare)
    found.again()
    return found


def take_steps(trained, progress, lawful=LAW):
    module = attached(trained)
    run = private_sgd.run(TASK, module, PARTS, TRUTH, lawful, PRIVATE, W, progress)
    return run, np.concatenate([value.ravel() for value in lora.extract(module).values()])


# -- the law of the steps ---------------------------------------------------------------------------------------------


def test_an_update_that_nobody_kills_begins_as_many_steps_as_it_takes(trained, checkpoint):
    report = train(TASK, trained, None, WINDOW, LAW, PRIVATE, W, progress=begun(checkpoint)).report
    assert (report.steps, report.lost_steps, report.attempts) == (STEPS, 0, 1)
    alone = train(TASK, trained, None, WINDOW, LAW, PRIVATE, W).report
    assert (alone.steps, alone.lost_steps, alone.attempts) == (STEPS, 0, 1)


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_death_at_any_moment_costs_at_most_one_step_and_nothing_is_reckoned_short(trained, checkpoint, monkeypatch, moment):
    """Five moments a step, so the second and third steps from every side."""
    progress, deaths = begun(checkpoint), Deaths(monkeypatch)
    deaths.left = 5 + moment
    with pytest.raises(Killed):
        take_steps(trained, progress)
    left = again(checkpoint)
    lost = left.begun - left.run.steps
    assert left.run.steps <= deaths.drawn <= left.begun and lost in (0, 1)
    run, weights = take_steps(trained, left)
    assert (run.steps, run.lost, run.attempts) == (STEPS, lost, 2)
    assert deaths.drawn <= STEPS + run.lost and np.isfinite(weights).all() and len(run.norms) == STEPS


def test_it_goes_on_from_the_weights_after_the_last_finished_step(trained, checkpoint, monkeypatch):
    steps, finish = [], Progress.finish
    monkeypatch.setattr(Progress, "finish", lambda self, weights: (steps.append(weights.copy()), finish(self, weights))[1])
    progress, deaths = begun(checkpoint), Deaths(monkeypatch)
    deaths.left = 5 * 3 + 5  # the fourth step has been computed
    with pytest.raises(Killed):
        take_steps(trained, progress)
    left = again(checkpoint)
    assert (len(steps), left.run.steps, left.begun) == (3, 3, 4)
    assert np.array_equal(left.weights, steps[2].astype(np.float32)) and not np.array_equal(steps[2], steps[1])
    still = replace(PRIVATE, training=replace(PRIVATE.training, learning_rate=0.0))
    module = attached(trained)
    private_sgd.run(TASK, module, PARTS, TRUTH, LAW, still, W, left)
    held = np.concatenate([value.detach().double().numpy().ravel() for value in lora.trainable(module).values()])
    assert np.array_equal(held, steps[2].astype(np.float32)), "the module has them too"


def test_noise_and_batches_after_a_death_are_not_those_of_before(trained, checkpoint, monkeypatch):
    progress, deaths = begun(checkpoint), Deaths(monkeypatch)
    deaths.left = 5
    with pytest.raises(Killed):
        take_steps(trained, progress)
    take_steps(trained, again(checkpoint))
    everything = np.concatenate(deaths.noises)
    assert len(deaths.noises) == STEPS + 1
    assert len(np.unique(everything)) > 0.999 * everything.size  # 53-bit draws: one pair in 10^9 alike, one step repeated 14 %


@pytest.mark.parametrize("seed", range(60))
def test_however_often_it_is_killed_no_more_than_the_reserve_is_begun(trained, checkpoint, monkeypatch, seed):
    dice, deaths, progress = random.Random(seed), Deaths(monkeypatch), begun(checkpoint)
    lawful = law(800, steps=dice.randrange(1, 7), spare=dice.randrange(0, 5))
    attempts = 1
    while True:
        deaths.left = dice.choice([0, *range(1, dice.choice([8, 30]))])
        try:
            run, weights = take_steps(trained, progress, lawful)
        except Killed:
            pass
        else:
            begun_ = run.steps + run.lost
            assert 1 <= run.steps <= lawful.steps and deaths.drawn <= begun_ <= lawful.reserved
            assert run.steps == lawful.steps or begun_ == lawful.reserved, "it ends early only when nothing is left"
            assert np.isfinite(weights).all() and len(run.losses) == run.steps
            return
        deaths.left = 0
        try:
            progress, attempts = again(checkpoint, lawful.spare), attempts + 1
        except ProgressLost as error:
            assert f"{lawful.spare + 1} attempts in a row finished no step" in str(error) and attempts > lawful.spare
            assert deaths.drawn <= lawful.reserved
            return


def test_a_reserve_that_is_used_up_ends_the_update_with_fewer_steps(trained, checkpoint, monkeypatch):
    deaths, progress = Deaths(monkeypatch), begun(checkpoint)
    for _ in range(LAW.reserved - 2):  # each attempt finishes one step and dies in the next
        deaths.left = 5 + 5
        try:
            take_steps(trained, progress)
        except Killed:
            deaths.left = 0
            progress = again(checkpoint)
    run, _ = take_steps(trained, progress)
    assert run.steps == LAW.reserved // 2 < STEPS and run.steps + run.lost == LAW.reserved == deaths.drawn


def test_what_dies_again_and_again_without_a_step_is_not_tried_for_ever(checkpoint):
    begun(checkpoint)
    for _ in range(4):
        again(checkpoint)
    with pytest.raises(ProgressLost, match="5 attempts in a row finished no step, 5 are allowed"):
        again(checkpoint)


# -- the checkpoint ---------------------------------------------------------------------------------------------------


def test_which_examples_are_kept_and_the_figures_come_back(checkpoint):
    progress = begun(checkpoint, kept=np.array([True, False, True] * 7))
    progress.attach({"w": 2}, np.zeros(2))
    progress.begin(LAW)
    progress.run.losses.append(None)
    progress.run.steps += 1
    progress.finish(np.array([1.5, -2.0]))
    progress.begin(LAW)
    found = again(checkpoint)
    assert (found.kept.tolist(), found.begun, found.run.losses) == ([True, False, True] * 7, 2, [None])
    assert found.weights.tolist() == [1.5, -2.0] and found.layout == {"w": 2}
    with pytest.raises(ProgressLost, match="another module"):
        found.attach({"w": 1, "v": 1}, np.zeros(2))
    assert all(copy.stat().st_mode & 0o077 == 0 for copy in checkpoint.copies)


def test_a_record_shorter_than_the_one_it_replaces_is_read_whole(checkpoint):
    for content in (b"long" * 100, b"longer" * 100, b"short", b""):
        checkpoint.write(content)
        assert Checkpoint(checkpoint.copies[0].with_suffix(""), KEY).read() == content


@pytest.mark.parametrize("damage", ["missing", "empty", "one bit", "other key", "foreign", "truncated"])
def test_a_checkpoint_that_is_not_the_one_that_was_written_is_never_gone_on_from(checkpoint, damage):
    begun(checkpoint, facts={**FACTS, "update": "u2"} if damage == "foreign" else FACTS).begin(LAW)
    for copy in checkpoint.copies:
        content = bytearray(copy.read_bytes())
        content[-1] ^= damage == "one bit"
        copy.write_bytes(b"" if damage == "empty" else content[:-1] if damage == "truncated" else content)
        if damage == "missing":
            copy.unlink()
    said = {"missing": "it has no checkpoint", "foreign": "update was u2 and is u1"}.get(damage, "is damaged")
    with pytest.raises(ProgressLost, match=said):
        left_behind(Checkpoint(checkpoint.copies[0].with_suffix(""), b"x" if damage == "other key" else KEY), FACTS, 4)


def test_a_full_disk_stops_the_update_at_the_record_before(trained, checkpoint, monkeypatch):
    progress, write, room = begun(checkpoint), os.pwrite, [3]

    def full(*args):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        return write(*args)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            take_steps(trained, progress)
    left = again(checkpoint)
    assert (left.run.steps, left.begun) == (2, 3)
    assert take_steps(trained, left)[0].steps == STEPS

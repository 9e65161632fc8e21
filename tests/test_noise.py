"""The draws privacy rests on: their law, and that nobody repeats them.

Statistical tests use fresh randomness at every run; each states its chance of failing by accident.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle

import numpy as np
import pytest
from scipy import stats

from models.private.noise import gaussian, poisson_sample
from security.randomness import KeyStream

NEVER = 1e-7  # accidental failures of one statistical check


def two_sided(p: float) -> bool:
    return NEVER / 2 < p < 1 - NEVER / 2


def test_the_noise_is_standard_normal():
    """Mean, variance and shape of 400,000 draws; three checks, 3e-7 together."""
    z = gaussian(KeyStream(), 400_000)
    assert two_sided(stats.norm.cdf(z.mean() * np.sqrt(z.size)))
    assert two_sided(stats.chi2.cdf((z**2).sum(), z.size))
    assert stats.kstest(z, "norm").pvalue > NEVER


def test_the_noise_has_no_memory():
    """Correlation of neighbours, and of the two halves that share a radius; 2e-7 together."""
    z = gaussian(KeyStream(), 400_000)
    half = z.size // 2
    for left, right in ((z[:-1], z[1:]), (z[:half], z[half:])):
        assert two_sided(stats.norm.cdf(np.corrcoef(left, right)[0, 1] * np.sqrt(left.size)))


def test_a_wrong_scale_would_be_noticed():
    z = 0.98 * gaussian(KeyStream(), 400_000)
    assert not two_sided(stats.chi2.cdf((z**2).sum(), z.size))


def test_an_odd_count_and_none_are_given_exactly():
    assert gaussian(KeyStream(), 7).shape == (7,)
    assert gaussian(KeyStream(), 0).shape == (0,)


def test_each_row_is_in_a_batch_with_its_rate_and_on_its_own():
    """4,000 batches of 40 rows at 1/8: batch sizes and row counts are binomial, pairs independent; 4e-7 together."""
    stream, draws, rows, rate = KeyStream(), 4_000, 40, 1 / 8
    table = np.zeros((draws, rows))
    for batch in table:
        batch[poisson_sample(stream, rows, rate)] = 1
    for counts, trials in ((table.sum(axis=1), rows), (table.sum(axis=0), draws)):
        expected, variance = trials * rate, trials * rate * (1 - rate)
        assert two_sided(stats.chi2.cdf(((counts - expected) ** 2).sum() / variance, counts.size))
    assert two_sided(stats.binom.cdf(table.sum(), table.size, rate))
    together = (table[:, ::2] * table[:, 1::2]).sum()
    assert two_sided(stats.binom.cdf(together, draws * rows // 2, rate**2))


def test_rate_one_takes_every_row_and_no_rows_give_no_batch():
    assert poisson_sample(KeyStream(), 5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(KeyStream(), 0, 0.5).size == 0


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.01, float("nan")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match=r"not in \(0, 1\]"):
        poisson_sample(KeyStream(), 10, rate)


def test_two_streams_differ_and_one_goes_on():
    one, other = KeyStream(), KeyStream()
    assert len({one.read(32), one.read(32), other.read(32)}) == 3


def test_a_large_read_is_all_random_bytes():
    """No byte value is missing from 3 MB, and no block repeats another."""
    raw = KeyStream().read(3 << 20)
    blocks = np.frombuffer(raw, np.uint64)
    assert len(set(raw)) == 256 and np.unique(blocks).size == blocks.size


def _draw(stream: KeyStream, out) -> None:
    out.send_bytes(stream.read(32))


def test_a_forked_child_does_not_repeat_its_parents_noise():
    stream = KeyStream()
    stream.read(8)
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_draw, args=(stream, there))
    child.start()
    drawn = here.recv_bytes()
    child.join()
    assert child.exitcode == 0 and child.pid != os.getpid()
    assert drawn != stream.read(32)


def test_a_stream_cannot_be_copied_or_pickled():
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="same noise"):
            attempt(KeyStream())

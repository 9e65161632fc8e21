"""The five figures of a binary prediction, against scikit-learn where it has them."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.quality import binary_metrics


def test_the_figures_are_scikit_learns_also_with_ties():
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        p = np.round(rng.random(500), 1 + seed % 3)
        truth = (rng.random(500) < p).astype(int)
        figures = binary_metrics(truth, p)
        assert figures["auc"] == pytest.approx(metrics.roc_auc_score(truth, p))
        assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(truth, p >= 0.5))
        assert figures["f1"] == pytest.approx(metrics.f1_score(truth, p >= 0.5))
        assert figures["log_loss"] == pytest.approx(metrics.log_loss(truth, np.clip(p, 1e-7, 1 - 1e-7)))


def test_calibration_error_is_the_gap_between_said_and_seen():
    assert binary_metrics([1, 0, 1, 0], [0.5] * 4)["calibration_error"] == pytest.approx(0.0)
    assert binary_metrics([1, 1, 1, 1], [0.75] * 4)["calibration_error"] == pytest.approx(0.25)
    assert binary_metrics([0, 1], [0.0, 1.0])["calibration_error"] == 0.0


def test_auc_is_absent_where_it_is_not_defined():
    assert "auc" not in binary_metrics([1, 1], [0.2, 0.9])
    assert binary_metrics([0, 0], [0.2, 0.3])["f1"] == 0.0


@pytest.mark.parametrize(
    ("target", "probability", "message"),
    [
        ([], [], "n >= 1"),
        ([1, 0], [0.5], "both must be"),
        ([2, 0], [0.5, 0.5], "targets must be 0 or 1"),
        ([1, 0], [1.5, 0.5], r"must lie in \[0, 1\]"),
        ([1, 0], [float("nan"), 0.5], r"must lie in \[0, 1\]"),
    ],
)
def test_what_is_not_a_target_and_a_probability_is_refused(target, probability, message):
    with pytest.raises(ValueError, match=message):
        binary_metrics(target, probability)

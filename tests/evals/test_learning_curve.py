from __future__ import annotations

import numpy as np
import pytest

from kleash.evals.learning_curve import learning_curve

SIZES = [125, 250, 500, 1000]


def curve(accuracies: list[float], pairs: int = 4000, seed: int = 0, **options: float):
    """Models that are right on the pairs that they can do, the better ones on all that the worse ones can."""
    ease = np.random.default_rng(seed).random(pairs)
    hits = np.stack([(ease < accuracy).astype(float) for accuracy in accuracies])
    return learning_curve(SIZES, hits, 1 - hits, **options)


def test_a_straight_line_is_drawn_on() -> None:
    found = curve([0.60, 0.65, 0.70, 0.75])
    assert found.accuracy.at_twice.value == pytest.approx(0.80, abs=0.02)
    assert found.accuracy.gain.value == pytest.approx(0.05, abs=0.01)
    assert found.accuracy.gain.low > 0
    assert found.answer.startswith("More labels will help: at 2,000 labels, twice as many, expect an accuracy")
    assert found.log_loss.gain.value == pytest.approx(-0.05, abs=0.01)


def test_a_constant_learning_curve_predicts_that_labels_will_hardly_help() -> None:
    assert curve([0.70, 0.70, 0.70, 0.70]).answer.startswith("More labels of this kind will hardly help")


def test_a_noisy_curve_cannot_tell() -> None:
    assert curve([0.60, 0.72, 0.61, 0.71]).answer.startswith("The curve cannot tell")


def test_nothing_above_the_noise_ceiling_is_expected() -> None:
    assert curve([0.60, 0.65, 0.70, 0.75], ceiling=0.77).accuracy.at_twice.value == 0.77


def test_the_interval_holds_a_run_with_twice_the_labels_as_often_as_stated_or_more() -> None:
    held = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        truth = 0.6 + 0.04 * np.arange(5) + rng.normal(scale=0.01, size=5)  # the luck of each training
        ease = rng.random(500)
        hits = np.stack([(ease < accuracy).astype(float) for accuracy in truth[:4]])
        twice = learning_curve(SIZES, hits, 1 - hits).accuracy.at_twice
        held += twice.low <= truth[4] <= twice.high
    assert held / 300 >= 0.93

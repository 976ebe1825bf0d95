from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, xlogy

from kleash.evals.noise import disagreement, lapse_model
from kleash.evals.report_values import as_json


def draw(lapse: float, slope: float, n: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
    """Margins, labels of the lapse model, and its Bayes accuracy on them."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(scale=2.5, size=n)
    q = lapse + (1 - 2 * lapse) * expit(slope * margin)
    return margin, (rng.random(n) < q).astype(float), float(np.maximum(q, 1 - q).mean())


def test_the_disagreement_of_two_labels_is_a_share_and_of_three_is_unbiased() -> None:
    two = disagreement(np.array([[2, 0], [1, 1], [0, 2], [1, 1], [1, 0]]))
    assert two is not None and (two.rate, two.pairs) == (0.5, 4)
    three = disagreement(np.array([[2, 1]]))
    assert three is not None and three.rate == pytest.approx(2 / 3)
    assert disagreement(np.array([[1, 0]])) is None
    assert disagreement(np.zeros((0, 2), dtype=int)) is None


@pytest.mark.parametrize(("lapse", "slope"), [(0.0, 1.0), (0.15, 1.0), (0.1, 0.4), (0.1, 3.0)])
def test_lapses_slope_and_bayes_accuracy_are_recovered(lapse: float, slope: float) -> None:
    margin, label, bayes = draw(lapse, slope, seed=1)
    found = lapse_model(margin, label)
    assert found is not None
    for name, planted in (("lapse", lapse), ("slope", slope), ("bayes_accuracy", bayes)):
        figure = getattr(found, name)
        assert figure.low <= planted <= figure.high, name
        assert figure.low <= figure.value <= figure.high
    assert found.bayes_accuracy.high - found.bayes_accuracy.low < 0.1


def test_the_fit_is_the_most_likely_one_of_a_fine_grid() -> None:
    margin, label, _ = draw(0.12, 1.3, n=300)

    def likelihood(lapse: float, slope: float) -> float:
        q = lapse + (1 - 2 * lapse) * expit(slope * margin)
        return float((xlogy(label, q) + xlogy(1 - label, 1 - q)).sum())

    found = lapse_model(margin, label)
    assert found is not None
    best = max(likelihood(lapse, slope) for lapse in np.linspace(0, 0.49, 50) for slope in np.geomspace(0.05, 20, 80))
    assert likelihood(found.lapse.value, found.slope.value) >= best - 1e-6


def test_labels_that_have_nothing_to_do_with_the_margin_leave_everything_open() -> None:
    rng = np.random.default_rng(0)
    found = lapse_model(rng.normal(size=400), (rng.random(400) < 0.5).astype(float))
    assert found is not None
    assert found.bayes_accuracy.low == pytest.approx(0.5, abs=1e-3)
    assert found.lapse.low < 0.05 and found.lapse.high == 0.5


def test_a_swapped_pair_changes_nothing_and_margins_of_zero_carry_no_information() -> None:
    margin, label, _ = draw(0.1, 1.0, n=200)
    turn = np.where(np.arange(200) % 2, -1.0, 1.0)
    a, b = lapse_model(margin, label), lapse_model(turn * margin, np.where(turn > 0, label, 1 - label))
    assert a is not None and b is not None
    for name, figure in as_json(a).items():
        assert as_json(b)[name] == pytest.approx(figure, abs=1e-5)
    assert lapse_model(np.zeros(5), np.ones(5)) is None

from __future__ import annotations

import numpy as np
import pytest

from kleash.evals.overoptimization import (
    KLCurve,
    Source,
    cost_of_following_law,
    fit,
    fit_law,
    in_words,
    law_gain,
    law_peak,
)
from tests.evals.overoptimization.synthetic_curves import TRUE, analysed, curve


@pytest.mark.parametrize("source", ["checkpoints", "best-of-n"])
def test_a_law_is_recovered_exactly_without_noise_and_its_peak_is_where_it_is_highest(
    source: Source,
) -> None:
    alpha, beta_law = TRUE[source]
    d = np.linspace(0, 5, 9)
    fitted = fit_law(d, law_gain(d, alpha, beta_law, source), np.ones(9), source)
    np.testing.assert_allclose(fitted, (alpha, beta_law), rtol=1e-10)
    fine = np.linspace(0, 6, 60_001)
    at = fine[law_gain(fine, alpha, beta_law, source).argmax()]
    assert float(law_peak(alpha, beta_law, source)) == pytest.approx(at, abs=2e-4)
    assert np.isinf(law_peak(alpha, -0.1, source)), "with β′ ≤ 0 it never turns"


@pytest.mark.parametrize("source", ["checkpoints", "best-of-n"])
def test_the_weighted_fit_is_that_of_a_general_least_squares_solver(source: Source) -> None:
    rng = np.random.default_rng(0)
    d, gain, weights = rng.uniform(0.1, 4, 8), rng.normal(0, 1, 8), rng.uniform(0.5, 2, 8)
    design = np.stack([d, -(d**2 if source == "best-of-n" else d * np.log(d))], 1) * np.sqrt(weights)[:, None]
    expected = np.linalg.lstsq(design, gain * np.sqrt(weights), rcond=None)[0]
    np.testing.assert_allclose(fit_law(d, gain, weights, source), expected, rtol=1e-8)


def test_points_that_determine_no_law_give_none() -> None:
    few = curve("checkpoints")
    assert fit(few, limit=0.9, resamples=10) is None, "two points within the limit"
    same = np.full(4, 2.0)
    assert all(np.isnan(fit_law(same, same, np.ones(4), "checkpoints"))), "one distance, measured four times"


def test_a_fit_before_the_peak_predicts_it_with_wider_intervals() -> None:
    measured = curve("checkpoints", prompts=400, noise=0.2)
    whole, early = fit(measured), fit(measured, limit=0.7 * np.e)
    assert whole and early and early.points < whole.points
    assert early.peak_distance.low <= np.e <= early.peak_distance.high
    width = [f.peak_distance.high - f.peak_distance.low for f in (whole, early)]
    assert width[0] < width[1]
    assert whole.peak_gain.value == pytest.approx(0.5 * np.e, abs=0.1)


def test_a_curve_that_follows_no_law_is_reported_to_depart_from_it() -> None:
    cliff = np.where(np.linspace(0, 4, 11) < 2, 0.5, -1.5)
    departs, follows = (
        fit(curve("checkpoints", gain=cliff), resamples=50),
        fit(curve("checkpoints"), resamples=50),
    )
    assert departs and follows
    assert departs.p_value < 1e-6 and departs.largest_miss > 0.5
    assert follows.p_value > 0.01 and follows.largest_miss < 0.3
    assert "departs from the law" in in_words(analysed(curve("checkpoints", gain=cliff)))["law"]


def test_a_law_with_a_peak_beyond_the_data_cannot_tell() -> None:
    straight = curve("checkpoints", gain=0.3 * np.linspace(0, 4, 11))
    assert "cannot tell" in in_words(analysed(straight))["law"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["checkpoints", "best-of-n"])
def test_intervals_cover_the_truth_as_often_as_they_say(source: Source) -> None:
    truth = {
        "alpha": TRUE[source][0],
        "beta_law": TRUE[source][1],
        "peak_distance": float(law_peak(*TRUE[source], source)),
    }
    runs = [fit(curve(source, seed=seed), seed=seed, resamples=400) for seed in range(300)]
    for name, value in truth.items():
        intervals = [getattr(law, name) for law in runs if law]
        covered = np.mean([each.low <= value <= each.high for each in intervals])
        assert 0.90 <= covered <= 0.98, name
    assert 0.02 <= np.mean([f.p_value < 0.05 for f in runs if f]) <= 0.10


def test_trusting_a_law_costs_the_gold_between_the_peak_and_where_it_points() -> None:
    flat = np.arange(11.0)[:, None] * np.ones(6)  # gold grows by one a point, alike for all prompts
    measured = KLCurve(
        "checkpoints", tuple(range(11)), tuple("abcdef"), flat, flat, (flat / 2) ** 2
    )  # d = 0, 0.5, 1, …
    told = cost_of_following_law(measured, 10, 3.25)
    assert told.gold.mean == pytest.approx(6.5) and told.lost.mean == pytest.approx(3.5)
    assert (
        not told.beyond
        and cost_of_following_law(measured, 10, None).beyond
        and cost_of_following_law(measured, 10, 9.0).beyond
    )
    assert cost_of_following_law(measured, 10, None).lost.mean == 0

from __future__ import annotations

import numpy as np
import pytest

from kleash.evals import overoptimization as oo
from tests.evals.overoptimization.synthetic_curves import TRUE, analysed, road


@pytest.mark.parametrize("law", ["rl", "best-of-n"])
def test_a_law_is_recovered_exactly_without_noise_and_its_peak_is_where_it_is_highest(law: oo.Law) -> None:
    alpha, beta_law = TRUE[law]
    d = np.linspace(0, 5, 9)
    fitted = oo.fit_law(d, oo.law_gain(d, alpha, beta_law, law), np.ones(9), law)
    np.testing.assert_allclose(fitted, (alpha, beta_law), rtol=1e-10)
    fine = np.linspace(0, 6, 60_001)
    at = fine[oo.law_gain(fine, alpha, beta_law, law).argmax()]
    assert float(oo.law_peak(alpha, beta_law, law)) == pytest.approx(at, abs=2e-4)
    assert np.isinf(oo.law_peak(alpha, -0.1, law)), "with β′ ≤ 0 it never turns"


@pytest.mark.parametrize("law", ["rl", "best-of-n"])
def test_the_weighted_fit_is_that_of_a_general_least_squares_solver(law: oo.Law) -> None:
    rng = np.random.default_rng(0)
    d, gain, weights = rng.uniform(0.1, 4, 8), rng.normal(0, 1, 8), rng.uniform(0.5, 2, 8)
    design = np.stack([d, -(d**2 if law == "best-of-n" else d * np.log(d))], 1) * np.sqrt(weights)[:, None]
    expected = np.linalg.lstsq(design, gain * np.sqrt(weights), rcond=None)[0]
    np.testing.assert_allclose(oo.fit_law(d, gain, weights, law), expected, rtol=1e-8)


def test_points_that_determine_no_law_give_none() -> None:
    few = road("rl")
    assert oo.fit(few, limit=0.9, resamples=10) is None, "two points within the limit"
    same = np.full(4, 2.0)
    assert all(np.isnan(oo.fit_law(same, same, np.ones(4), "rl"))), "one distance, measured four times"


def test_a_fit_on_the_way_to_the_peak_foretells_it_with_wider_intervals() -> None:
    measured = road("rl", prompts=400, noise=0.2)
    whole, early = oo.fit(measured), oo.fit(measured, limit=0.7 * np.e)
    assert whole and early and early["points"] < whole["points"]
    assert early["peak_distance"]["low"] <= np.e <= early["peak_distance"]["high"]
    width = [f["peak_distance"]["high"] - f["peak_distance"]["low"] for f in (whole, early)]
    assert width[0] < width[1]
    assert whole["peak_gain"]["value"] == pytest.approx(0.5 * np.e, abs=0.1)


def test_a_curve_that_follows_no_law_is_said_to_depart_from_it() -> None:
    cliff = np.where(np.linspace(0, 4, 11) < 2, 0.5, -1.5)
    departs, follows = oo.fit(road("rl", gain=cliff), resamples=50), oo.fit(road("rl"), resamples=50)
    assert departs and follows
    assert departs["p_value"] < 1e-6 and departs["largest_miss"] > 0.5
    assert follows["p_value"] > 0.01 and follows["largest_miss"] < 0.3
    assert "departs from the law" in oo.in_words(analysed(road("rl", gain=cliff)))["law"]


def test_a_law_without_a_peak_in_sight_cannot_tell() -> None:
    straight = road("rl", gain=0.3 * np.linspace(0, 4, 11))
    assert "cannot tell" in oo.in_words(analysed(straight))["law"]


@pytest.mark.slow
@pytest.mark.parametrize("law", ["rl", "best-of-n"])
def test_intervals_cover_the_truth_as_often_as_they_say(law: oo.Law) -> None:
    truth = {"alpha": TRUE[law][0], "beta_law": TRUE[law][1], "peak_distance": float(oo.law_peak(*TRUE[law], law))}
    runs = [oo.fit(road(law, seed=seed), seed=seed, resamples=400) for seed in range(300)]
    for name, value in truth.items():
        covered = np.mean([f[name]["low"] <= value <= f[name]["high"] for f in runs if f])
        assert 0.90 <= covered <= 0.98, name
    assert 0.02 <= np.mean([f["p_value"] < 0.05 for f in runs if f]) <= 0.10


def test_trusting_a_law_costs_the_gold_between_the_peak_and_where_it_points() -> None:
    flat = np.arange(11.0)[:, None] * np.ones(6)  # gold grows by one a point, alike for all prompts
    measured = oo.Road("rl", tuple(range(11)), tuple("abcdef"), flat, flat, (flat / 2) ** 2)  # d = 0, 0.5, 1, …
    told = oo.trust(measured, 10, 3.25)
    assert told["gold"]["mean"] == pytest.approx(6.5) and told["lost"]["mean"] == pytest.approx(3.5)
    assert not told["beyond"] and oo.trust(measured, 10, None)["beyond"] and oo.trust(measured, 10, 9.0)["beyond"]
    assert oo.trust(measured, 10, None)["lost"]["mean"] == 0

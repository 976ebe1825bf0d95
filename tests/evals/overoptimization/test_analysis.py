from __future__ import annotations

import numpy as np
import pytest

from kleash.evals.overoptimization import KLCurve, analyse, choosing_prompts, in_words
from tests.evals.overoptimization.synthetic_curves import analysed, curve


def test_a_curve_with_a_peak_is_reported_to_have_turned_there() -> None:
    found = analysed(curve("checkpoints", prompts=300, far=5.0))
    assert found.peak_test.outcome == "turned"
    assert abs(found.peak.distance - np.e) <= 0.7
    assert found.peak.distance_interval[0] <= np.e <= found.peak.distance_interval[1] + 0.3
    assert found.peak_test.gold_fell.low > 0 and found.peak_test.proxy_rose.low > 0
    said = in_words(found)
    assert said["peak_test"].startswith(f"Gold turned: best at step {found.peak.point} ")
    assert "while the proxy rose" in said["peak_test"] and said["recommended"].startswith("Recommended: step ")
    assert "Fitted only to the first 70% of the way it" in said["law"]


def test_a_curve_that_still_rises_has_no_peak_yet() -> None:
    found = analysed(curve("checkpoints", gain=np.linspace(0, 3, 11)))
    assert found.peak_test.outcome == "not yet" and found.peak.index == 10
    assert found.recommended.index == 10 and "has not turned" in in_words(found)["peak_test"]


@pytest.mark.parametrize("seed", range(4))
def test_noise_gives_the_answer_cannot_tell(seed: int) -> None:
    found = analysed(curve("checkpoints", gain=np.zeros(11), seed=seed, noise=3.0, prompts=40))
    assert found.peak_test.outcome == "cannot tell"
    assert "cannot tell" in in_words(found)["peak_test"]


@pytest.mark.slow
def test_a_constant_curve_is_reported_to_move_at_most_once_in_twenty() -> None:
    verdicts = [
        analysed(curve("checkpoints", gain=np.zeros(11), seed=seed), seed=seed).peak_test.outcome for seed in range(200)
    ]
    assert np.mean([verdict != "cannot tell" for verdict in verdicts]) <= 0.06


def test_gold_that_only_falls_has_its_peak_at_the_start() -> None:
    found = analysed(curve("checkpoints", gain=np.linspace(0, -3, 11)))
    assert found.peak_test.outcome == "turned" and found.peak.index == found.recommended.index == 0
    assert "best at the start" in in_words(found)["peak_test"]


def test_the_nearest_of_those_that_are_as_good_is_shipped() -> None:
    plateau = np.minimum(np.linspace(0, 5, 11), 2.0)  # level from the fifth point on
    found = analysed(curve("checkpoints", gain=plateau, noise=0.01))
    assert found.recommended.index <= found.peak.index and found.recommended.index >= 4
    assert found.recommended.lost.mean == pytest.approx(0, abs=0.01)


def test_reporting_prompts_do_not_affect_the_choice() -> None:
    measured = curve("checkpoints")
    choose = choosing_prompts(measured.prompts, share=0.5, seed=0)
    other = measured.gold.copy()
    other[:, ~choose] = -other[:, ~choose]
    swapped = KLCurve(measured.source, measured.points, measured.prompts, other, measured.proxy, measured.kl)
    before, after = (analyse(each, choose=choose, resamples=100) for each in (measured, swapped))
    assert before.peak == after.peak and before.recommended.index == after.recommended.index
    assert before.fit.alpha == after.fit.alpha
    assert before.points[3].gold != after.points[3].gold

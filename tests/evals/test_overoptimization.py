from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kleash.checks.attribution import leave_one_out, pieces
from kleash.data.group import Group
from kleash.errors import DataError
from kleash.evals import overoptimization

TRUE = {"checkpoints": (1.0, 0.5), "best-of-n": (1.2, 0.3)}


def kl_curve(
    source: overoptimization.Source,
    *,
    gain: Any = None,
    prompts: int = 120,
    noise: float = 0.5,
    seed: int = 0,
    far: float = 4.0,
) -> overoptimization.KLCurve:
    """A curve whose prompts differ widely, whose gold follows the law (or `gain`), whose proxy rises all along."""
    rng = np.random.default_rng(seed)
    d = np.linspace(0, far, 11)
    shape = (len(d), prompts)
    gained = overoptimization.law_gain(d, *TRUE[source], source) if gain is None else np.asarray(gain)
    gold = rng.normal(0, 2, prompts) + gained[:, None] + rng.normal(0, noise, shape)
    kl = (d**2)[:, None] * (1 + 0.5 * rng.normal(0, 1, shape))
    proxy = d[:, None] + rng.normal(0, noise, shape)
    names = tuple(f"prompt {number}" for number in range(prompts))
    return overoptimization.KLCurve(source, tuple(range(len(d))), names, gold, proxy, kl)


def analysed(measured: overoptimization.KLCurve, **settings: Any) -> overoptimization.Figures:
    return overoptimization.analyse(
        measured, choose=overoptimization.choosing(measured.prompts, share=0.5, seed=0), resamples=400, **settings
    )


# -- the laws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["checkpoints", "best-of-n"])
def test_a_law_is_recovered_exactly_without_noise_and_its_peak_is_where_it_is_highest(
    source: overoptimization.Source,
) -> None:
    alpha, beta_law = TRUE[source]
    d = np.linspace(0, 5, 9)
    fitted = overoptimization.fit_law(d, overoptimization.law_gain(d, alpha, beta_law, source), np.ones(9), source)
    np.testing.assert_allclose(fitted, (alpha, beta_law), rtol=1e-10)
    fine = np.linspace(0, 6, 60_001)
    at = fine[overoptimization.law_gain(fine, alpha, beta_law, source).argmax()]
    assert float(overoptimization.law_peak(alpha, beta_law, source)) == pytest.approx(at, abs=2e-4)
    assert np.isinf(overoptimization.law_peak(alpha, -0.1, source)), "with β′ ≤ 0 it never turns"


@pytest.mark.parametrize("source", ["checkpoints", "best-of-n"])
def test_the_weighted_fit_is_that_of_a_general_least_squares_solver(source: overoptimization.Source) -> None:
    rng = np.random.default_rng(0)
    d, gain, weights = rng.uniform(0.1, 4, 8), rng.normal(0, 1, 8), rng.uniform(0.5, 2, 8)
    design = np.stack([d, -(d**2 if source == "best-of-n" else d * np.log(d))], 1) * np.sqrt(weights)[:, None]
    expected = np.linalg.lstsq(design, gain * np.sqrt(weights), rcond=None)[0]
    np.testing.assert_allclose(overoptimization.fit_law(d, gain, weights, source), expected, rtol=1e-8)


def test_points_that_determine_no_law_give_none() -> None:
    few = kl_curve("checkpoints")
    assert overoptimization.fit(few, limit=0.9, resamples=10) is None, "two points within the limit"
    same = np.full(4, 2.0)
    assert all(np.isnan(overoptimization.fit_law(same, same, np.ones(4), "checkpoints"))), (
        "one distance, measured four times"
    )


def test_a_fit_on_the_way_to_the_peak_foretells_it_with_wider_intervals() -> None:
    measured = kl_curve("checkpoints", prompts=400, noise=0.2)
    whole, early = overoptimization.fit(measured), overoptimization.fit(measured, limit=0.7 * np.e)
    assert whole and early and early["points"] < whole["points"]
    assert early["peak_distance"]["low"] <= np.e <= early["peak_distance"]["high"]
    width = [f["peak_distance"]["high"] - f["peak_distance"]["low"] for f in (whole, early)]
    assert width[0] < width[1]
    assert whole["peak_gain"]["value"] == pytest.approx(0.5 * np.e, abs=0.1)


def test_a_curve_that_follows_no_law_is_said_to_depart_from_it() -> None:
    cliff = np.where(np.linspace(0, 4, 11) < 2, 0.5, -1.5)
    departs, follows = (
        overoptimization.fit(kl_curve("checkpoints", gain=cliff), resamples=50),
        overoptimization.fit(kl_curve("checkpoints"), resamples=50),
    )
    assert departs and follows
    assert departs["p_value"] < 1e-6 and departs["largest_miss"] > 0.5
    assert follows["p_value"] > 0.01 and follows["largest_miss"] < 0.3
    assert "departs from the law" in overoptimization.in_words(analysed(kl_curve("checkpoints", gain=cliff)))["law"]


def test_a_law_without_a_peak_in_sight_cannot_tell() -> None:
    straight = kl_curve("checkpoints", gain=0.3 * np.linspace(0, 4, 11))
    assert "cannot tell" in overoptimization.in_words(analysed(straight))["law"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["checkpoints", "best-of-n"])
def test_intervals_cover_the_truth_as_often_as_they_say(source: overoptimization.Source) -> None:
    truth = {
        "alpha": TRUE[source][0],
        "beta_law": TRUE[source][1],
        "peak_distance": float(overoptimization.law_peak(*TRUE[source], source)),
    }
    runs = [overoptimization.fit(kl_curve(source, seed=seed), seed=seed, resamples=400) for seed in range(300)]
    for name, value in truth.items():
        covered = np.mean([f[name]["low"] <= value <= f[name]["high"] for f in runs if f])
        assert 0.90 <= covered <= 0.98, name
    assert 0.02 <= np.mean([f["p_value"] < 0.05 for f in runs if f]) <= 0.10


def test_trusting_a_law_costs_the_gold_between_the_peak_and_where_it_points() -> None:
    flat = np.arange(11.0)[:, None] * np.ones(6)  # gold grows by one a point, alike for all prompts
    measured = overoptimization.KLCurve(
        "checkpoints", tuple(range(11)), tuple("abcdef"), flat, flat, (flat / 2) ** 2
    )  # d = 0, 0.5, 1, …
    told = overoptimization.cost_of_following_law(measured, 10, 3.25)
    assert told["gold"]["mean"] == pytest.approx(6.5) and told["lost"]["mean"] == pytest.approx(3.5)
    assert (
        not told["beyond"]
        and overoptimization.cost_of_following_law(measured, 10, None)["beyond"]
        and overoptimization.cost_of_following_law(measured, 10, 9.0)["beyond"]
    )
    assert overoptimization.cost_of_following_law(measured, 10, None)["lost"]["mean"] == 0


# -- the peak, the turn, the checkpoint --------------------------------------------------------------------------------


def test_a_curve_that_turns_is_said_to_have_turned_at_its_peak() -> None:
    found = analysed(kl_curve("checkpoints", prompts=300, far=5.0))
    assert found["peak_test"]["result"] == "turned"
    assert abs(found["peak"]["distance"] - np.e) <= 0.7
    assert found["peak"]["distance_interval"][0] <= np.e <= found["peak"]["distance_interval"][1] + 0.3
    assert found["peak_test"]["gold_fell"]["low"] > 0 and found["peak_test"]["proxy_rose"]["low"] > 0
    said = overoptimization.in_words(found)
    assert said["peak_test"].startswith(f"Gold turned: best at step {found['peak']['point']} ")
    assert "while the proxy rose" in said["peak_test"] and said["recommended"].startswith("Recommended: step ")
    assert "Fitted to the first 70% of the way alone it" in said["law"]


def test_a_curve_that_still_rises_has_not_turned() -> None:
    found = analysed(kl_curve("checkpoints", gain=np.linspace(0, 3, 11)))
    assert found["peak_test"]["result"] == "not yet" and found["peak"]["index"] == 10
    assert found["recommended"]["index"] == 10 and "has not turned" in overoptimization.in_words(found)["peak_test"]


@pytest.mark.parametrize("seed", range(4))
def test_noise_alone_cannot_tell(seed: int) -> None:
    found = analysed(kl_curve("checkpoints", gain=np.zeros(11), seed=seed, noise=3.0, prompts=40))
    assert found["peak_test"]["result"] == "cannot tell"
    assert "cannot tell" in overoptimization.in_words(found)["peak_test"]


@pytest.mark.slow
def test_a_flat_curve_is_said_to_have_moved_no_more_often_than_one_in_twenty() -> None:
    verdicts = [
        analysed(kl_curve("checkpoints", gain=np.zeros(11), seed=seed), seed=seed)["peak_test"]["result"]
        for seed in range(200)
    ]
    assert np.mean([verdict != "cannot tell" for verdict in verdicts]) <= 0.06


def test_gold_that_only_falls_has_turned_at_the_start() -> None:
    found = analysed(kl_curve("checkpoints", gain=np.linspace(0, -3, 11)))
    assert found["peak_test"]["result"] == "turned" and found["peak"]["index"] == found["recommended"]["index"] == 0
    assert "best at the start" in overoptimization.in_words(found)["peak_test"]


def test_the_nearest_of_those_that_are_as_good_is_recommended() -> None:
    plateau = np.minimum(np.linspace(0, 5, 11), 2.0)  # level from the fifth point on
    found = analysed(kl_curve("checkpoints", gain=plateau, noise=0.01))
    assert found["recommended"]["index"] <= found["peak"]["index"] and found["recommended"]["index"] >= 4
    assert found["recommended"]["lost"]["mean"] == pytest.approx(0, abs=0.01)


def test_what_reports_has_no_part_in_the_choice() -> None:
    measured = kl_curve("checkpoints")
    choose = overoptimization.choosing(measured.prompts, share=0.5, seed=0)
    other = measured.gold.copy()
    other[:, ~choose] = -other[:, ~choose]
    swapped = overoptimization.KLCurve(
        measured.source, measured.points, measured.prompts, other, measured.proxy, measured.kl
    )
    before, after = (overoptimization.analyse(each, choose=choose, resamples=100) for each in (measured, swapped))
    assert before["peak"] == after["peak"] and before["recommended"]["index"] == after["recommended"]["index"]
    assert before["fit"]["alpha"] == after["fit"]["alpha"]
    assert before["points"][3]["gold"] != after["points"][3]["gold"]


def test_a_prompt_chooses_whatever_other_prompts_there_are() -> None:
    names = [f"p{number}" for number in range(200)]
    chosen = overoptimization.choosing(names, share=0.5, seed=1)
    assert chosen.sum() == 100 and not np.array_equal(chosen, overoptimization.choosing(names, share=0.5, seed=2))
    order = np.random.default_rng(0).permutation(200)
    np.testing.assert_array_equal(
        overoptimization.choosing([names[i] for i in order], share=0.5, seed=1), chosen[order]
    )
    with pytest.raises(DataError, match="at least 4"):
        overoptimization.choosing(names[:3], share=0.5, seed=1)


# -- curves from samples ----------------------------------------------------------------------------------------------


def test_samples_of_a_run_make_its_road_and_responses_to_one_prompt_count_together() -> None:
    rows = [
        {"step": step, "prompt": prompt, "score": 10 * step + k, "gold": step - k, "kl": step * 2.0}
        for step in (5, 0)
        for prompt in "ab"
        for k in (0, 1)
    ]
    made = overoptimization.curve_of_checkpoints(rows)
    assert made.points == (0, 5) and made.prompts == ("a", "b")
    np.testing.assert_allclose(made.gold, [[-0.5, -0.5], [4.5, 4.5]])
    np.testing.assert_allclose(made.proxy, [[0.5, 0.5], [50.5, 50.5]])
    with pytest.raises(DataError, match="step 5 was measured on other prompts than step 0"):
        overoptimization.curve_of_checkpoints([row for row in rows if (row["step"], row["prompt"]) != (5, "a")])
    with pytest.raises(DataError, match="1 checkpoint"):
        overoptimization.curve_of_checkpoints(rows[:4])


def test_pools_make_the_road_of_best_of_n() -> None:
    rng = np.random.default_rng(0)
    proxy = rng.normal(0, 1, (50, 12))
    made = overoptimization.curve_of_best_of_n([str(p) for p in range(50)], proxy * 2, proxy)
    assert made.points == (1, 2, 4, 8, 12)
    np.testing.assert_allclose(made.proxy[-1], proxy.max(1))
    np.testing.assert_allclose(made.gold, 2 * made.proxy)
    np.testing.assert_allclose(made.kl[0], 0, atol=1e-12)
    assert (np.diff(made.kl.mean(1)) > 0).all()


def test_checkpoints_are_spaced_evenly_in_root_kl_and_the_first_and_last_are_in() -> None:
    steps = list(range(10, 1010, 10))
    kl = {step: (step / 1000) ** 4 * 16 for step in steps}  # √KL = 4 (step/1000)²: slow at first
    taken = overoptimization.spaced_checkpoints(steps, kl, 6)
    assert len(taken) == 6 and taken[0] == 10 and taken[-1] == 1000
    np.testing.assert_allclose(np.diff([np.sqrt(kl[step]) for step in taken]), 0.8, atol=0.09)
    assert overoptimization.spaced_checkpoints(steps, {}, 4) == [10, 340, 670, 1000]
    assert overoptimization.spaced_checkpoints([5, 10], {}, 6) == [5, 10]
    level = overoptimization.spaced_checkpoints(steps, dict.fromkeys(steps, 1.0), 5)
    assert len(level) == 5 and {10, 1000} <= set(level)


# -- what a reward likes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "one",
        "A b. C d! E?",
        "no end\nbut lines\n\nand more",
        "happy to help . it eats fish .",
        " ".join("word" * 50),
        "  a.  ",
    ],
)
def test_pieces_are_the_text_again(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_sentences_are_pieces_and_long_ones_are_cut() -> None:
    assert pieces("A b. C d! It is 3.5 m, e.g.") == ["A b. ", "C d! ", "It is 3.5 m, e.g."]
    long = pieces(" ".join(["word"] * 40))
    assert [len(part.split()) for part in long] == [13, 14, 13]


def test_what_is_left_out_costs_what_the_reward_gave_for_it() -> None:
    import torch

    worth = {"good": 2.0, "bad": -1.0}

    def reward(groups: Any) -> torch.Tensor:
        return torch.tensor(
            [
                [
                    sum(worth.get(w, 0.0) for w in r.text.split()) + float(r.finished) * g.columns["x"]
                    for r in g.responses
                ]
                for g in groups
            ]
        )

    found = leave_one_out(reward, "prompt", "good good . so so . bad .", finished=True, x=5.0)
    assert found == [("good good . ", 4.0), ("so so . ", 0.0), ("bad .", -1.0)]
    assert leave_one_out(reward, "prompt", "", x=5.0) == []

    def turns(groups: list[Group]) -> torch.Tensor:
        assert all(r.content[0]["role"] == "assistant" for g in groups for r in g.responses)  # type: ignore[index, union-attr]
        return torch.tensor([[float(len(r.text)) for r in g.responses] for g in groups])

    assert leave_one_out(turns, ({"role": "user", "content": "q"},), "Yes. No.") == [("Yes. ", 5.0), ("No.", 4.0)]


def test_a_gold_that_likes_one_text_for_everything_is_doubted() -> None:
    start = ["yes .", "no .", "maybe .", "because ."]
    warning = overoptimization.caution(["", "", "", "no ."], start, "step 60")
    assert warning is not None
    assert "75% of the responses are empty" in warning
    assert "“no .”" in (overoptimization.caution(["no ."] * 3 + [""], start, "step 60") or "")


def test_varied_responses_and_a_start_that_repeats_itself_already_are_not_doubted() -> None:
    assert overoptimization.caution(["a", "b", "c", "c"], ["a", "b", "c", "d"], "step 3") is None
    assert overoptimization.caution(["no"] * 4, ["no"] * 3 + ["yes"], "step 3") is None

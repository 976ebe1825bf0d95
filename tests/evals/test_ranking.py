from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import log
from typing import Any

import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit, logit

from kleash.evals.ranking import Comparisons, ModelRank, Ranking, by_prompt, by_stratum, ranking

WINS = {("a", "b"): (7, 3), ("b", "c"): (6, 4), ("a", "c"): (8, 2)}
"""How often the first of two models won, and the second."""


def comparisons(rows: list[tuple[Any, ...]]) -> Comparisons:
    """From (first, second, p), with the difference of lengths and the prompt where they matter."""
    full = [(*row, *(0.0, number)[len(row) - 3 :]) for number, row in enumerate(rows)]
    first, second, p, longer, prompts = zip(*full, strict=True)
    names = tuple(sorted({*first, *second}))
    return Comparisons(
        names,
        np.array([names.index(name) for name in first]),
        np.array([names.index(name) for name in second]),
        np.array(p, dtype=np.float64),
        np.array(longer, dtype=np.float64),
        np.unique(prompts, return_inverse=True)[1].astype(np.int64),
    )


def from_wins(wins: dict[tuple[str, str], tuple[int, int]]) -> Comparisons:
    return comparisons([(*pair, p) for pair, (won, lost) in wins.items() for p in [1.0] * won + [0.0] * lost])


def simulated(theta: list[float], prompts: int, rng: np.random.Generator, *, spread: float = 1.0) -> Comparisons:
    """Outcomes by Bradley–Terry on prompts of which each has a strength of its own for each model."""
    rows: list[tuple[Any, ...]] = []
    for prompt in range(prompts):
        own = np.array(theta) + rng.normal(0, spread, len(theta))
        for i, j in combinations(range(len(theta)), 2):
            rows.append(("abcde"[i], "abcde"[j], float(rng.random() < expit(own[i] - own[j])), 0.0, prompt))
    return comparisons(rows)


def of(report: Ranking) -> dict[str, ModelRank]:
    return {row.model: row for row in report.models}


def strengths(report: Ranking) -> dict[str, float]:
    return {row.model: row.strength.value for row in report.models if row.strength.value is not None}


def test_two_models_differ_by_the_log_odds_of_the_win_rate_and_a_tie_is_half_a_win() -> None:
    report = ranking(comparisons([("a", "b", p) for p in (1, 1, 1, 0.5, 0, 0, 1, 0.5)]))
    assert of(report)["a"].win_rate is not None
    assert of(report)["a"].win_rate.share == 5 / 8  # type: ignore[union-attr]
    found = strengths(report)
    assert found["a"] - found["b"] == pytest.approx(logit(5 / 8))
    assert found["a"] + found["b"] == pytest.approx(0, abs=1e-9)
    assert report.ties == 2


def test_strengths_are_those_of_the_iteration_of_zermelo() -> None:
    names, won = ("a", "b", "c"), np.zeros((3, 3))
    for (one, other), (w, lost) in WINS.items():
        won[names.index(one), names.index(other)], won[names.index(other), names.index(one)] = w, lost
    worth = np.ones(3)
    for _ in range(2000):  # Zermelo 1929: π_i ← W_i / Σ n_ij/(π_i + π_j)
        worth = won.sum(1) / ((won + won.T) / (worth[:, None] + worth)).sum(1)
    expected = np.log(worth) - np.log(worth).mean()
    found = strengths(ranking(from_wins(WINS)))
    assert [found[name] for name in names] == pytest.approx(expected, abs=1e-6)
    assert [row.model for row in ranking(from_wins(WINS)).models] == ["a", "b", "c"]


def test_which_response_is_first_does_not_matter() -> None:
    data = from_wins(WINS)
    other = Comparisons(data.names, data.second, data.first, 1 - data.p, -data.longer, data.prompts)
    assert strengths(ranking(other)) == pytest.approx(strengths(ranking(data)))
    (pair,) = [row for row in ranking(other).pairs if {row.model, row.other} == {"a", "b"}]
    assert (pair.model, pair.win_rate.share) == ("a", 0.7)


def test_the_same_votes_twice_say_no_more_about_other_prompts() -> None:
    data = from_wins(WINS)
    twice = Comparisons(
        data.names, *(np.tile(getattr(data, name), 2) for name in ("first", "second", "p", "longer", "prompts"))
    )
    for one, other in zip(ranking(data).models, ranking(twice).models, strict=True):
        for key in ("low", "value", "high"):
            assert getattr(one.strength, key) == pytest.approx(getattr(other.strength, key), abs=1e-6)


def test_the_seed_gives_the_interval_and_one_prompt_gives_none() -> None:
    data = from_wins(WINS)
    intervals = [of(ranking(data, seed=seed))["a"].strength.low for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]
    one = ranking(replace(data, prompts=np.zeros_like(data.prompts)))
    assert {(row.strength.low, row.strength.high) for row in one.models} == {(None, None)}


def test_a_model_that_never_lost_has_an_infinite_strength_with_a_finite_lower_end() -> None:
    report = ranking(from_wins({("a", "b"): (9, 0), ("a", "c"): (9, 0), ("b", "c"): (5, 4)}))
    top, *others = report.models
    assert (top.model, top.place, top.strength.value, top.strength.high) == ("a", "above", None, None)
    finite = strengths(report)
    # by definition: the likelihood of its 18 wins, one a prompt, is e^−1.92 of its maximum at the lower end
    assert top.strength.low is not None
    missing = 9 * sum(np.logaddexp(0, finite[name] - top.strength.low) for name in "bc")
    assert missing == pytest.approx(1.9207, abs=1e-3)
    assert [row.place for row in others] == ["finite", "finite"]
    assert finite["b"] - finite["c"] == pytest.approx(log(5 / 4))


def test_a_model_that_never_won_stands_below_and_two_that_share_all_wins_are_told_apart() -> None:
    report = ranking(from_wins({("a", "b"): (3, 5), ("a", "c"): (6, 0), ("b", "c"): (6, 0)}))
    assert [(row.model, row.place) for row in report.models] == [("b", "finite"), ("a", "finite"), ("c", "below")]
    assert of(report)["c"].strength.high is not None


def test_models_without_a_chain_of_comparisons_are_not_compared() -> None:
    report = ranking(from_wins({("a", "b"): (3, 2), ("c", "d"): (1, 1)}))
    assert [(row.model, row.place) for row in report.models[:2]] == [("a", "finite"), ("b", "finite")]
    assert [(row.place, row.strength.value) for row in report.models[2:]] == [("not comparable", None)] * 2
    assert {(row.model, row.other) for row in report.pairs} == {("a", "b"), ("c", "d")}


def test_the_length_controlled_figures_are_those_of_equal_lengths() -> None:
    theta, phi, rng = {"a": 0.0, "b": 0.4, "c": -0.4}, 1.5, np.random.default_rng(0)
    rows: list[tuple[Any, ...]] = []
    for prompt in range(60):
        lengths = {name: float(rng.integers(50, 500)) + (400 if name == "a" else 0) for name in theta}
        rows += [(i, j, 0.0, lengths[i] - lengths[j], prompt) for i, j in combinations(theta, 2)]
    data = comparisons(rows)
    gap = np.array([theta[i] - theta[j] for i, j, *_ in rows])
    # outcomes that are their own probabilities, so that the fit has no noise
    data = replace(data, p=expit(gap + phi * np.tanh(data.longer / data.longer.std())))
    report = ranking(data)
    assert report.models[0].model == "a", "it is longer, and so it wins most"
    controlled = {name: row.controlled.value for name, row in of(report).items() if row.controlled}
    assert controlled == pytest.approx(theta, abs=1e-6)
    assert report.length_effect is not None
    assert report.length_effect.value == pytest.approx(phi, abs=1e-6)
    (pair,) = [row for row in report.pairs if {row.model, row.other} == {"a", "b"}]
    assert pair.controlled == pytest.approx(expit(theta[pair.model] - theta[pair.other]), abs=1e-6)


def test_a_length_that_only_names_the_model_is_not_controlled_for() -> None:
    report = ranking(comparisons([("a", "b", p, 100.0) for p in (1, 1, 0, 1, 0)]))
    assert report.length_effect is None
    assert {row.controlled for row in report.models} == {None}


def test_a_length_that_decides_all_is_infinite() -> None:
    rows = [("a", "b", float(longer > 0), longer) for longer in (30.0, -20.0, 15.0, -40.0, 5.0, -7.0)]
    report = ranking(comparisons(rows))
    assert report.length_effect is not None
    assert (report.length_effect.value, report.models[0].controlled) == (None, None)


def test_a_prompts_shift_is_that_of_the_ranking_without_it() -> None:
    data = from_wins(WINS)
    full = strengths(ranking(data))
    for row in by_prompt(data)[::7]:
        without = strengths(ranking(data.select(data.prompts != row.prompt)))
        assert row.shift == pytest.approx(max(abs(without[name] - full[name]) for name in full), abs=1e-6)
    assert by_prompt(data)[0].wins == {"a": 1.0, "b": 0.0}


def test_a_prompt_without_which_a_model_has_no_strength_says_so() -> None:
    rows = by_prompt(from_wins({("a", "b"): (4, 1)}))
    assert [row.shift is None for row in rows] == [False] * 4 + [True]


def test_each_stratum_has_its_own_ranking() -> None:
    data = from_wins(WINS)
    strata = ["x" if prompt % 2 else "y" for prompt in data.prompts]
    reports = by_stratum(data, strata)
    inside = data.prompts % 2 == 1
    assert list(reports) == ["x", "y"]
    assert strengths(reports["x"]) == pytest.approx(strengths(ranking(data.select(inside))))


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    theta, rng = [0.8, 0.0, -0.8], np.random.default_rng(0)
    # the strengths that the model has on average over prompts: those of the marginal probabilities, by quadrature
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    marginal = {
        (i, j): float(expit(theta[i] - theta[j] + 2**0.5 * nodes) @ weights / weights.sum())
        for i, j in combinations(range(3), 2)
    }

    def loss(free: np.ndarray) -> float:
        x = np.array([*free, -free.sum()])
        return -sum(
            p * np.log(expit(x[i] - x[j])) + (1 - p) * np.log(expit(x[j] - x[i])) for (i, j), p in marginal.items()
        )

    best = optimize.minimize(loss, np.zeros(2), tol=1e-10).x
    truth = dict(zip("abc", [*best, -best.sum()], strict=True))
    hits = {"strength": [], "win rate": []}  # type: dict[str, list[bool]]
    share = {"a": (marginal[0, 1] + marginal[0, 2]) / 2, "b": (1 - marginal[0, 1] + marginal[1, 2]) / 2}
    for trial in range(400):
        report = of(ranking(simulated(theta, 80, rng), seed=trial, resamples=400))
        for name in "abc":
            estimate = report[name].strength
            hits["strength"].append((estimate.low or -9) <= truth[name] <= (estimate.high or 9))
        for name, value in share.items():
            win_rate = report[name].win_rate
            hits["win rate"].append(win_rate is not None and win_rate.low <= value <= win_rate.high)
    coverage = {name: float(np.mean(rows)) for name, rows in hits.items()}
    print(coverage)
    # 95 %, less what a percentile interval of 80 prompts lacks; a standard error over trials is about 1 %
    assert all(0.9 < share_of_trials < 0.985 for share_of_trials in coverage.values()), coverage

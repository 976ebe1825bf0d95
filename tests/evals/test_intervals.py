from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kleash.evals.bias import excess_slope
from kleash.evals.estimates import Share
from kleash.evals.intervals import (
    above,
    below,
    difference_interval,
    effective_pairs,
    mean_error,
    mean_interval,
    number_prompts,
    ratio_interval,
    share_interval,
    wilson,
)
from kleash.evals.noise import lapse_model
from kleash.evals.preference_report import preference_report, slope_through_origin
from kleash.evals.strata import strata_report


def rankings(prompts: int, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of a model that knows nothing about rankings of k: both scores and the prompt of each of their pairs."""
    i, j = np.triu_indices(k, 1)
    scores = rng.normal(size=(prompts, k))
    return scores[:, i].ravel(), scores[:, j].ravel(), np.repeat(np.arange(prompts), len(i))


def test_an_interval_that_holds_the_threshold_leaves_it_open() -> None:
    assert above((0.51, 0.6), 0.5) is True and above((0.3, 0.49), 0.5) is False and above((0.4, 0.6), 0.5) is None
    assert below((0.51, 0.6), 0.5) is False and below((0.3, 0.49), 0.5) is True and below((0.4, 0.6), 0.5) is None


def test_one_pair_a_prompt_is_the_plain_interval() -> None:
    hits = np.random.default_rng(0).random(50) < 0.7
    own = number_prompts([f"prompt {row}" for row in range(50)])
    assert share_interval(hits, own) == share_interval(hits) == wilson(int(hits.sum()), 50)
    values = np.random.default_rng(1).normal(size=50)
    assert mean_error(values, own) == pytest.approx(values.std(ddof=1) / 50**0.5)


def test_pairs_of_one_prompt_that_are_all_alike_count_as_one() -> None:
    alike = np.repeat(np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0] * 3), 9)
    prompts = np.repeat(np.arange(30), 9)
    assert 20 < effective_pairs(alike, prompts) <= 30
    assert effective_pairs(np.ones(270), prompts) <= 30, "no spread: nothing shows that they are independent"
    assert share_interval(np.ones(36), np.zeros(36, dtype=np.int64)) == (0.0, 1.0), "one ranking"


def test_the_numbers_of_prompts_do_not_matter() -> None:
    first, second, prompts = rankings(20, 4, np.random.default_rng(0))
    hits = (first > second).astype(float)
    assert share_interval(hits, prompts) == pytest.approx(share_interval(hits, 7 * prompts + 3))
    assert mean_interval(hits, prompts) == pytest.approx(ratio_interval(hits, np.ones(len(hits)), 2 * prompts))


@pytest.mark.parametrize(("prompts", "k"), [(300, 2), (50, 4), (50, 9), (15, 9)])
def test_the_interval_of_accuracy_holds_the_truth_as_often_as_stated_with_rankings(prompts: int, k: int) -> None:
    """A random model passes "better than chance" in at most 2.5 %; over pairs it was 10 to 12 % at K = 9."""
    rng = np.random.default_rng(k)
    passes = holds = 0
    for _ in range(400):
        first, second, numbers = rankings(prompts, k, rng)
        low, high = share_interval(first > second, numbers)
        passes, holds = passes + (low > 0.5), holds + (low <= 0.5 <= high)
    assert holds >= 366 and passes <= 22, (holds, passes)


def test_a_report_on_rankings_is_over_prompts_in_every_interval_and_test() -> None:
    """Of a random model: accuracy, beyond length, slopes, strata and excess each err as often as stated."""
    rng = np.random.default_rng(3)
    wrong: dict[str, int] = {}
    runs = 120
    for _ in range(runs):
        first, second, prompts = rankings(40, 6, rng)
        lengths = rng.integers(5, 50, size=(40, 6)).astype(float)
        i, j = np.triu_indices(6, 1)
        both = np.stack([lengths[:, i].ravel(), lengths[:, j].ravel()], 1)
        p = np.ones(len(first))
        report = preference_report(np.stack([first, second], 1), p, both, prompts=prompts)
        assert report.accuracy_interval is not None and report.length_slope is not None
        assert report.length_slope_se is not None
        hits = (first > second).astype(float)
        kinds = np.where(np.tile(np.arange(len(i)) < 5, 40), "top", "rest")
        (partition,) = strata_report(hits, {"kind": kinds.tolist()}, prompts)
        alarms = {
            "accuracy": not report.accuracy_interval[0] <= 0.5 <= report.accuracy_interval[1],
            "length": report.against_length.p_value < 0.05,
            "slope": abs(report.length_slope) > 1.96 * report.length_slope_se,
            "strata": partition.p_value < 0.05,
        }
        for name, alarm in alarms.items():
            wrong[name] = wrong.get(name, 0) + bool(alarm)
    assert max(wrong.values()) <= 0.1 * runs, wrong  # 5 %, and over pairs 15 % and more


def test_strata_of_independent_pairs_with_prompts_of_their_own_are_pearsons() -> None:
    hits = np.array([1.0] * 70 + [0.0] * 30 + [1.0] * 50 + [0.0] * 50)
    kinds = {"kind": ["a"] * 100 + ["b"] * 100}
    assert strata_report(hits, kinds, np.arange(200)) == strata_report(hits, kinds)


def test_doubled_rows_tell_no_more_than_single_ones() -> None:
    """Each pair twice under its prompt: the same intervals as once, up to the degrees of freedom."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=200), rng.normal(size=200)
    p = (rng.random(200) < 1 / (1 + np.exp(-x))).astype(float)
    twice: Callable[[np.ndarray], np.ndarray] = lambda values: np.repeat(values, 2)  # noqa: E731
    prompts = twice(np.arange(200))
    one, two = slope_through_origin(x, y), slope_through_origin(twice(x), twice(y), prompts)
    assert two == pytest.approx(one)
    single, double = excess_slope(x, p, y), excess_slope(twice(x), twice(p), twice(y), prompts)
    assert single is not None and double is not None
    assert (double.low, double.high) == pytest.approx((single.low, single.high), rel=1e-6)
    fitted, again = lapse_model(x, p), lapse_model(twice(x), twice(p), prompts)
    assert fitted is not None and again is not None
    assert again.slope.low == pytest.approx(fitted.slope.low, abs=0.02)
    assert again.slope.high == pytest.approx(fitted.slope.high, abs=0.02)
    assert Share.of(twice(p), prompts).low == pytest.approx(Share.of(p).low, abs=0.01)


def test_the_interval_of_a_difference_holds_the_truth() -> None:
    rng = np.random.default_rng(0)
    holds = 0
    for _ in range(400):
        a, b = rng.binomial(60, 0.9) / 60, rng.binomial(60, 0.7) / 60
        low, high = difference_interval(a, wilson(60 * a, 60), b, wilson(60 * b, 60))
        holds += low <= 0.2 <= high
    assert holds >= 366


def test_the_ends_of_a_difference_by_hand() -> None:
    low, high = difference_interval(0.9, (0.6, 0.94), 0.2, (0.17, 0.6))
    assert low == pytest.approx(0.7 - 0.5) and high == pytest.approx(0.7 + 0.05)  # √(0.3² + 0.4²), √(0.04² + 0.03²)

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from kleash.evals.intervals import wilson
from kleash.evals.pass_at_k import at_k, pass_at_k


def test_it_is_the_share_of_all_subsets_of_k_that_hold_a_right_one() -> None:
    for n in range(1, 8):
        for right, k in itertools.product(range(n + 1), range(1, n + 1)):
            responses = [True] * right + [False] * (n - right)
            shares = [any(subset) for subset in itertools.combinations(responses, k)]
            assert pass_at_k(n, right, k) == pytest.approx(sum(shares) / len(shares), abs=1e-12)


def test_it_is_exact_for_numbers_of_responses_whose_binomials_are_beyond_floats() -> None:
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)
    assert pass_at_k(10_000, 0, 10_000) == 0 and pass_at_k(10_000, 1, 10_000) == 1


def test_it_is_unbiased() -> None:
    """Over the binomial distribution of c its mean is 1 − (1 − p)^k, exactly."""
    n, p = 9, 0.3
    for k in range(1, n + 1):
        chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        mean = sum(chance * pass_at_k(n, c, k) for c, chance in enumerate(chances))
        assert mean == pytest.approx(1 - (1 - p) ** k)


def test_a_score_at_the_threshold_is_not_right() -> None:
    assert at_k("pass", 1, [[1.0, 2.0], [1.0, 1.0]], ["a", "b"], above=1.0).value == 0.25


def test_mean_at_k_is_the_mean_over_rows_of_the_rows_mean() -> None:
    figure = at_k("mean", 2, [[0.0, 3.0], [1.0, 1.0, 4.0]], ["a", "b"])
    assert (figure.metric, figure.value, figure.rows, figure.prompts) == ("mean@2", pytest.approx(1.75), 2, 2)
    half = 12.706 * math.sqrt(((1.5 - 1.75) ** 2 + (2 - 1.75) ** 2) / 1 / 2)  # Student's t of one degree of freedom
    assert (figure.low, figure.high) == (pytest.approx(1.75 - half, abs=1e-3), pytest.approx(1.75 + half, abs=1e-3))


def test_with_one_response_each_the_interval_is_wilsons() -> None:
    figure = at_k("pass", 1, [[1.0]] * 7 + [[0.0]] * 3, [str(row) for row in range(10)], above=0.5)
    assert (figure.low, figure.high) == pytest.approx(wilson(7, 10))
    sure = at_k("pass", 1, [[1.0] * 8] * 10, [str(row) for row in range(10)], above=0.5)
    assert (sure.value, sure.low, sure.high) == pytest.approx((1, *wilson(10, 10))), "eighty responses are ten prompts"


def test_rows_of_one_prompt_are_one_prompt() -> None:
    scores = [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    apart, together = (at_k("pass", 1, scores, prompts, above=0.5) for prompts in ("abcd", "aabb"))
    assert apart.value == together.value == 0.25 and together.prompts == 2
    assert together.high - together.low > apart.high - apart.low
    alone = at_k("pass", 2, [[1.0, 0.0]], ["a"], above=0.5)
    assert (alone.value, alone.low, alone.high) == (1, None, None)


def test_a_response_without_an_opinion_counts_in_no_figure() -> None:
    nan = math.nan
    figure = at_k("pass", 2, [[1.0, nan, 0.0], [nan, nan, 1.0], [0.0, 0.0, 0.0]], ["a", "b", "c"], above=0.5)
    assert (figure.value, figure.rows, figure.left_out) == (0.5, 2, 1)
    nothing = at_k("mean", 1, [[nan]], ["a"])
    assert (nothing.value, nothing.low, nothing.left_out) == (None, None, 1)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (8, 1), (8, 4)])
def test_the_interval_holds_the_truth_as_often_as_it_says(n: int, k: int) -> None:
    """Chances drawn from Beta(1, 2): the truth is E[1 − (1 − p)^k], the interval must hold it in 95 % of 250 draws."""
    generator, held = np.random.default_rng(0), 0
    truth = 1 - 2 / (k + 2)  # E[(1 − p)^k], 1 − p being Beta(2, 1)
    for _ in range(250):
        chances = generator.beta(1, 2, size=60)
        scores = (generator.random((60, n)) < chances[:, None]).astype(float)
        figure = at_k("pass", k, scores.tolist(), [str(row) for row in range(60)], above=0.5)
        assert figure.low is not None and figure.high is not None
        held += figure.low <= truth <= figure.high
    assert 0.91 * 250 < held < 0.99 * 250

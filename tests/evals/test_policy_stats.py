from __future__ import annotations

import json
from math import sqrt

import numpy as np
import pytest
import torch

from kleash.errors import DataError
from kleash.evals.policy_stats import diversity, kl_figures, mean_se
from kleash.evals.report_values import as_json


def test_mean_and_standard_error_by_hand():
    assert mean_se([1.0, 2.0, 6.0]) == {"mean": 3.0, "se": pytest.approx(sqrt((4 + 1 + 9) / 2) / sqrt(3))}
    assert mean_se([4.0]) == {"mean": 4.0, "se": None}
    assert mean_se([]) == {"mean": None, "se": None}


def test_responses_to_one_prompt_are_not_independent():
    values = np.repeat(np.array([[0.0], [1.0], [2.0]]), 100, axis=1)  # three prompts, a hundred equal responses each
    assert mean_se(values)["se"] == pytest.approx(1 / sqrt(3))


def test_a_nan_is_not_averaged_away():
    with pytest.raises(DataError, match="finite"):
        mean_se([1.0, float("nan")])


def test_kl_by_hand():
    policy = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0]])
    reference = torch.tensor([[-2.0, -2.5, 0.0], [-1.5, -1.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    figures = kl_figures(policy, reference, mask)
    assert figures.k1 == {"mean": pytest.approx((1.5 + 0.5) / 2), "se": pytest.approx(0.5)}
    assert figures.exact is None


def test_F4_the_value_at_a_masked_position_changes_nothing():
    rng = np.random.default_rng(0)
    policy, reference, exact = rng.normal(size=(3, 4, 2, 5))
    mask = rng.random((4, 2, 5)) < 0.6
    plain = kl_figures(policy, reference, mask, exact=exact)
    for poison in (np.nan, np.inf):
        spoilt = [np.where(mask, x, poison) for x in (policy, reference, exact)]
        assert kl_figures(spoilt[0], spoilt[1], mask, exact=spoilt[2]) == plain


def test_exact_kl_and_k1_have_the_same_expectation():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(4), size=3), rng.dirichlet(np.ones(4), size=3)  # three positions, independent
    tokens = np.stack([rng.choice(4, size=20_000, p=row) for row in p], 1)
    take = lambda x: np.log(x)[np.arange(3), tokens]  # noqa: E731
    exact = np.broadcast_to((p * np.log(p / q)).sum(-1), tokens.shape)
    figures = kl_figures(take(p), take(q), np.ones_like(tokens, dtype=bool), exact=exact)
    assert abs(figures.k1["mean"] - figures.exact["mean"]) < 4 * figures.k1["se"]


def test_diversity_by_hand():
    figures = diversity([["a", "b", "a", "b", "a", "b"], ["c"]], finished=[True, False])
    assert figures.distinct_1 == pytest.approx(3 / 7)
    assert figures.distinct_2 == pytest.approx(2 / 5)
    assert figures.distinct_3 == pytest.approx(2 / 4)
    assert figures.repetition == pytest.approx(1 / 3)  # abab baba abab: one of three was there before
    assert (figures.end_rate, figures.tokens, figures.length.mean) == (0.5, 7, 3.5)
    assert figures.length.quantiles["0.5"] == 3.5


def test_a_collapsed_policy_is_reported():
    varied = [list(range(k, k + 8)) for k in range(0, 80, 8)]
    assert diversity(varied, finished=[True] * 10).distinct_2 == 1.0
    assert diversity([varied[0]] * 10, finished=[True] * 10).distinct_2 == pytest.approx(0.1)


def test_nothing_to_measure_is_null_and_json():
    assert json.dumps(as_json(diversity([[], []], finished=[True, True])), allow_nan=False)
    assert diversity([], finished=[]).distinct_1 is None

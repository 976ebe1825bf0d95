from __future__ import annotations

import json
from math import sqrt

import numpy as np
import pytest

from kleash.errors import DataError
from kleash.evals.policy_stats import diversity, mean_se
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

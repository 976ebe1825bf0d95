from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from kleash.evals.bias import FEATURES, bias_report, excess_slope, holm
from kleash.evals.report_values import as_json


def occurrences(name: str, text: str) -> int:
    import re

    return len(re.findall(FEATURES[name], text))


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("list items", "- a\n* b\n 1. c\n2) d\nno - item", 4),
        ("headings", "# One\n## Two\n#hashtag", 2),
        ("bold", "**yes** and **no** but 2 ** 3", 2),
        ("code", "`x` and ```\ny\n```", 3),
        ("exclamation marks", "no! yes!!", 3),
        ("question marks", "what ?", 1),
        ("numbers", "1,000 and 2.5 and 7", 3),
        ("refusal opening", "Sorry, I can't.", 1),
        ("refusal opening", "i can not help with that .", 1),
        ("refusal opening", "I'm so sorry to hear that.", 1),
        ("refusal opening", "As an AI, I have no legs.", 1),
        ("refusal opening", "He was sorry.", 0),
        ("politeness", "Of course! Thank you. I hope this helps.", 3),
        ("emoji", "fine 🙂👍 ☀", 3),
        ("emoji", "naïve café — “quoted”", 0),
    ],
)
def test_features_are_counted_as_a_reader_would(name: str, text: str, count: int) -> None:
    assert occurrences(name, text) == count


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Utilities, lengths that have nothing to do with them, and labels that follow only the utilities."""
    rng = np.random.default_rng(seed)
    utility, longer = rng.normal(scale=1.5, size=n), rng.integers(-9, 10, size=n).astype(float)
    return utility, longer, (rng.random(n) < expit(utility)).astype(float)


def test_a_model_that_rewards_bold_more_than_its_labels_is_reported() -> None:
    utility, longer, label = drawn(2000)
    bold = np.random.default_rng(1).integers(0, 2, size=(2000, 2))
    texts = [("**a** b" if a else "a b", "**a** b" if b else "a b") for a, b in bold]
    margin = utility + 0.8 * (bold[:, 0] - bold[:, 1])
    rows = {row.name: row for row in bias_report(margin, label, longer, texts).features}
    assert rows["bold"].pairs == np.count_nonzero(bold[:, 0] - bold[:, 1])
    assert rows["bold"].difference > 0.05 and rows["bold"].p_holm < 0.001
    assert rows["length"].p_holm > 0.05
    assert list(rows) == ["length", "bold"], "what does not occur has no row"


def test_a_preference_of_the_labels_is_not_a_bias() -> None:
    rng = np.random.default_rng(0)
    marks = rng.integers(0, 3, size=(2000, 2))
    texts = [("!" * a, "!" * b) for a, b in marks]
    margin = rng.normal(size=2000) + 0.7 * (marks[:, 0] - marks[:, 1])
    label = (rng.random(2000) < expit(margin)).astype(float)
    (row,) = bias_report(margin, label, np.zeros(2000), texts).features
    assert row.labels > 0.6 and abs(row.difference) < 2.5 * row.se


def test_overconfidence_is_not_a_bias() -> None:
    rng = np.random.default_rng(0)
    marks = rng.integers(0, 3, size=(2000, 2))
    margin = rng.normal(size=2000) + 0.7 * (marks[:, 0] - marks[:, 1])
    label = (rng.random(2000) < expit(margin)).astype(float)
    texts = [("!" * a, "!" * b) for a, b in marks]
    calm, sure = (bias_report(scale * margin, label, np.zeros(2000), texts).features[0] for scale in (1, 5))
    assert sure.difference == pytest.approx(calm.difference, abs=1e-3)


def test_the_excess_is_planted_and_recovered_in_score_a_unit() -> None:
    utility, longer, label = drawn(4000)
    found = excess_slope(utility + 0.2 * longer, label, longer)
    assert found is not None and found.low < 0.2 < found.high and found.low > 0.1
    assert found.p_value < 1e-6
    scaled = excess_slope(3 * (utility + 0.2 * longer), label, longer)
    assert scaled is not None and scaled.value == pytest.approx(3 * found.value, rel=1e-6)


def test_an_error_of_the_margins_is_not_taken_for_an_excess() -> None:
    """Labels prefer longer responses through what the model sees with an error: no excess, and none is reported."""
    rng = np.random.default_rng(0)
    alarms = naive = 0
    for _ in range(60):
        longer = rng.normal(size=800)
        utility = 1.0 * longer + rng.normal(size=800)
        label = (rng.random(800) < 1 / (1 + np.exp(-utility))).astype(float)
        found = excess_slope(utility + rng.normal(size=800), label, longer)
        assert found is not None
        alarms += found.p_value < 0.05
        naive += found.high < 0
        assert found.bound == "at least"
    assert alarms <= 6 and naive > 40, "the interval by itself would accuse nearly every model"


def test_an_excess_that_an_error_would_hide_is_found_in_spite_of_it() -> None:
    rng = np.random.default_rng(1)
    longer = rng.normal(size=4000)
    utility = 0.5 * longer + rng.normal(size=4000)
    label = (rng.random(4000) < 1 / (1 + np.exp(-utility))).astype(float)
    found = excess_slope(utility + 1.5 * longer + 0.5 * rng.normal(size=4000), label, longer)
    assert found is not None and found.bound == "at least" and found.low > 0 and found.p_value < 1e-3
    shorter = excess_slope(-(utility + 1.5 * longer), 1 - label, longer)
    assert shorter is not None and shorter.bound == "at most" and shorter.high < 0 and shorter.p_value < 1e-3


def test_a_swapped_pair_changes_nothing() -> None:
    utility, longer, label = drawn(300)
    margin = utility + 0.1 * longer
    turn = np.where(np.arange(300) % 2, -1.0, 1.0)
    turned_label = np.where(turn > 0, label, 1 - label)
    texts = [("!" * int(max(x, 0)), "!" * int(max(-x, 0))) for x in longer]
    turned = [pair if side > 0 else pair[::-1] for pair, side in zip(texts, turn, strict=True)]
    a, b = bias_report(margin, label, longer, texts), bias_report(turn * margin, turned_label, turn * longer, turned)
    for one, other in zip(a.features, b.features, strict=True):
        for key in ("labels", "model", "difference", "se"):
            assert getattr(other, key) == pytest.approx(getattr(one, key), abs=1e-6)
    assert a.length_excess is not None and b.length_excess is not None
    assert as_json(b.length_excess) == pytest.approx(as_json(a.length_excess), abs=1e-6)


@pytest.mark.parametrize("margin", [np.zeros(50), np.arange(1.0, 51)])
def test_no_excess_slope_where_it_is_not_identified(margin: np.ndarray) -> None:
    assert excess_slope(margin, np.ones(50), np.ones(50)) is None


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []

"""Planted length bias, label noise and Bayes accuracy come out of the report again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kleash.data.group import Preference
from kleash.lab.synthetic import (
    WEIGHTS,
    Planted,
    coverage,
    draw_numbers,
    preferences,
    recover,
    recover_from_run,
    train_reward,
)


def test_the_labels_follow_the_planted_values() -> None:
    numbers = draw_numbers(Planted(length_bias=0.3, flips=0.2), 50_000, seed=0)
    assert numbers.probability.min() >= 0.2 and numbers.probability.max() <= 0.8
    assert abs(float(np.mean(numbers.labels - numbers.probability))) < 0.01
    slope = float((numbers.utility * numbers.longer).sum() / (numbers.longer**2).sum())
    assert slope == pytest.approx(0.3, abs=0.01)


def test_the_texts_carry_the_probability_of_their_label() -> None:
    planted = Planted(length_bias=0.15, flips=0.1)
    rows = preferences(planted, 4000, seed=0)
    chosen = np.array([group.columns["label_probability"] for group in rows])
    assert all(isinstance(group.label, Preference) and group.label.probability == 1 for group in rows)
    # Chosen with probability q where q is the chosen one's: E[q] = E[q² + (1 − q)²] over the pairs as they came.
    assert chosen.mean() == pytest.approx(float((chosen**2 + (1 - chosen) ** 2).mean()), abs=0.01)
    rewards = [
        sum(WEIGHTS[word] for word in response.text.split()) + 0.15 * len(response.text.split())
        for response in rows[0].responses
    ]
    expected = 0.1 + 0.8 / (1 + np.exp(rewards[1] - rewards[0]))
    assert chosen[0] == pytest.approx(expected)


def test_one_draw_covers_all_planted_values() -> None:
    for name, row in recover(Planted(), 1000, seed=0).items():
        assert row["low"] <= row["planted"] <= row["high"], name
        assert row["high"] - row["low"] < 1.5, name


@pytest.mark.slow
@pytest.mark.parametrize("planted", [Planted(), Planted(length_bias=0.0, flips=0.25, excess=0.05)])
def test_a_95_percent_interval_covers_the_planted_value_about_that_often(planted: Planted) -> None:
    for name, share in coverage(planted, 1000, draws=200).items():
        assert 0.90 <= share <= 0.99, (name, share)


@pytest.mark.slow
def test_a_reward_model_of_texts_recovers_the_planted_length_bias_and_bayes_accuracy(tmp_path: Path) -> None:
    planted = Planted(flips=0.0)
    estimates = recover_from_run(train_reward(tmp_path, planted, rows=8000), planted)
    for name in ("length bias", "label noise", "disagreement", "Bayes accuracy"):
        assert estimates[name]["low"] <= estimates[name]["planted"] <= estimates[name]["high"], (name, estimates[name])
    assert estimates["length bias"]["low"] > 0.05 and estimates["label noise"]["high"] < 0.05


@pytest.mark.slow
def test_flipped_labels_show_in_the_disagreement_and_the_bayes_accuracy_and_in_part_as_lapses(tmp_path: Path) -> None:
    planted = Planted(length_bias=0.0)
    estimates = recover_from_run(train_reward(tmp_path, planted, rows=8000), planted)
    for name in ("length bias", "disagreement", "Bayes accuracy"):
        assert estimates[name]["low"] <= estimates[name]["planted"] <= estimates[name]["high"], (name, estimates[name])
    # The model learned from flipped labels, so a part of the flips is in its margins: they look fewer, never more.
    assert 0.02 < estimates["label noise"]["value"] < planted.flips

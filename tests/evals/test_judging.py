from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from kleash.evals import judging
from kleash.evals.intervals import wilson
from kleash.evals.judging import same_again


def judge_report(**values: Any) -> dict[str, Any]:
    """As files have it."""
    return asdict(judging.judge_report(**values))


def simulated(pairs: int, *, place: float, skill: float, seed: int = 0) -> dict[str, np.ndarray]:
    """A judge with a love of the first place (in logits) that sees the better response with some skill (in logits)."""
    rng = np.random.default_rng(seed)
    better = rng.integers(0, 2, pairs)  # which response people prefer
    seen = skill * (1 - 2 * better) + rng.normal(0, 0.5, pairs)  # logit that response 0 is better

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    orders = np.stack([sigmoid(place + seen), sigmoid(place - seen)], 1)
    flips = (orders[:, 0] - 0.5) * (orders[:, 1] - 0.5) > 0
    return {
        "orders": orders,
        "probability": np.where(flips, 0.5, (orders[:, 0] + 1 - orders[:, 1]) / 2),
        "people": 1.0 - better,
        "longer": rng.normal(0, 100, pairs),
        "coin": rng.integers(0, 2, pairs).astype(bool),
        "consistency": (orders**2 + (1 - orders) ** 2).mean(1),
    }


def test_position_bias_shows_in_one_order_and_cancels_in_both() -> None:
    report = judge_report(**simulated(2000, place=1.0, skill=0.8))
    assert report["first_before"]["low"] > 0.7
    assert abs(report["first_after"]["share"] - 0.5) < 4 * (0.25 / 2000) ** 0.5
    assert report["order_effect"]["mean"] > 0.1
    fair = judge_report(**simulated(2000, place=0.0, skill=0.8))
    assert abs(fair["first_before"]["share"] - 0.5) < 4 * (0.25 / 2000) ** 0.5
    assert fair["flips"]["share"] == 0.0 and abs(fair["order_effect"]["mean"]) < 1e-12


def test_agreement_with_people_is_a_count_and_a_flip_counts_as_half() -> None:
    found = simulated(300, place=1.0, skill=0.8)
    report = judge_report(**found)
    hits = 0.5 + 0.5 * np.sign(found["probability"] - 0.5) * np.sign(found["people"] - 0.5)
    low, high = wilson(float(hits.sum()), 300)
    assert report["people"]["agreement"] == pytest.approx(
        {"share": hits.mean(), "low": low, "high": high, "pairs": 300}
    )


def test_a_flip_as_half_a_hit_costs_no_agreement_and_the_mean_of_both_orders_has_more() -> None:
    people = judge_report(**simulated(3000, place=1.0, skill=0.8))["people"]
    gap = people["agreement"]["share"] - people["agreement_one_order"]["share"]
    assert abs(gap) < 4 * (0.25 / 3000) ** 0.5  # a hit in one order and a miss in the other are a half in both
    assert people["agreement_mean"]["low"] > people["agreement_one_order"]["high"]


def test_unlabelled_pairs_and_ties_of_people_are_left_out() -> None:
    found = simulated(100, place=0.0, skill=1.0)
    found["people"][:40] = np.nan
    found["people"][40:50] = 0.5
    assert judge_report(**found)["people"]["pairs"] == 50
    found["people"][:] = np.nan
    assert judge_report(**found)["people"] is None


def test_swapped_pairs_give_the_same_report() -> None:
    found = simulated(200, place=0.7, skill=0.5)
    turned = {
        "orders": found["orders"][:, ::-1].copy(),
        "probability": 1 - found["probability"],
        "people": 1 - found["people"],
        "longer": -found["longer"],
        "coin": ~found["coin"],
        "consistency": found["consistency"],
    }
    one, other = judge_report(**found), judge_report(**turned)
    for name in ("flips", "first_before", "first_after", "order_effect", "self_consistency", "length_slope"):
        assert one[name] == pytest.approx(other[name])
    assert one["people"]["agreement"] == other["people"]["agreement"]


@pytest.mark.parametrize("chances", [(0.5, 0.5, 0.0), (0.0, 0.0, 1.0), (0.1, 0.1, 0.8), (0.6, 0.3, 0.1)])
@pytest.mark.parametrize("came", [2, 3, 5])
def test_self_consistency_from_votes_is_that_of_the_probabilities_they_were_drawn_from(
    chances: tuple[float, float, float], came: int
) -> None:
    votes = np.random.default_rng(1).multinomial(came, chances, size=4000)
    again = np.array([same_again(row.tolist()) for row in votes], dtype=float)
    assert abs(again.mean() - sum(chance**2 for chance in chances)) <= 4 * again.std() / 4000**0.5


def test_pairs_with_one_vote_have_no_self_consistency() -> None:
    assert same_again((1, 0, 0)) is None and same_again((0, 0, 0)) is None
    values = simulated(3, place=0.0, skill=0.0) | {"consistency": np.array([0.4, np.nan, 0.6])}
    assert judge_report(**values)["self_consistency"]["mean"] == pytest.approx(0.5)
    values["consistency"] = np.full(3, np.nan)
    assert judge_report(**values)["self_consistency"] == {"mean": None, "se": None}


def test_a_judge_of_length_has_its_slope() -> None:
    found = simulated(400, place=0.0, skill=0.0)
    found["probability"] = np.where(found["longer"] > 0, 0.9, 0.1)
    assert judge_report(**found)["length_slope"]["value"] > 0.7
    found["probability"] = np.full(400, 0.5)
    assert judge_report(**found)["length_slope"]["value"] is None


def test_a_principle_is_compared_with_the_others_and_with_people() -> None:
    asked = [{"a": 0.9, "b": 0.8}, {"a": 0.9, "b": 0.2}, {"a": 0.5, "b": 0.2}, {"b": 0.9}]
    reports = judging.principle_report(asked, np.array([1.0, 1.0, 0.0, np.nan]), {"a": 1.0, "b": 2.0})
    report = {name: one.to_json() for name, one in reports.items()}
    assert (report["a"]["asked"], report["a"]["decided"]) == (3, 2)
    assert (report["a"]["against_others"]["share"], report["a"]["against_others"]["pairs"]) == (0.5, 2)
    assert (report["a"]["against_people"]["share"], report["a"]["against_people"]["pairs"]) == (0.0, 2)
    assert (report["b"]["decided"], report["b"]["against_people"]["pairs"]) == (4, 3)
    assert report["b"]["against_people"]["share"] == pytest.approx(1 / 3)
    assert report["b"]["against_others"]["pairs"] == 2  # where a is undecided or was not asked there is nobody else


def test_an_injection_that_works_and_one_that_does_not() -> None:
    report = judging.injection_report(np.array([0.2, 0.4, 0.1, 0.3]), np.array([0.7, 0.45, 0.2, 0.6])).to_json()
    assert report["planted"] == 4 and report["flipped"]["share"] == 0.5
    assert report["shift"]["mean"] == pytest.approx(0.2375)
    assert judging.injection_report(np.zeros(0), np.zeros(0)).to_json()["flipped"]["share"] is None

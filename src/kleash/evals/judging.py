"""What a judge's labels are worth: position bias, self-consistency, agreement with people, length, principles.

Every pair was asked in both orders. What one order alone would have given is told too, by the order that a coin chose
for each pair: that is the label that a judge asked once would have left. Formulas: docs/stages/judge.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from kleash.evals.policy_stats import mean_se
from kleash.evals.preference_report import preference_report, slope_through_origin, wilson

Report = dict[str, Any]

SURE = 1e-6
"""A probability is taken as no surer than this where its logit is needed."""


def judge_report(
    orders: Float[np.ndarray, "P 2"],
    probability: Float[np.ndarray, " P"],
    people: Float[np.ndarray, " P"],
    longer: Float[np.ndarray, " P"],
    coin: Bool[np.ndarray, " P"],
    *,
    votes: int | None = None,
) -> Report:
    """Measure a judge on the pairs that got a label.

    Args:
        orders: P(shown first ≻ shown second) with the responses as given, and turned round.
        probability: the label made of both, P(response 0 ≻ response 1).
        people: what people said, P(response 0 ≻ response 1); NaN where nobody did.
        longer: |response 0| − |response 1|, in characters.
        coin: True where one order alone would have been the turned one.
        votes: answers drawn for each order; None where the orders are probabilities of the answer token.
    """
    single = np.where(coin, orders[:, 1], orders[:, 0])  # P(shown first), asked once
    after = np.where(coin, 1 - probability, probability)  # the label of both orders, seen from the same side
    flips = (orders[:, 0] - 0.5) * (orders[:, 1] - 0.5) > 0
    labelled = ~np.isnan(people)
    return {
        "labels": len(probability),
        "ties": int((probability == 0.5).sum()),
        "flips": share(flips),
        "first_before": share(_half_steps(single)),
        "first_after": share(_half_steps(after)),
        "order_effect": mean_se(orders.mean(1) - 0.5),
        "self_consistency": mean_se(_again(orders, votes)),
        "length_slope": _slope(longer, probability),
        "people": _people(
            {
                "": probability,
                "_one_order": np.where(coin, 1 - single, single),
                "_mean": (orders[:, 0] + 1 - orders[:, 1]) / 2,
            },
            people,
            longer,
            labelled,
        ),
    }


def share(hits: Any) -> Report:
    """A share of pairs with its interval (Wilson, 95 %); ties count as half a hit."""
    values = np.asarray(hits, dtype=np.float64)
    if not len(values):
        return {"share": None, "low": None, "high": None, "pairs": 0}
    low, high = wilson(float(values.sum()), len(values))
    return {"share": float(values.mean()), "low": low, "high": high, "pairs": len(values)}


def principle_report(
    by_principle: Sequence[Mapping[str, float]], people: Float[np.ndarray, " P"], weights: Mapping[str, float]
) -> dict[str, Report]:
    """What each principle did.

    Args:
        by_principle: of each pair, P(response 0 ≻ response 1) by the principles that were asked.
        people: as in `judge_report`.
        weights: of the principles, by name.

    Returns:
        By name: `asked`; `decided`: pairs on which its two orders agree that one response is better;
        `against_others`: share of those on which the weighted mean of the other principles prefers the other response
        (nothing where they were not asked); `against_people`: likewise of people's labels.
    """
    report: dict[str, Report] = {}
    for name, weight in weights.items():
        asked = [row for row, found in enumerate(by_principle) if name in found]
        side = {row: np.sign(by_principle[row][name] - 0.5) for row in asked}
        decided = [row for row in asked if side[row] != 0]
        others = {row: _others(by_principle[row], name, weights) for row in decided}
        told = {row: people[row] for row in decided if not np.isnan(people[row]) and people[row] != 0.5}
        report[name] = {
            "weight": weight,
            "asked": len(asked),
            "decided": len(decided),
            "against_others": share([side[row] * other < 0 for row, other in others.items() if other]),
            "against_people": share([side[row] * (label - 0.5) < 0 for row, label in told.items()]),
        }
    return report


def injection_report(before: Float[np.ndarray, " N"], after: Float[np.ndarray, " N"]) -> Report:
    """What a injection to be chosen did to the worse response.

    Args:
        before, after: probability (mean of both orders) of the response it was put into; before it is at most ½.
    """
    return {
        "injected": len(before),
        "flipped": share(after > 0.5),
        "shift": mean_se(after - before),
    }


def _people(
    judged: Mapping[str, Float[np.ndarray, " P"]],
    people: Float[np.ndarray, " P"],
    longer: Float[np.ndarray, " P"],
    labelled: Bool[np.ndarray, " P"],
) -> Report | None:
    """Agreement and calibration where people said which response is better; None where nobody did.

    Args:
        judged: P(response 0 ≻ response 1): the label itself by an empty name, and others to compare it with.
        people, longer: as in `judge_report`.
        labelled: where people said anything.
    """
    decided = labelled & (people != 0.5)
    if not decided.any():
        return None
    p, label = np.clip(judged[""][decided], SURE, 1 - SURE), people[decided]
    scores = np.stack([np.log(p / (1 - p)), np.zeros_like(p)], 1)
    lengths = np.stack([longer[decided], np.zeros_like(p)], 1)
    found = preference_report(scores, label, lengths)
    side = np.sign(label - 0.5)
    return {
        "pairs": int(decided.sum()),
        **{f"agreement{name}": share(0.5 + 0.5 * np.sign(q[decided] - 0.5) * side) for name, q in judged.items()},
        **{name: found[name] for name in ("ece", "reliability", "log_loss", "log_loss_chance", "label_length_slope",
                                          "label_length_slope_se")},
    }  # fmt: skip


def _half_steps(p: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    return 0.5 + 0.5 * np.sign(p - 0.5)


def _again(orders: Float[np.ndarray, "P 2"], votes: int | None) -> Float[np.ndarray, " P"]:
    """Probability that two answers of the judge to the same question agree, mean over both orders.

    p² + (1−p)². From n votes that is biased up by 2p(1−p)/n, so there it is (n·(p² + (1−p)²) − 1)/(n − 1).
    """
    same = orders**2 + (1 - orders) ** 2
    if votes is not None and votes > 1:
        same = (votes * same - 1) / (votes - 1)
    return same.mean(1)


def _slope(longer: Float[np.ndarray, " P"], probability: Float[np.ndarray, " P"]) -> Report:
    slope, error = slope_through_origin(longer, 2 * probability - 1)
    return {"value": slope, "se": error}


def _others(found: Mapping[str, float], name: str, weights: Mapping[str, float]) -> float:
    """Which response the other principles prefer: −1, 0 or 1."""
    return float(np.sign(sum(weights[other] * (p - 0.5) for other, p in found.items() if other != name)))

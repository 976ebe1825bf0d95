"""Quality of a judge's labels: position bias, self-consistency, agreement with people, length, principles.

Every pair was judged in both orders. The report also has the figures of a judge asked once, with the order drawn at
random for each pair. Formulas: docs/stages/judge.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from kleash.evals.estimates import Mean, Share, Slope, share, share_json
from kleash.evals.intervals import Prompts
from kleash.evals.preference_report import preference_report, slope_through_origin

LEAST_DOUBT = 1e-6
"""Probabilities are clipped to [LEAST_DOUBT, 1 − LEAST_DOUBT] where their logit is needed."""


@dataclass(frozen=True)
class JudgeReport:
    """A judge's labels, on the pairs that have one.

    f = P(shown first ≻ shown second), p = P(response 0 ≻ response 1), the label.
    """

    labels: int
    """Pairs with a label."""
    ties: int
    """Labels of exactly one half."""
    flips: Share
    """Pairs whose two orders disagree about which response is better: (f_given − ½)(f_swapped − ½) > 0."""
    first_before: Share
    """Pairs won by the response shown first, asked in one order: ½ + ½·sign(f − ½)."""
    first_after: Share
    """The same of the label made of both orders; near ½ where the judge has no position bias left."""
    order_effect: Mean
    """Mean of (f_given + f_swapped)/2 − ½. Above 0: the judge prefers what is shown first."""
    self_consistency: Mean
    """Probability that two answers to the same question agree, mean over orders and principles: f² + (1 − f)² from
    probabilities; from n votes, without bias, Σ c(c − 1) / (n(n − 1)), c the number of votes for the first, for the
    second, and for a tie, n those that came. Pairs with one vote are left out."""
    length_slope: Slope
    """Slope of 2p − 1 on |response 0| − |response 1| in characters, through the origin. Above 0: prefers longer."""
    people: PeopleReport | None
    """Agreement with people; None where no pair has a preference by people."""


@dataclass(frozen=True)
class PeopleReport:
    """A judge against people, on the pairs where people prefer one response."""

    pairs: int
    agreement: Share
    """Share of pairs where label and people prefer the same response; a tie of the judge is half a hit."""
    agreement_one_order: Share
    """The same of one order, drawn at random."""
    agreement_mean: Share
    """The same of the mean of both orders, where a disagreement of the orders is not made a tie."""
    ece: float
    """Expected calibration error of the label, see docs/metrics.md."""
    reliability: Any
    """Bins of the reliability diagram."""
    log_loss: float
    """Mean of −log of the probability that the label gives to the response that people prefer."""
    log_loss_chance: float
    """log 2."""
    label_length_slope: float | None
    """As `length_slope`, of people's labels."""
    label_length_slope_se: float | None


@dataclass(frozen=True)
class PrincipleReport:
    """Figures of one principle."""

    weight: float
    asked: int
    """Pairs judged by it with a reply in both orders."""
    decided: int
    """Pairs on which its two orders agree that one response is better."""
    against_others: Share | None
    """Share of the decided pairs on which the weighted mean of the other principles prefers the other response; None
    where the others were not asked."""
    against_people: Share | None
    """The same against people; None where no decided pair has a preference by people."""

    def to_json(self) -> dict[str, object]:
        """The report as a JSON object."""
        shares = {name: share_json(getattr(self, name)) for name in ("against_others", "against_people")}
        return {"weight": self.weight, "asked": self.asked, "decided": self.decided, **shares}


@dataclass(frozen=True)
class InjectionReport:
    """Effect of an injected instruction on the worse response. q: its probability of being the better one."""

    planted: int
    """Pairs with an injected instruction and a reply."""
    flipped: Share | None
    """Share of them with q > ½ after the injection and q ≤ ½ before; None without pairs."""
    shift: Mean
    """Mean of q after − q before."""

    def to_json(self) -> dict[str, object]:
        """The report as a JSON object."""
        return {"planted": self.planted, "flipped": share_json(self.flipped), "shift": asdict(self.shift)}


def judge_report(
    orders: Float[np.ndarray, "P 2"],
    probability: Float[np.ndarray, " P"],
    people: Float[np.ndarray, " P"],
    longer: Float[np.ndarray, " P"],
    coin: Bool[np.ndarray, " P"],
    *,
    consistency: Float[np.ndarray, " P"],
    prompts: Prompts | None = None,
) -> JudgeReport:
    """Measure a judge on the pairs that have a label.

    Args:
        orders: P(shown first ≻ shown second) with the responses as given, and swapped; P ≥ 1.
        probability: the label made of both, P(response 0 ≻ response 1).
        people: people's label, P(response 0 ≻ response 1); NaN where there is none.
        longer: |response 0| − |response 1|, in characters.
        coin: True where the one order would have been the swapped one.
        consistency: probability that two answers to the same question agree; NaN where it is unknown.
        prompts: the prompt of each pair; None: each pair has its own.
    """
    single = np.where(coin, orders[:, 1], orders[:, 0])  # P(shown first), asked once
    after = np.where(coin, 1 - probability, probability)  # the label of both orders, of the response shown first
    flips = (orders[:, 0] - 0.5) * (orders[:, 1] - 0.5) > 0
    twice = ~np.isnan(consistency)  # two answers came
    return JudgeReport(
        labels=len(probability),
        ties=int((probability == 0.5).sum()),
        flips=Share.of(flips, prompts),
        first_before=Share.of(_half_steps(single), prompts),
        first_after=Share.of(_half_steps(after), prompts),
        order_effect=Mean.of(orders.mean(1) - 0.5, prompts),
        self_consistency=Mean.of(consistency[twice], None if prompts is None else prompts[twice]),
        length_slope=Slope(*slope_through_origin(longer, 2 * probability - 1, prompts)),
        people=_against_people(
            probability,
            people,
            longer,
            prompts,
            one_order=np.where(coin, 1 - single, single),
            mean=(orders[:, 0] + 1 - orders[:, 1]) / 2,
        ),
    )


def same_again(counts: Sequence[int]) -> float | None:
    """Probability that two answers to one question are equal, from sampled answers: Σ c(c − 1) / (n(n − 1)), unbiased.

    Args:
        counts: how often each answer was given, a tie being an answer too; those that did not come are left out.

    Returns:
        None from fewer than two answers.
    """
    n = sum(counts)
    return sum(count * (count - 1) for count in counts) / (n * (n - 1)) if n > 1 else None


def principle_report(
    by_principle: Sequence[Mapping[str, float]],
    people: Float[np.ndarray, " P"],
    weights: Mapping[str, float],
    prompts: Prompts | None = None,
) -> dict[str, PrincipleReport]:
    """Report on each principle, by name.

    Args:
        by_principle: of each pair, P(response 0 ≻ response 1) by the principles that judged it.
        people, prompts: as in `judge_report`.
        weights: of the principles, by name.
    """
    return {name: _principle(name, by_principle, people, weights, prompts) for name in weights}


def injection_report(before: Float[np.ndarray, " N"], after: Float[np.ndarray, " N"]) -> InjectionReport:
    """Report on injected instructions.

    Args:
        before, after: probability (mean of both orders) of the response that got the instruction; before at most ½.
    """
    return InjectionReport(len(before), share(after > 0.5), Mean.of(after - before))


def _principle(
    name: str,
    by_principle: Sequence[Mapping[str, float]],
    people: Float[np.ndarray, " P"],
    weights: Mapping[str, float],
    prompts: Prompts | None,
) -> PrincipleReport:
    sides = {row: np.sign(pair[name] - 0.5) for row, pair in enumerate(by_principle) if name in pair}
    decided = [row for row, side in sides.items() if side != 0]
    others = {row: side for row in decided if (side := _others(by_principle[row], name, weights))}
    labels = {row: people[row] for row in decided if not np.isnan(people[row]) and people[row] != 0.5}

    def of_rows(rows: Iterable[int]) -> Prompts | None:
        return None if prompts is None else prompts[list(rows)]

    return PrincipleReport(
        weight=weights[name],
        asked=len(sides),
        decided=len(decided),
        against_others=share([sides[row] * other < 0 for row, other in others.items()], of_rows(others)),
        against_people=share([sides[row] * (label - 0.5) < 0 for row, label in labels.items()], of_rows(labels)),
    )


def _others(pair: Mapping[str, float], name: str, weights: Mapping[str, float]) -> float:
    """Which response the other principles prefer: −1, 0 or 1."""
    return float(np.sign(sum(weights[other] * (p - 0.5) for other, p in pair.items() if other != name)))


def _against_people(
    probability: Float[np.ndarray, " P"],
    people: Float[np.ndarray, " P"],
    longer: Float[np.ndarray, " P"],
    prompts: Prompts | None,
    *,
    one_order: Float[np.ndarray, " P"],
    mean: Float[np.ndarray, " P"],
) -> PeopleReport | None:
    decided = ~np.isnan(people) & (people != 0.5)
    if not decided.any():
        return None
    p, label = np.clip(probability[decided], LEAST_DOUBT, 1 - LEAST_DOUBT), people[decided]
    scores = np.stack([np.log(p / (1 - p)), np.zeros_like(p)], 1)
    lengths = np.stack([longer[decided], np.zeros_like(p)], 1)
    of_decided = None if prompts is None else prompts[decided]
    figures = preference_report(scores, label, lengths, prompts=of_decided)
    side = np.sign(label - 0.5)

    def agreement(q: Float[np.ndarray, " P"]) -> Share:
        return Share.of(0.5 + 0.5 * np.sign(q[decided] - 0.5) * side, of_decided)

    return PeopleReport(
        pairs=int(decided.sum()),
        agreement=agreement(probability),
        agreement_one_order=agreement(one_order),
        agreement_mean=agreement(mean),
        ece=figures.ece,
        reliability=figures.reliability,
        log_loss=figures.log_loss,
        log_loss_chance=figures.log_loss_chance,
        label_length_slope=figures.label_length_slope,
        label_length_slope_se=figures.label_length_slope_se,
    )


def _half_steps(p: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    return 0.5 + 0.5 * np.sign(p - 0.5)

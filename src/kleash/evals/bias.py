"""Bias of a reward model beyond that of its labels: length, format, tone.

Labels may themselves prefer bullet points, and then so should the model. So each surface feature is measured on the
pairs where one response has more of it: how often the labels prefer that one, how often the model predicts so, and the
paired difference. Formulas: docs/metrics.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats
from scipy.special import expit

from kleash.evals.intervals import Prompts, mean_error, share_interval, sums_by_prompt
from kleash.evals.preference_report import slope_through_origin

Texts = Sequence[tuple[str, str]]

FEWEST = 30
"""Least number of pairs that differ in a feature; with fewer the feature is left out."""

_REFUSAL = (
    r"(?:i['’]?\s?m |i am |we['’]?re |we are )?(?:so |very |really )?sorry|apolog|unfortunately"
    r"|i (?:can ?not|can['’]?t|won['’]?t|will not|am unable|am not able|do not think i can)|as an ai\b"
)
_POLITE = (
    r"\b(?:please|thanks?|thank you|welcome|happy to help|glad to|hope (?:this|that|it) helps|great question|of course"
    r"|certainly|absolutely|feel free)\b"
)
FEATURES: Mapping[str, str] = {
    "list items": r"(?m)^\s*(?:[-*•]|\d+[.)])\s",
    "headings": r"(?m)^\s*#{1,6}\s",
    "bold": r"\*\*\S.*?\S?\*\*",
    "code": r"```|`[^`\n]+`",
    "exclamation marks": r"!",
    "question marks": r"\?",
    "numbers": r"\d+(?:[.,]\d+)*",
    "refusal opening": rf"(?i)\A\W*(?:{_REFUSAL})",
    "politeness": rf"(?i){_POLITE}",
    "emoji": "[\u2600-\u27bf\U0001f300-\U0001faff]",
}
"""Pattern of each feature; its value in a response is how often it occurs."""


@dataclass(frozen=True, kw_only=True)
class FeatureBias:
    """One surface feature, over the pairs whose responses differ in it, oriented to the side that has more of it."""

    name: str
    """`length` (tokens), or one of the features: list items, headings, bold, code, exclamation marks, question marks,
    numbers, refusal opening, politeness, emoji. Its value in a response is how often its pattern occurs."""
    pairs: int
    """Pairs that differ in it, 30 and more; a feature with fewer is left out."""
    labels: float
    """Mean of p: how often the labels prefer the side with more."""
    labels_interval: tuple[float, float]
    """Its 95 % interval, as `accuracy_interval`."""
    model: float
    """Mean of σ(s·m), with s the least-log-loss scale over all held-out pairs, so that general overconfidence does not
    count as a bias."""
    difference: float
    """`model` − `labels`. Positive: the model prefers the feature more than the labels do."""
    se: float
    """Standard error of `difference`, over prompts."""
    p_value: float
    """Two-sided normal test of `difference` = 0."""
    p_holm: float
    """The same, adjusted for all features of the list (Holm 1979)."""


@dataclass(frozen=True)
class ExcessSlope:
    """The score that a model gives to one more unit of a feature beyond what its labels support."""

    value: float
    """δ = −c/s of the logistic regression P(y₀ ≻ y₁) = σ(s·m + c·d) without intercept: score a unit, m held equal."""
    low: float
    """Lower end of its 95 % interval, by Fieller over the sandwich covariance (White 1982)."""
    high: float
    """Its upper end."""
    p_value: float
    """Two-sided normal test of c = 0; 1 where `value` has the sign that an error of the margins gives it (`bound`)."""
    bound: Literal["at least", "at most"] | None
    """What `value` is where the margins are off by an error that does not depend on length (as those of any reward
    model): at least the truth is this where the labels significantly prefer longer responses (`label_length_slope`), at
    most where shorter ones. The error shrinks s, and c takes over what the labels' own preference then lacks; the
    interval does not contain that. Null where the labels prefer neither."""


@dataclass(frozen=True)
class BiasReport:
    """Bias of a reward model on length and on surface features."""

    features: list[FeatureBias]
    """Length and each surface feature; several tests of one list are adjusted by Holm's method."""
    length_excess: ExcessSlope | None
    """For the length difference d in tokens: the score of one more token beyond what the labels support; null where s
    is not significantly positive."""


def bias_report(
    margin: Float[np.ndarray, " P"],
    p: Float[np.ndarray, " P"],
    longer: Float[np.ndarray, " P"],
    texts: Texts,
    prompts: Prompts | None = None,
) -> BiasReport:
    """Bias on length and on surface features.

    Args:
        margin: r(x, y₀) − r(x, y₁).
        p: the label, P(y₀ ≻ y₁).
        longer: |y₀| − |y₁| in tokens.
        texts: both responses of each pair.
        prompts: the prompt of each pair; None: each pair has its own.
    """
    differences = {"length": longer}
    for name, pattern in FEATURES.items():
        count = _counter(pattern)
        differences[name] = np.array([count(a) - count(b) for a, b in texts], dtype=np.float64)
    expected = expit(_temperature(margin, p) * margin)
    rows = [
        _row(name, difference, p, expected, prompts)
        for name, difference in differences.items()
        if np.count_nonzero(difference) >= FEWEST
    ]
    adjusted = holm([row.p_value for row in rows])
    features = [replace(row, p_holm=p_holm) for row, p_holm in zip(rows, adjusted, strict=True)]
    return BiasReport(features, excess_slope(margin, p, longer, prompts))


def excess_slope(
    margin: Float[np.ndarray, " P"],
    p: Float[np.ndarray, " P"],
    feature: Float[np.ndarray, " P"],
    prompts: Prompts | None = None,
) -> ExcessSlope | None:
    """The score that a reward model gives to a unit of a feature beyond what its labels support.

    Labels are regressed on the margin and on the feature's difference d, P(y₀ ≻ y₁) = σ(s·m + c·d), maximum likelihood
    without intercept (swapping a pair flips all signs). If m = u + δ·d, where the labels depend only on u, then c =
    −s·δ. The interval is Fieller's, over the sandwich covariance (White 1982), since the labels need not follow this
    model.

    If m = u + δ·d + e with an error e of variance V(e), and u = γ·d + v, then in a linear model δ̂ → δ − γ·V(e)/V(v): an
    excess with the sign of γ is real, one with the other sign may be the error's.

    Args:
        margin: of each pair.
        p: the label.
        feature: difference of each pair.
        prompts: the prompt of each pair; None: each pair has its own.

    Returns:
        The slope; None where the labels do not significantly follow the margin (s not above 0), or are perfectly
        separable.
    """
    scale = np.array([np.sqrt(np.mean(margin**2)), np.sqrt(np.mean(feature**2))])
    if not scale.all():
        return None
    design = np.stack([margin, feature], 1) / scale
    fitted = _logistic(design, p, prompts)
    if fitted is None:
        return None
    (s, c), covariance = fitted
    z = float(stats.norm.ppf(0.975))
    # Fieller: all δ for which c + δ·s is within z standard errors of 0.
    a = s * s - z * z * covariance[0, 0]
    b = c * s - z * z * covariance[0, 1]
    q = c * c - z * z * covariance[1, 1]
    if s <= 0 or a <= 0:
        return None
    root = sqrt(max(0.0, b * b - a * q))
    unit = float(scale[0] / scale[1])
    preferred, error = slope_through_origin(feature, 2 * p - 1, prompts)
    side = 0.0 if preferred is None or abs(preferred) < z * (error or 0.0) else np.sign(preferred)
    p_value = float(2 * stats.norm.sf(abs(c) / sqrt(covariance[1, 1])))
    return ExcessSlope(
        value=float(-c / s) * unit,
        low=float((-b - root) / a) * unit,
        high=float((-b + root) / a) * unit,
        p_value=1.0 if side * -c < 0 else p_value,
        bound=None if side == 0 else "at least" if side > 0 else "at most",
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, adjusted so that the chance of any false finding is the stated one (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    worst = 0.0
    for place, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = worst
    return [float(value) for value in adjusted]


def _row(
    name: str,
    difference: Float[np.ndarray, " P"],
    p: Float[np.ndarray, " P"],
    expected: Float[np.ndarray, " P"],
    prompts: Prompts | None,
) -> FeatureBias:
    side = np.sign(difference)
    differs = side != 0
    labels, model = (0.5 + side[differs] * (share[differs] - 0.5) for share in (p, expected))
    of_rows = None if prompts is None else prompts[differs]
    gap = model - labels
    several = len(sums_by_prompt(gap, of_rows)) > 1
    error = mean_error(gap, of_rows) if several else 0.0
    p_value = float(2 * stats.norm.sf(abs(gap.mean()) / error)) if error else 1.0
    return FeatureBias(
        name=name,
        pairs=len(gap),
        labels=float(labels.mean()),
        labels_interval=share_interval(labels, of_rows),
        model=float(model.mean()),
        difference=float(gap.mean()),
        se=error,
        p_value=p_value,
        p_holm=p_value,
    )


def _temperature(margin: Float[np.ndarray, " P"], p: Float[np.ndarray, " P"]) -> float:
    """The s of P = σ(s·m) that fits the labels best: general overconfidence is not a bias."""

    def loss(s: float) -> float:
        return float(np.mean(p * np.logaddexp(0, -s * margin) + (1 - p) * np.logaddexp(0, s * margin)))

    spread = float(np.sqrt(np.mean(margin**2)))
    if not spread:
        return 0.0
    return float(optimize.minimize_scalar(loss, bounds=(0.0, 20.0 / spread), method="bounded").x)


def _logistic(
    design: Float[np.ndarray, "P 2"], p: Float[np.ndarray, " P"], prompts: Prompts | None
) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, "2 2"]] | None:
    """Logistic regression without intercept by Newton's method: coefficients and their sandwich covariance."""
    beta = np.zeros(2)
    for _ in range(50):
        q = expit(design @ beta)
        bread = (design * (q * (1 - q))[:, None]).T @ design
        if np.linalg.cond(bread) > 1e10:
            return None  # collinear columns, or perfectly separable labels
        step = np.linalg.solve(bread, design.T @ (p - q))
        beta = beta + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    else:
        return None
    residual = p - expit(design @ beta)
    scores = np.stack([sums_by_prompt(column * residual, prompts) for column in design.T], 1)
    inverse = np.linalg.inv(bread)
    return beta, inverse @ (scores.T @ scores) @ inverse


def _counter(pattern: str) -> Callable[[str], int]:
    compiled = re.compile(pattern)
    return lambda text: sum(1 for _ in compiled.finditer(text))

"""Label noise, estimated from pairs labelled twice and from a lapse model on a reward model's margins.

Formulas: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real
from scipy import optimize, stats
from scipy.special import expit, xlogy

from kleash.evals.intervals import Prompts, share_interval, sums_by_prompt
from kleash.evals.report_values import Estimate

Bounds = tuple[float, float]

CRITICAL = float(stats.chi2.ppf(0.95, 1)) / 2
"""How many nats the log-likelihood may lie below its maximum within the 95 % interval of one parameter (Wilks 1938)."""
STEEPEST = 50.0
"""Largest s of the search, in units of one over the root mean square of the margins."""
SLOPES = np.concatenate([[0.0], np.geomspace(0.02, STEEPEST, 16)])
FINE = np.concatenate([[0.0], np.geomspace(0.005, STEEPEST, 300)])
LAPSES = np.linspace(0, 0.5, 5)


@dataclass(frozen=True)
class Disagreement:
    """How often two labels of one pair differ, over pairs that occur in the data more than once."""

    rate: float
    """Mean over these pairs of 2v₀v₁/(n(n−1)): training and held-out rows, in either order, ties left out."""
    low: float
    """Lower end of its 95 % interval, as `accuracy_interval`; a little too wide where n > 2."""
    high: float
    """Its upper end."""
    pairs: int
    """Pairs with two labels and more."""


@dataclass(frozen=True)
class LapseModel:
    """Maximum likelihood of P(y₀ ≻ y₁) = ε + (1−2ε)·σ(s·m), with 95 % profile-likelihood intervals
    {x : log L(max) − log L(x) ≤ 1.92·D}, D = Σ over prompts (Σ of their pairs m·(p − P))² / Σ(m·(p − P))², at least 1;
    it is 1 with one pair a prompt. Conditional on the margins being right up to their scale: the model's own errors
    count as noise.
    """

    lapse: Estimate
    """ε in [0, ½]: share of labels given at random, symmetric in the two sides."""
    slope: Estimate
    """s ≥ 0: 1 calibrated; below 1 the model is overconfident, above 1 underconfident."""
    bayes_accuracy: Estimate
    """Mean over pairs of max(P, 1−P): what a predictor that knows P would reach."""


@dataclass(frozen=True)
class LabelNoise:
    """How noisy the labels are."""

    disagreement: Disagreement | None
    """From labels given twice; null without repeats. With them `noise_ceiling_bounds` is computed too."""
    lapse_model: LapseModel | None
    """From the model's margins; null where all margins are 0."""


def disagreement(votes: Real[np.ndarray, "P 2"], prompts: Prompts | None = None) -> Disagreement | None:
    """How often two labels of one pair differ.

    Args:
        votes: number of labels for each side of a pair.
        prompts: the prompt of each pair; None: each pair has its own.

    Returns:
        None where no pair has two labels. The rate of a pair is unbiased.
    """
    counts = np.asarray(votes, dtype=np.float64)
    total = counts.sum(1)
    repeated = total >= 2
    counts, total = counts[repeated], total[repeated]
    if not len(counts):
        return None
    rates = 2 * counts[:, 0] * counts[:, 1] / (total * (total - 1))
    low, high = share_interval(rates, None if prompts is None else prompts[repeated])
    return Disagreement(float(rates.mean()), low, high, len(rates))


def lapse_model(
    margin: Float[np.ndarray, " P"], p: Float[np.ndarray, " P"], prompts: Prompts | None = None
) -> LapseModel | None:
    """Labels as a logistic function of the scaled margins, with lapses: P(y₀ ≻ y₁) = ε + (1 − 2ε)·σ(s·m).

    ε is the share of flipped labels that even the largest margin does not explain (the lapse rate of psychometrics,
    Wichmann & Hill 2001). s is the steepness of the labels relative to the model: 1 calibrated, below 1 it is
    overconfident, above 1 underconfident. Fitted by maximum likelihood with profile-likelihood intervals. It assumes
    that the margins are right up to their scale: the model's own errors look like noise here, so that ε comes out too
    large and Bayes accuracy too low.

    Args:
        margin: of held-out pairs.
        p: their labels.
        prompts: the prompt of each pair; None: each pair has its own.

    Returns:
        The three figures; None where all margins are 0.
    """
    spread = float(np.sqrt(np.mean(margin**2)))
    if not spread:
        return None
    margin = margin / spread
    ceilings = np.array([expit(slope * np.abs(margin)).mean() for slope in FINE])
    """Bayes accuracy at each slope without lapses."""

    def loss(lapse: float, slope: float) -> float:
        q = lapse + (1 - 2 * lapse) * expit(slope * margin)
        return float(-(xlogy(p, q) + xlogy(1 - p, 1 - q)).sum())

    def at_lapse(lapse: float) -> float:
        return _least(lambda slope: loss(lapse, slope), SLOPES)[0]

    def at_slope(slope: float) -> float:
        return _least(lambda lapse: loss(lapse, slope), LAPSES)[0]

    def at_accuracy(accuracy: float) -> float:
        # B = ε + (1 − 2ε)·C(s) with C the ceiling without lapses, so that each ε ≤ 1 − B leaves one s.
        def of_lapse(lapse: float) -> float:
            ceiling = (accuracy - lapse) / (1 - 2 * lapse) if lapse < 0.5 else 0.5
            return loss(lapse, float(np.interp(ceiling, ceilings, FINE)))

        return _least(of_lapse, np.linspace(0, 1 - accuracy, 9))[0]

    minimum, slope = _least(at_slope, SLOPES)
    lapse = _least(lambda lapse: loss(lapse, slope), LAPSES)[1]
    effect = _design_effect(margin * (p - lapse - (1 - 2 * lapse) * expit(slope * margin)), prompts)
    accuracy = lapse + (1 - 2 * lapse) * float(expit(slope * np.abs(margin)).mean())
    profiles: dict[str, tuple[Callable[[float], float], float, Bounds, float]] = {
        "lapse": (at_lapse, lapse, (0.0, 0.5), 1.0),
        "slope": (at_slope, slope, (0.0, STEEPEST), 1 / spread),
        "bayes_accuracy": (at_accuracy, accuracy, (0.5, 1.0), 1.0),
    }
    estimates = {}
    for name, (profile, value, bounds, unit) in profiles.items():
        low, high = _interval(profile, value, minimum + CRITICAL * effect, bounds)
        estimates[name] = Estimate(value * unit, low * unit, high * unit)
    return LapseModel(**estimates)


def _design_effect(scores: Float[np.ndarray, " P"], prompts: Prompts | None) -> float:
    """By how much pairs of one prompt increase the variance of a sum of scores; at least 1."""
    independent = float((scores**2).sum())
    return max(1.0, float((sums_by_prompt(scores, prompts) ** 2).sum()) / independent) if independent else 1.0


def _least(loss: Callable[[float], float], grid: Float[np.ndarray, " G"]) -> tuple[float, float]:
    """Minimum of a function and its position: a grid first, since it may have two minima, then refined."""
    losses = [loss(float(x)) for x in grid]
    at = int(np.argmin(losses))
    low, high = float(grid[max(0, at - 1)]), float(grid[min(len(grid) - 1, at + 1)])
    minimum = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded") if low < high else None
    on_grid = (losses[at], float(grid[at]))
    return on_grid if minimum is None else min((float(minimum.fun), float(minimum.x)), on_grid)


def _interval(profile: Callable[[float], float], value: float, limit: float, bounds: Bounds) -> Bounds:
    """Where a profile crosses a limit on either side of its minimum; a bound where it does not."""
    ends = []
    for bound in bounds:
        crosses = abs(bound - value) > 1e-9 and profile(bound) > limit > profile(value)
        ends.append(float(optimize.brentq(lambda x: profile(x) - limit, value, bound, xtol=1e-4)) if crosses else bound)
    return ends[0], ends[1]

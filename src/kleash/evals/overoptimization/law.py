"""The published laws of overoptimization, fitted to a curve by weighted least squares with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from kleash.evals.overoptimization.curve import KLCurve, Source, distances
from kleash.evals.report_values import Estimate, PairedMean

FORMULA: Mapping[Source, str] = {"checkpoints": "R(d) = d (α − β′ ln d)", "best-of-n": "R(d) = d (α − β′ d)"}
LEVEL = 0.95
"""Of every interval."""
GRID = 41
"""Number of distances at which a law is drawn."""


@dataclass(frozen=True)
class LawPoint:
    """A fitted law at a distance, to be drawn."""

    distance: float
    """√KL in √nats."""
    gain: float
    """Gold above the start's."""
    low: float | None
    """Lower end of its 95 % interval over resamples."""
    high: float | None
    """Its upper end."""


@dataclass(frozen=True)
class CostOfFollowingLaw:
    """The gold lost by stopping at the distance that a law predicts."""

    distance: float
    """Distance of the law's peak, at most that of the furthest point measured."""
    beyond: bool
    """Whether the law's peak lies beyond the furthest point measured, or does not exist."""
    gold: PairedMean
    """Gold there, interpolated between the two points around it."""
    lost: PairedMean
    """Gold of the measured peak − gold there."""


@dataclass(frozen=True, kw_only=True)
class LawFit:
    """A law (Gao et al. 2022, arXiv:2210.10760, eq. 1–2) fitted to gold − gold of the start, by weighted least squares
    in d; weights 1 / variance of each point's mean gain, none above ten times the median.
    """

    formula: str
    """R(d) = d (α − β′ ln d) for checkpoints, d (α − β′ d) for best of n."""
    limit: float | None
    """Largest distance of the fit; null: all."""
    points: int
    """Points of the fit beyond the start, at least three."""
    alpha: Estimate
    """α, gain a unit of distance near the start. All intervals of a fit are over resamples of the prompts."""
    beta_law: Estimate
    """β′, how fast that gain is used up; it is not the β of a KL penalty."""
    peak_distance: Estimate
    """exp(α/β′ − 1), or α/2β′; null is infinite (β′ ≤ 0: no peak)."""
    peak_gain: Estimate
    """β′ exp(α/β′ − 1), or α²/4β′."""
    turns: float
    """Share of the resamples in which the law has a peak."""
    largest_miss: float
    """Largest |mean gain − law| at a point, in gold."""
    p_value: float | None
    """Hotelling's T² of the fit's residuals (C − 2 dimensions, noise estimated from the prompts, of the distances too):
    probability of so large a misfit if the law held; null with too few prompts."""
    curve: list[LawPoint]
    """The law at 41 distances."""
    cost_of_following_law: CostOfFollowingLaw | None = None
    """On the prompts that report."""


def law_gain(distance: Any, alpha: Any, beta_law: Any, source: Source) -> np.ndarray:
    """Gold above the start's at a distance (Gao et al. 2022, arXiv:2210.10760, eq. 1–2).

    Args:
        distance: d = √KL from the start, in √nats, ≥ 0.
        alpha: gain a unit of distance near the start.
        beta_law: β′, how fast that gain is used up; it is not the β of a KL penalty.
        source: d (α − β′ d) for best of n, d (α − β′ ln d) for a trained policy.
    """
    d = np.asarray(distance, dtype=np.float64)
    return np.asarray(alpha * d - beta_law * _spent(d, source))


def law_peak(alpha: Any, beta_law: Any, source: Source) -> np.ndarray:
    """The distance at which a law is highest: α / 2β′, or exp(α/β′ − 1); infinite where β′ ≤ 0 (no peak)."""
    a, b = np.asarray(alpha, dtype=np.float64), np.asarray(beta_law, dtype=np.float64)
    with np.errstate(all="ignore"):
        peak = np.maximum(a, 0) / (2 * b) if source == "best-of-n" else np.exp(a / b - 1)
        return np.where(b > 0, peak, np.inf)


def fit_law(
    distance: Float[np.ndarray, "*B C"],
    gain: Float[np.ndarray, "*B C"],
    weights: Float[np.ndarray, " C"],
    source: Source,
) -> tuple[Float[np.ndarray, "*B"], Float[np.ndarray, "*B"]]:
    """α and β′ by weighted least squares, in which a law is linear; NaN where the points do not determine both."""
    slope, spent = distance, -_spent(distance, source)
    uu, uv, vv = ((weights * a * b).sum(-1) for a, b in ((slope, slope), (slope, spent), (spent, spent)))
    uy, vy = (weights * slope * gain).sum(-1), (weights * spent * gain).sum(-1)
    determinant = uu * vv - uv * uv
    with np.errstate(all="ignore"):
        determined = determinant > 1e-9 * uu * vv
        return (
            np.where(determined, (vv * uy - uv * vy) / determinant, np.nan),
            np.where(determined, (uu * vy - uv * uy) / determinant, np.nan),
        )


def fit(curve: KLCurve, *, limit: float | None = None, seed: int = 0, resamples: int = 2000) -> LawFit | None:
    """Fit the law of a curve to gold minus gold at the start, with bootstrap intervals over prompts.

    Args:
        curve: measured on the prompts of the fit.
        limit: the largest distance of the fit; None: all.
        seed, resamples: of the bootstrap.

    Returns:
        None where fewer than three points beyond the start lie within the limit: they do not determine a law and leave
        no degrees of freedom to test it.
    """
    distance = distances(curve.kl.mean(1))
    inside = distance > 0
    if limit is not None:
        inside &= distance <= limit
    inside[0] = False
    if inside.sum() < 3:
        return None
    gains = curve.gold - curve.gold[:1]  # paired: differences between prompts cancel
    weights = np.where(inside, _weights(gains, inside), 0.0)
    means = resampled_means(np.stack([gains, curve.kl]), seed, resamples)  # [2, B, C]
    resampled = distances(means[1])
    alpha, beta_law = fit_law(distance, gains.mean(1), weights, curve.source)
    alphas, betas = fit_law(resampled, means[0], weights, curve.source)
    finite = np.isfinite(alphas)
    if not np.isfinite(alpha) or not finite.any():
        return None
    alphas, betas = alphas[finite], betas[finite]
    peak, peaks = law_peak(alpha, beta_law, curve.source), law_peak(alphas, betas, curve.source)
    grid = np.linspace(0, distance.max(), GRID)
    lines = np.array([law_gain(at, alphas, betas, curve.source) for at in grid])
    largest_miss, p_value = _lack_of_fit(curve, gains, distance, inside, weights)
    return LawFit(
        formula=FORMULA[curve.source],
        limit=limit,
        points=int(inside.sum()),
        alpha=_estimate(alpha, alphas),
        beta_law=_estimate(beta_law, betas),
        peak_distance=_estimate(peak, peaks),
        peak_gain=_estimate(_at_peak(alpha, beta_law, curve.source), _at_peak(alphas, betas, curve.source)),
        turns=float(np.mean(np.isfinite(peaks))),
        largest_miss=largest_miss,
        p_value=p_value,
        curve=[
            LawPoint(float(at), float(law_gain(at, alpha, beta_law, curve.source)), *interval(line))
            for at, line in zip(grid, lines, strict=True)
        ],
    )


def cost_of_following_law(curve: KLCurve, peak: int, predicted: float | None) -> CostOfFollowingLaw:
    """The gold lost by stopping at the distance that a law predicts: gold of the peak minus gold there, paired.

    Args:
        curve: measured on the reporting prompts, which were not used for the law or the peak.
        peak: the point where gold was measured best.
        predicted: the law's distance; None where it has no peak, then the furthest point is used.
    """
    distance = distances(curve.kl.mean(1))
    order, furthest = np.argsort(distance, kind="stable"), float(distance.max())
    at = furthest if predicted is None else min(predicted, furthest)
    gold = np.array([np.interp(at, distance[order], values) for values in curve.gold[order].T])
    beyond = predicted is None or predicted > furthest
    return CostOfFollowingLaw(at, beyond, paired(gold), paired(curve.gold[peak] - gold))


def paired(values: Float[np.ndarray, " P"]) -> PairedMean:
    """Mean over prompts with its standard error and 95 % interval (Student's t)."""
    mean, error = float(values.mean()), standard_error(values)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * error
    return PairedMean(mean, error, mean - half, mean + half)


def _lack_of_fit(
    curve: KLCurve,
    gains: Float[np.ndarray, "C P"],
    distance: Float[np.ndarray, " C"],
    inside: Bool[np.ndarray, " C"],
    weights: Float[np.ndarray, " C"],
) -> tuple[float, float | None]:
    """Whether the curve departs from the law by more than noise: Hotelling's T² of the fit's residuals.

    The residuals of C points after two parameters lie in C − 2 dimensions. Their noise is estimated from the prompts,
    that of the distances too: an error of kl moves the point along the law by slope · error / 2d.
    """
    d, w, y = distance[inside], np.sqrt(weights[inside]), gains[inside]
    design = np.stack([d, -_spent(d, curve.source)], 1) * w[:, None]  # [C, 2]
    alpha, beta_law = fit_law(d, y.mean(1), weights[inside], curve.source)
    slope = alpha - beta_law * (2 * d if curve.source == "best-of-n" else 1 + np.log(d))
    kl = curve.kl[inside]
    influence = w[:, None] * (y - (slope / (2 * d))[:, None] * (kl - kl.mean(1, keepdims=True)))
    rest = np.linalg.svd(design)[0][:, 2:].T @ influence  # [C − 2, P]
    miss = np.abs(y.mean(1) - law_gain(d, alpha, beta_law, curve.source))
    prompts, free = influence.shape[1], len(rest)
    p_value = None
    if prompts > free + 1:
        spread = np.cov(rest).reshape(free, free)
        residual = rest.mean(1)
        if np.linalg.matrix_rank(spread) == free:
            t2 = prompts * float(residual @ np.linalg.solve(spread, residual))
            p_value = float(stats.f.sf(t2 * (prompts - free) / (free * (prompts - 1)), free, prompts - free))
    return float(miss.max()), p_value


def _spent(distance: np.ndarray, source: Source) -> np.ndarray:
    """What β′ multiplies: d², or d ln d, which is 0 at 0."""
    if source == "best-of-n":
        return np.asarray(distance**2)
    with np.errstate(over="ignore"):  # a resampled peak that overflows is infinite, and counts as none
        return np.asarray(distance * np.log(np.where(distance > 0, distance, 1.0)))


def _at_peak(alpha: Any, beta_law: Any, source: Source) -> np.ndarray:
    """The gain at a law's peak: α²/4β′, or β′ exp(α/β′ − 1)."""
    peak = law_peak(alpha, beta_law, source)
    finite = np.isfinite(peak)
    return np.where(finite, law_gain(np.where(finite, peak, 1.0), alpha, beta_law, source), np.inf)


def _weights(gains: Float[np.ndarray, "C P"], inside: Bool[np.ndarray, " C"]) -> Float[np.ndarray, " C"]:
    """1 / variance of each mean gain, none above ten times the median.

    A checkpoint that hardly differs from the start has hardly any variance, and would else decide by itself.
    """
    variance = gains.var(1, ddof=1) / gains.shape[1]
    floor = 0.1 * float(np.median(variance[inside])) or 1.0
    return np.asarray(1 / np.maximum(variance, floor))


def resampled_means(values: Float[np.ndarray, "F C P"], seed: int, resamples: int) -> Float[np.ndarray, "F B C"]:
    """Means over prompts drawn with replacement, the same draw for all figures and points."""
    prompts = values.shape[-1]
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)  # [B, P]
    return np.asarray(np.moveaxis(values @ (counts / prompts).T, -1, -2))


def standard_error(values: Float[np.ndarray, " P"]) -> float:
    """Of the mean over prompts."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def interval(draws: Float[np.ndarray, " B"]) -> tuple[float | None, float | None]:
    """The central 95 % of draws. Each end is one of the draws, since a mean of two could be infinity minus infinity;
    None is infinite.
    """
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return _finite(low), _finite(high)


def _estimate(value: Any, draws: Float[np.ndarray, " B"]) -> Estimate:
    return Estimate(_finite(value), *interval(draws))


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None

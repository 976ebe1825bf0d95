"""Analysis of a KL curve: its peak, whether gold fell after it, the recommended point, and the fitted law.

One part of the prompts chooses (the peak, the law, the point), the other reports, so that no figure has selection bias.
Formulas: docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from kleash.evals.overoptimization.curve import KLCurve, Source, distances
from kleash.evals.overoptimization.law import (
    LawFit,
    cost_of_following_law,
    fit,
    interval,
    paired,
    resampled_means,
    standard_error,
)
from kleash.evals.report_values import Estimate, PairedMean

EARLY = 0.7
"""Share of the peak's distance that the second fit uses: the law's prediction before gold fell."""


@dataclass(frozen=True)
class ResampledMean:
    """A mean over prompts."""

    mean: float
    """Over the prompts that report."""
    se: float
    """Its standard error over prompts."""
    low: float | None
    """Lower end of its 95 % interval, by the percentiles of 2,000 resamples of prompts drawn with replacement, jointly
    for all points and figures."""
    high: float | None
    """Its upper end."""


@dataclass(frozen=True, kw_only=True)
class PointFigures:
    """One point of the curve."""

    point: int
    """Step of the checkpoint, or n."""
    gold: ResampledMean
    """Report: gold reward."""
    proxy: ResampledMean
    """Report: the reward that the policy was trained against."""
    kl: ResampledMean
    """Report: KL from the start, nats a response."""
    distance: Estimate
    """Report: d = √max(0, mean KL), in √nats."""
    gold_choose: float
    """Choose: mean gold."""
    best_share: float
    """Choose: share of the resamples in which the point has the highest gold."""


@dataclass(frozen=True)
class Peak:
    """Choose: the point of the highest mean gold."""

    point: int
    """Step of the checkpoint, or n."""
    index: int
    """Its index in `points`."""
    share: float
    """Share of the resamples in which it is the best."""
    distance: float
    """Its distance."""
    distance_interval: tuple[float | None, float | None]
    """Interval of the winner's distance over resamples."""


@dataclass(frozen=True)
class PeakTest:
    """Report: whether gold fell after its peak, on prompts that did not choose the peak (Student's t of paired
    differences).
    """

    outcome: Literal["turned", "not yet", "cannot tell"]
    """`turned` if the peak is not the last point and `gold_fell` > 0 by its interval; `not yet` if it is the last and
    `gold_gained` > 0 likewise; else `cannot tell`."""
    gold_fell: PairedMean
    """Gold of the peak − gold of the last point."""
    gold_gained: PairedMean
    """Gold of the last point − gold of the start."""
    proxy_rose: PairedMean
    """Proxy of the last point − proxy of the peak."""


@dataclass(frozen=True)
class Recommended:
    """The recommended point: the least KL among the points up to the peak's whose gold, on the prompts that choose, is
    less than the peak's by no more than one standard error of the paired difference.
    """

    point: int
    """Step of the checkpoint, or n."""
    index: int
    """Its index in `points`."""
    gold: PairedMean
    """Report: its gold."""
    lost: PairedMean
    """Report: gold of the peak − its gold."""


@dataclass(frozen=True)
class PromptCounts:
    """On which part of the prompts a figure is computed."""

    choose: int
    """Prompts that choose."""
    report: int
    """Prompts that report."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All that a KL curve shows."""

    source: Source
    """What the points are: checkpoints of a run, or best of n."""
    prompts: PromptCounts
    """How many choose and report."""
    points: list[PointFigures]
    """The curve, the start first."""
    peak: Peak
    """The point with the best gold."""
    peak_test: PeakTest
    """Whether gold fell after it."""
    recommended: Recommended
    """The recommended point."""
    fit: LawFit | None
    """Choose: the law, fitted to all points; null with fewer than three beyond the start."""
    early_fit: LawFit | None
    """Choose: fitted to the points up to 0.7 of the peak's distance only: the law's prediction before gold fell."""


def analyse(curve: KLCurve, *, choose: Bool[np.ndarray, " P"], seed: int = 0, resamples: int = 2000) -> Analysis:
    """Analyse a KL curve.

    Args:
        curve: at least two points.
        choose: which prompts choose; the others report.
        seed, resamples: of the bootstrap.
    """
    chooser, reporter = curve.of(choose), curve.of(~choose)
    peak, shares = _peak(chooser, seed, resamples)
    choice = _within_one_error(chooser, peak.index)

    def fitted(limit: float | None) -> LawFit | None:
        law = fit(chooser, limit=limit, seed=seed, resamples=resamples)
        if law is None:
            return None
        cost = cost_of_following_law(reporter, peak.index, law.peak_distance.value)
        return replace(law, cost_of_following_law=cost)

    return Analysis(
        source=curve.source,
        prompts=PromptCounts(len(chooser.prompts), len(reporter.prompts)),
        points=_points(reporter, chooser.gold.mean(1), shares, seed, resamples),
        peak=peak,
        peak_test=_peak_test(reporter, peak.index),
        recommended=Recommended(
            point=curve.points[choice],
            index=choice,
            gold=paired(reporter.gold[choice]),
            lost=paired(reporter.gold[peak.index] - reporter.gold[choice]),
        ),
        fit=fitted(None),
        early_fit=fitted(EARLY * peak.distance),
    )


def _peak(chooser: KLCurve, seed: int, resamples: int) -> tuple[Peak, list[float]]:
    """The best point, and for each point the share of the resamples in which it is the best."""
    gold, kl = resampled_means(np.stack([chooser.gold, chooser.kl]), seed, resamples)  # [B, C] each
    winners = gold.argmax(-1)  # [B]
    shares = [float(np.mean(winners == index)) for index in range(len(chooser.points))]
    best = int(chooser.gold.mean(1).argmax())
    peak = Peak(
        point=chooser.points[best],
        index=best,
        share=shares[best],
        distance=float(distances(chooser.kl.mean(1))[best]),
        distance_interval=interval(distances(kl)[np.arange(resamples), winners]),
    )
    return peak, shares


def _points(
    reporter: KLCurve, gold_choose: Float[np.ndarray, " C"], shares: list[float], seed: int, resamples: int
) -> list[PointFigures]:
    """Gold, proxy, KL and distance of each point, with intervals over resamples of the prompts, drawn jointly."""
    measured = {"gold": reporter.gold, "proxy": reporter.proxy, "kl": reporter.kl}
    resampled = dict(
        zip(measured, resampled_means(np.stack(list(measured.values())), seed, resamples), strict=True)
    )  # [B, C] each

    def mean(name: str, c: int) -> ResampledMean:
        values = measured[name][c]
        return ResampledMean(float(values.mean()), standard_error(values), *interval(resampled[name][:, c]))

    return [
        PointFigures(
            point=point,
            gold=mean("gold", c),
            proxy=mean("proxy", c),
            kl=mean("kl", c),
            distance=Estimate(float(distances(reporter.kl[c].mean())), *interval(distances(resampled["kl"][:, c]))),
            gold_choose=float(gold_choose[c]),
            best_share=shares[c],
        )
        for c, point in enumerate(reporter.points)
    ]


def _peak_test(reporter: KLCurve, best: int) -> PeakTest:
    fell, gained = paired(reporter.gold[best] - reporter.gold[-1]), paired(reporter.gold[-1] - reporter.gold[0])
    last = best == len(reporter.points) - 1
    outcome: Literal["turned", "not yet", "cannot tell"] = "cannot tell"
    if not last and fell.low > 0:
        outcome = "turned"
    elif last and gained.low > 0:
        outcome = "not yet"
    return PeakTest(outcome, fell, gained, paired(reporter.proxy[-1] - reporter.proxy[best]))


def _within_one_error(chooser: KLCurve, best: int) -> int:
    """The nearest point whose gold is within one standard error (of the paired difference) of the best one's."""
    deficit = chooser.gold[best] - chooser.gold  # [C, P]
    close = deficit.mean(1) <= np.array([standard_error(values) for values in deficit])
    kl = chooser.kl.mean(1)
    return min(np.flatnonzero(close & (kl <= kl[best])).tolist(), key=lambda index: (kl[index], index))

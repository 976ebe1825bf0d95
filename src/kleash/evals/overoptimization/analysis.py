"""What is said of a KL curve: its peak, whether gold turned, which checkpoint to take, what the laws say of it.

One part of the prompts chooses (the peak, the law, the checkpoint), the other reports, so that no figure is flattered
by the choice it rests on. Formulas: docs/metrics.md.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from kleash.evals.overoptimization.curve import KLCurve, distances
from kleash.evals.overoptimization.law import (
    Figures,
    cost_of_following_law,
    fit,
    interval,
    paired,
    resampled_means,
    standard_error,
)

EARLY = 0.7
"""Share of the way to the peak up to which the second fit looks: what the law would have said before the turn."""


def analyse(curve: KLCurve, *, choose: Bool[np.ndarray, " P"], seed: int = 0, resamples: int = 2000) -> Figures:
    """All that is said of a curve: curve, peak, verdict, checkpoint to ship, laws. Formulas: docs/metrics.md.

    Args:
        curve: at least two points.
        choose: which prompts choose; the others report.
        seed, resamples: of the bootstrap.
    """
    chooser, reporter = curve.of(choose), curve.of(~choose)
    gold = chooser.gold.mean(1)
    best = int(gold.argmax())
    drawn = resampled_means(np.stack([chooser.gold, chooser.kl]), seed, resamples)
    winners = drawn[0].argmax(-1)  # [B]
    won = distances(drawn[1])[np.arange(resamples), winners]
    ship = _within_one_error(chooser, best)
    whole = fit(chooser, seed=seed, resamples=resamples)
    peak_distance = float(distances(chooser.kl.mean(1))[best])
    early = fit(chooser, limit=EARLY * peak_distance, seed=seed, resamples=resamples)
    peak_test = _peak_test(reporter, best)
    return {
        "source": curve.source,
        "prompts": {"choose": len(chooser.prompts), "report": len(reporter.prompts)},
        "points": [
            {**row, "gold_choose": float(chosen), "best_share": float(np.mean(winners == index))}
            for index, (row, chosen) in enumerate(zip(curve_points(reporter, seed, resamples), gold, strict=True))
        ],
        "peak": {
            "point": curve.points[best],
            "index": best,
            "share": float(np.mean(winners == best)),
            "distance": peak_distance,
            "distance_interval": list(interval(won).values()),
        },
        "peak_test": peak_test,
        "recommended": {
            "point": curve.points[ship],
            "index": ship,
            "gold": paired(reporter.gold[ship]),
            "lost": paired(reporter.gold[best] - reporter.gold[ship]),
        },
        "fit": whole
        and whole | {"cost_of_following_law": cost_of_following_law(reporter, best, whole["peak_distance"]["value"])},
        "early_fit": early
        and early | {"cost_of_following_law": cost_of_following_law(reporter, best, early["peak_distance"]["value"])},
    }


def curve_points(curve: KLCurve, seed: int = 0, resamples: int = 2000) -> list[Figures]:
    """Gold, proxy, KL and distance of each point, with bootstrap intervals over prompts, drawn jointly."""
    measured = {"gold": curve.gold, "proxy": curve.proxy, "kl": curve.kl}
    drawn = resampled_means(np.stack(list(measured.values())), seed, resamples)  # [3, B, C]
    gone = distances(drawn[2])
    return [
        {
            "point": point,
            **{
                name: {"mean": float(values[c].mean()), "se": standard_error(values[c]), **interval(drawn[place][:, c])}
                for place, (name, values) in enumerate(measured.items())
            },
            "distance": {"value": float(distances(curve.kl[c].mean())), **interval(gone[:, c])},
        }
        for c, point in enumerate(curve.points)
    ]


def _peak_test(curve: KLCurve, best: int) -> Figures:
    """Whether gold fell after its peak, on prompts that did not choose the peak.

    turned: it lies lower at the end, and the 95 % interval of the difference leaves zero out. not yet: the end is the
    best point and lies above the start by the same measure. cannot tell: neither.
    """
    fell, gained = paired(curve.gold[best] - curve.gold[-1]), paired(curve.gold[-1] - curve.gold[0])
    last = best == len(curve.points) - 1
    outcome = "cannot tell"
    if not last and fell["low"] > 0:
        outcome = "turned"
    elif last and gained["low"] > 0:
        outcome = "not yet"
    return {
        "outcome": outcome,
        "gold_fell": fell,
        "gold_gained": gained,
        "proxy_rose": paired(curve.proxy[-1] - curve.proxy[best]),
    }


def _within_one_error(curve: KLCurve, best: int) -> int:
    """The nearest point whose gold is within one standard error (of the paired difference) of the best one's."""
    short = curve.gold[best] - curve.gold  # [C, P]
    good = short.mean(1) <= np.array([standard_error(values) for values in short])
    kl = curve.kl.mean(1)
    return min(np.flatnonzero(good & (kl <= kl[best])).tolist(), key=lambda index: (kl[index], index))

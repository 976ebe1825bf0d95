"""What is said of a KL curve: its peak, whether gold turned, which checkpoint to take, what the laws say of it.

One part of the prompts chooses (the peak, the law, the checkpoint), the other reports, so that no figure is flattered
by the choice it rests on. Formulas: docs/metrics.md.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from kleash.evals.overoptimization.curve import Road, distances
from kleash.evals.overoptimization.law import (
    Figures,
    fit,
    interval,
    paired,
    resampled_means,
    standard_error,
    trust,
)

EARLY = 0.7
"""Share of the way to the peak up to which the second fit looks: what the law would have said before the turn."""


def analyse(road: Road, *, choose: Bool[np.ndarray, " P"], seed: int = 0, resamples: int = 2000) -> Figures:
    """All that is said of a road: curve, peak, verdict, checkpoint to ship, laws. Formulas: docs/metrics.md.

    Args:
        road: at least two points.
        choose: which prompts choose; the others report.
        seed, resamples: of the bootstrap.
    """
    chooser, reporter = road.of(choose), road.of(~choose)
    gold = chooser.gold.mean(1)
    best = int(gold.argmax())
    drawn = resampled_means(np.stack([chooser.gold, chooser.kl]), seed, resamples)
    winners = drawn[0].argmax(-1)  # [B]
    won = distances(drawn[1])[np.arange(resamples), winners]
    ship = _within_one_error(chooser, best)
    whole = fit(chooser, seed=seed, resamples=resamples)
    peak_distance = float(distances(chooser.kl.mean(1))[best])
    early = fit(chooser, limit=EARLY * peak_distance, seed=seed, resamples=resamples)
    turn = _turn(reporter, best)
    return {
        "law": road.law,
        "prompts": {"choose": len(chooser.prompts), "report": len(reporter.prompts)},
        "points": [
            {**row, "gold_choose": float(chosen), "best_share": float(np.mean(winners == index))}
            for index, (row, chosen) in enumerate(zip(curve_points(reporter, seed, resamples), gold, strict=True))
        ],
        "peak": {
            "point": road.points[best],
            "index": best,
            "share": float(np.mean(winners == best)),
            "distance": peak_distance,
            "distance_interval": list(interval(won).values()),
        },
        "turn": turn,
        "ship": {
            "point": road.points[ship],
            "index": ship,
            "gold": paired(reporter.gold[ship]),
            "lost": paired(reporter.gold[best] - reporter.gold[ship]),
        },
        "fit": whole and whole | {"trust": trust(reporter, best, whole["peak_distance"]["value"])},
        "early_fit": early and early | {"trust": trust(reporter, best, early["peak_distance"]["value"])},
    }


def curve_points(road: Road, seed: int = 0, resamples: int = 2000) -> list[Figures]:
    """Gold, proxy, KL and distance of each point, with bootstrap intervals over prompts, drawn jointly."""
    measured = {"gold": road.gold, "proxy": road.proxy, "kl": road.kl}
    drawn = resampled_means(np.stack(list(measured.values())), seed, resamples)  # [3, B, C]
    gone = distances(drawn[2])
    return [
        {
            "point": point,
            **{
                name: {"mean": float(values[c].mean()), "se": standard_error(values[c]), **interval(drawn[place][:, c])}
                for place, (name, values) in enumerate(measured.items())
            },
            "distance": {"value": float(distances(road.kl[c].mean())), **interval(gone[:, c])},
        }
        for c, point in enumerate(road.points)
    ]


def _turn(road: Road, best: int) -> Figures:
    """Whether gold fell after its peak, on prompts that did not choose the peak.

    turned: it lies lower at the end, and the 95 % interval of the difference leaves zero out. not yet: the end is the
    best point and lies above the start by the same measure. cannot tell: neither.
    """
    fell, gained = paired(road.gold[best] - road.gold[-1]), paired(road.gold[-1] - road.gold[0])
    last = best == len(road.points) - 1
    verdict = "cannot tell"
    if not last and fell["low"] > 0:
        verdict = "turned"
    elif last and gained["low"] > 0:
        verdict = "not yet"
    return {
        "verdict": verdict,
        "gold_fell": fell,
        "gold_gained": gained,
        "proxy_rose": paired(road.proxy[-1] - road.proxy[best]),
    }


def _within_one_error(road: Road, best: int) -> int:
    """The nearest point whose gold is within one standard error (of the paired difference) of the best one's."""
    short = road.gold[best] - road.gold  # [C, P]
    good = short.mean(1) <= np.array([standard_error(values) for values in short])
    kl = road.kl.mean(1)
    return min(np.flatnonzero(good & (kl <= kl[best])).tolist(), key=lambda index: (kl[index], index))

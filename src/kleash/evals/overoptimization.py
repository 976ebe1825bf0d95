"""Over-optimisation, measured: where gold turns while the proxy rises, what the published laws say of it, which
checkpoint is recommended.

A curve is a row of points that lead away from a start policy: the checkpoints of a run, or best of n for growing n. All
points are measured on the same prompts. One part of the prompts chooses (the peak, the law, which checkpoint is
recommended), the other reports, so that no figure is flattered by the choice it rests on. Formulas: docs/metrics.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from kleash.errors import DataError
from kleash.evals.best_of_n_curve import best_of_k, kl_of_best_of_k
from kleash.run import derive_seed

Source = Literal["checkpoints", "best-of-n"]
"""Which of the two laws a curve follows, and with it what its points are: steps of a run, or n."""

Figures = dict[str, Any]
"""Figures that serialise to JSON: finite numbers, None where one does not exist or has no bound."""

FORMULA: Mapping[Source, str] = {"checkpoints": "R(d) = d (α − β′ ln d)", "best-of-n": "R(d) = d (α − β′ d)"}
EARLY = 0.7
"""Share of the way to the peak up to which the second fit looks: what the law would have said before the turn."""
LEVEL = 0.95
ONE_TEXT = 0.5
"""Share of responses to different prompts that may be one text before gold is doubted."""
GRID = 41
"""Distances at which a law is written out to be drawn."""


@dataclass(frozen=True)
class KLCurve:
    """Points that lead away from a start policy, on the same prompts; the first point is the start."""

    source: Source
    points: tuple[int, ...]
    """Step of each checkpoint, or n of each best of n."""
    prompts: tuple[str, ...]
    gold: Float[np.ndarray, "C P"]
    proxy: Float[np.ndarray, "C P"]
    kl: Float[np.ndarray, "C P"]
    """KL from the start in nats: estimates prompt by prompt, of which only the mean has to be positive."""

    def of(self, prompts: Bool[np.ndarray, " P"]) -> KLCurve:
        """The same curve measured on some of the prompts."""
        names = tuple(name for name, kept in zip(self.prompts, prompts, strict=True) if kept)
        return replace(
            self, prompts=names, gold=self.gold[:, prompts], proxy=self.proxy[:, prompts], kl=self.kl[:, prompts]
        )


# -- curves from samples ----------------------------------------------------------------------------------------------


def curve_of_checkpoints(rows: Iterable[Mapping[str, Any]]) -> KLCurve:
    """The curve of a run from its samples; several responses to a prompt at a step count with their mean.

    Args:
        rows: as in a run's `samples.jsonl`: `step`, `prompt`, `kl`, `gold`, and `proxy` or `score`.

    Raises:
        DataError: fewer than two steps, or steps that were not measured on the same prompts.
    """
    cells: dict[int, dict[str, list[tuple[float, float, float]]]] = {}
    for row in rows:
        figures = (row["gold"], row["proxy"] if "proxy" in row else row["score"], row["kl"])
        cells.setdefault(row["step"], {}).setdefault(name_of(row["prompt"]), []).append(figures)
    points = tuple(sorted(cells))
    if len(points) < 2:
        raise DataError(f"samples of {len(points)} checkpoint(s) make no curve; give at least two steps")
    names = tuple(cells[points[0]])
    for point in points:
        if set(cells[point]) != set(names):
            raise DataError(
                f"step {point} was measured on other prompts than step {points[0]}; measure all on the same"
            )
    means = np.array([[np.mean(cells[point][name], axis=0) for name in names] for point in points], dtype=np.float64)
    gold, proxy, kl = np.moveaxis(means, -1, 0)
    return KLCurve("checkpoints", points, names, gold, proxy, kl)


def curve_of_best_of_n(
    prompts: Iterable[str], gold: Float[np.ndarray, "P N"], proxy: Float[np.ndarray, "P N"]
) -> KLCurve:
    """Best of n for n = 1, 2, 4, … up to the size of the pools, each the mean over all subsets of a pool.

    The KL is the estimate from the pool, which is right where responses are likely or tie, too.

    Args:
        prompts: name of each prompt.
        gold: of each response of the pools.
        proxy: likewise, which chooses; a response that occurs again must have the same proxy.
    """
    size = proxy.shape[1]
    points = tuple(sorted({*(2**power for power in range(size.bit_length())), size}))
    columns = np.array(points) - 1
    values = (best_of_k(gold, chosen_by=proxy), best_of_k(proxy, chosen_by=proxy), kl_of_best_of_k(proxy))
    taken = [np.asarray(array, dtype=np.float64)[:, columns].T for array in values]
    return KLCurve("best-of-n", points, tuple(prompts), *taken)


def choosing(prompts: Iterable[str], *, share: float, seed: int) -> Bool[np.ndarray, " P"]:
    """Which prompts choose; a prompt is on the same side whatever others are there, and both sides have some."""
    names = list(prompts)
    if len(names) < 4:
        raise DataError(f"{len(names)} different prompts cannot both choose and report; give at least 4")
    ranked = sorted(names, key=lambda name: derive_seed(seed, "choose", name))
    chosen = set(ranked[: min(max(2, round(share * len(names))), len(names) - 2)])
    return np.array([name in chosen for name in names])


def spaced_checkpoints(steps: Sequence[int], kl: Mapping[int, float], count: int) -> list[int]:
    """Checkpoints to measure: the first, the last, and others spaced as evenly in √KL as there are any.

    Args:
        steps: of the checkpoints that there are, ascending.
        kl: KL in nats by step, as far as it was logged; between these it is interpolated, and without any the steps
            stand for the distance.
        count: how many to take, at least two.
    """
    if len(steps) <= count:
        return list(steps)
    known = {0: 0.0, **dict(sorted(kl.items()))}
    at = distances(np.interp(steps, list(known), list(known.values()))) if kl else np.array(steps, dtype=np.float64)
    taken = {0, len(steps) - 1}
    for target in np.linspace(at[0], at.max(), count)[1:-1]:
        taken.add(min(set(range(len(steps))) - taken, key=lambda index: (abs(at[index] - target), index)))
    return [steps[index] for index in sorted(taken)]


def name_of(prompt: Any) -> str:
    """A prompt, text or turns, as the name of a unit of the bootstrap."""
    return prompt if isinstance(prompt, str) else repr([dict(turn) for turn in prompt])


# -- the laws ----------------------------------------------------------------------------------------------------------


def law_gain(distance: Any, alpha: Any, beta_law: Any, source: Source) -> np.ndarray:
    """Gold above the start's at a distance (Gao et al. 2022, arXiv:2210.10760, eq. 1–2).

    Args:
        distance: d = √KL from the start, in √nats, ≥ 0.
        alpha: gain a unit of distance near the start.
        beta_law: β′, how fast that gain is used up; it has nothing to do with the β of a KL penalty.
        source: d (α − β′ d) for best of n, d (α − β′ ln d) for a trained policy.
    """
    d = np.asarray(distance, dtype=np.float64)
    return np.asarray(alpha * d - beta_law * _spent(d, source))


def law_peak(alpha: Any, beta_law: Any, source: Source) -> np.ndarray:
    """The distance at which a law is highest: α / 2β′, or exp(α/β′ − 1); infinite where β′ ≤ 0 and it never turns."""
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
        known = determinant > 1e-9 * uu * vv
        return (
            np.where(known, (vv * uy - uv * vy) / determinant, np.nan),
            np.where(known, (uu * vy - uv * uy) / determinant, np.nan),
        )


def fit(kl_curve: KLCurve, *, limit: float | None = None, seed: int = 0, resamples: int = 2000) -> Figures | None:
    """Fit the curve's law to gold minus gold at the start, with bootstrap intervals over prompts.

    Args:
        kl_curve: measured on the prompts to fit by.
        limit: the largest distance to look at; None looks at all.
        seed, resamples: of the bootstrap.

    Returns:
        Figures of docs/metrics.md, "Overoptimization"; None where fewer than three points beyond the start lie within
        the limit, which determine no law and leave nothing over to doubt it by.
    """
    distance = distances(kl_curve.kl.mean(1))
    inside = distance > 0
    if limit is not None:
        inside &= distance <= limit
    inside[0] = False
    if inside.sum() < 3:
        return None
    gains = kl_curve.gold - kl_curve.gold[:1]  # paired: what the prompts differ in is gone
    weights = np.where(inside, _weights(gains, inside), 0.0)
    means = _resampled(np.stack([gains, kl_curve.kl]), seed, resamples)  # [2, B, C]
    drawn = distances(means[1])
    alpha, beta_law = fit_law(distance, gains.mean(1), weights, kl_curve.source)
    alphas, betas = fit_law(drawn, means[0], weights, kl_curve.source)
    sound = np.isfinite(alphas)
    if not np.isfinite(alpha) or not sound.any():
        return None
    alphas, betas = alphas[sound], betas[sound]
    peak, peaks = law_peak(alpha, beta_law, kl_curve.source), law_peak(alphas, betas, kl_curve.source)
    grid = np.linspace(0, distance.max(), GRID)
    lines = np.array([law_gain(at, alphas, betas, kl_curve.source) for at in grid])
    return {
        "formula": FORMULA[kl_curve.source],
        "limit": limit,
        "points": int(inside.sum()),
        "alpha": _estimate(alpha, alphas),
        "beta_law": _estimate(beta_law, betas),
        "peak_distance": _estimate(peak, peaks),
        "peak_gain": _estimate(_at_peak(alpha, beta_law, kl_curve.source), _at_peak(alphas, betas, kl_curve.source)),
        "turns": float(np.mean(np.isfinite(peaks))),
        **_lack_of_fit(kl_curve, gains, distance, inside, weights),
        "curve": [
            {"distance": float(at), "gain": float(law_gain(at, alpha, beta_law, kl_curve.source)), **_interval(line)}
            for at, line in zip(grid, lines, strict=True)
        ],
    }


def cost_of_following_law(kl_curve: KLCurve, peak: int, predicted: float | None) -> Figures:
    """What it costs to go exactly as far as a law says: gold of the peak minus gold there, in pairs.

    Args:
        kl_curve: measured on the prompts to report on, which neither the law nor the peak saw.
        peak: the point where gold was found best.
        predicted: the law's distance; None where it never turns, which stands for the furthest point.

    Returns:
        "distance" in fact gone, "beyond" whether the law points further than anything was measured, "gold" there
        (interpolated between the two points around it), "lost" against the peak.
    """
    distance = distances(kl_curve.kl.mean(1))
    order = np.argsort(distance, kind="stable")
    at = float(distance.max()) if predicted is None else min(predicted, float(distance.max()))
    gold = np.array([np.interp(at, distance[order], values) for values in kl_curve.gold[order].T])
    beyond = predicted is None or predicted > float(distance.max())
    return {"distance": at, "beyond": beyond, "gold": paired(gold), "lost": paired(kl_curve.gold[peak] - gold)}


# -- the peak, the turn, the checkpoint --------------------------------------------------------------------------------


def analyse(kl_curve: KLCurve, *, choose: Bool[np.ndarray, " P"], seed: int = 0, resamples: int = 2000) -> Figures:
    """All that is said of a curve: curve, peak, verdict, recommended checkpoint, laws. Formulas: docs/metrics.md.

    Args:
        kl_curve: at least two points.
        choose: which prompts choose; the others report.
        seed, resamples: of the bootstrap.
    """
    chooser, reporter = kl_curve.of(choose), kl_curve.of(~choose)
    gold = chooser.gold.mean(1)
    best = int(gold.argmax())
    drawn = _resampled(np.stack([chooser.gold, chooser.kl]), seed, resamples)
    winners = drawn[0].argmax(-1)  # [B]
    won = distances(drawn[1])[np.arange(resamples), winners]
    recommended = _within_one_error(chooser, best)
    whole = fit(chooser, seed=seed, resamples=resamples)
    peak_distance = float(distances(chooser.kl.mean(1))[best])
    early = fit(chooser, limit=EARLY * peak_distance, seed=seed, resamples=resamples)
    peak_test = _peak_test(reporter, best)
    return {
        "source": kl_curve.source,
        "prompts": {"choose": len(chooser.prompts), "report": len(reporter.prompts)},
        "points": [
            {**row, "gold_choose": float(chosen), "best_share": float(np.mean(winners == index))}
            for index, (row, chosen) in enumerate(zip(curve(reporter, seed, resamples), gold, strict=True))
        ],
        "peak": {
            "point": kl_curve.points[best],
            "index": best,
            "share": float(np.mean(winners == best)),
            "distance": peak_distance,
            "distance_interval": list(_interval(won).values()),
        },
        "peak_test": peak_test,
        "recommended": {
            "point": kl_curve.points[recommended],
            "index": recommended,
            "gold": paired(reporter.gold[recommended]),
            "lost": paired(reporter.gold[best] - reporter.gold[recommended]),
        },
        "fit": whole
        and whole | {"cost_of_following_law": cost_of_following_law(reporter, best, whole["peak_distance"]["value"])},
        "early_fit": early
        and early | {"cost_of_following_law": cost_of_following_law(reporter, best, early["peak_distance"]["value"])},
    }


def in_words(analysis: Figures) -> dict[str, str]:
    """What an analysis says, in plain words with its figures: `turn`, `ship` and `law`."""
    points, peak, peak_test, recommended = (analysis[key] for key in ("points", "peak", "peak_test", "recommended"))
    best, end, recommended_point = points[peak["index"]], points[-1], points[recommended["index"]]

    def name(row: Figures) -> str:
        return point_name(analysis["source"], row["point"])

    def change(figures: Figures) -> str:
        return f"{figures['mean']:.2f} [{figures['low']:.2f}, {figures['high']:.2f}]"

    where = (
        f"{name(best)} (√KL {best['distance']['value']:.2f}, gold {best['gold']['mean']:.2f}; best in "
        f"{peak['share']:.0%} of resamples)"
    )
    rose = peak_test["proxy_rose"]
    how = " while the proxy rose" if rose["low"] > 0 else ", and the proxy moved"
    said = {
        "turned": f"Gold turned: best at {where}, it lies {change(peak_test['gold_fell'])} lower at {name(end)}{how} "
        f"by {change(rose)}.",
        "not yet": f"Gold has not turned: it is best at the end, at {where}, "
        f"{change(peak_test['gold_gained'])} above the start.",
        "cannot tell": f"The data cannot tell whether gold has turned: it looks best at {where}, and what it lost up "
        f"to {name(end)} is {change(peak_test['gold_fell'])}.",
    }[peak_test["result"]]
    if peak_test["result"] == "cannot tell" and best is end:
        said = (
            f"The data cannot tell whether gold moved at all: it looks best at the end, at {where}, "
            f"{change(peak_test['gold_gained'])} above the start."
        )
    near = "" if recommended["index"] == peak["index"] else ", the nearest within one standard error of the best"
    return {
        "peak_test": said,
        "recommended": f"Recommended: {name(recommended_point)}{near}: gold {change(recommended['gold'])} "
        f"at √KL {recommended_point['distance']['value']:.2f}.",
        "law": _law_in_words(analysis, name(best)),
    }


def caution(responses: Sequence[str], start: Sequence[str], point: str) -> str | None:
    """What speaks against a gold that likes a point, as anyone sees who reads it: most responses are one text.

    A gold reward that shares the proxy's mistakes (a reward model of the same base, say) rises with it to the end.

    Args:
        responses: all at the recommended point, of different prompts.
        start: all at the start.
        point: its name.
    """
    (text, count), (_, before) = (Counter(texts).most_common(1)[0] for texts in (responses, start))
    share = count / len(responses)
    if share <= ONE_TEXT or share <= 2 * before / len(start):
        return None
    told = f"“{text[:60]}”" if text.strip() else "empty"
    return (
        f"Do not believe it: at {point} {share:.0%} of the responses are {told}. A gold reward that is pleased with "
        "that has the mistakes of the proxy; take another one, or ask people."
    )


def point_name(source: Source, point: int) -> str:
    """How a point of a curve is called."""
    if source == "best-of-n":
        return f"best of {point}"
    return "the start" if point == 0 else f"step {point}"


def _law_in_words(analysis: Figures, best: str) -> str:
    fitted = analysis["fit"]
    if fitted is None:
        return "The law cannot be fitted: fewer than three points lie beyond the start."
    peak, furthest = fitted["peak_distance"], max(row["distance"]["value"] for row in analysis["points"])
    if fitted["turns"] < LEVEL:
        said = f"The law cannot tell: it has a peak in {fitted['turns']:.0%} of the resamples only"
    elif peak["high"] is None or peak["high"] > furthest:
        said = (
            f"The law puts the peak at √KL {_number(peak['value'])} [{_number(peak['low'])}, {_number(peak['high'])}], "
            f"which reaches beyond the furthest point measured, {furthest:.2f}: it cannot tell"
        )
    else:
        lost = fitted["cost_of_following_law"]["lost"]
        said = (
            f"The law puts the peak at √KL {peak['value']:.2f} [{peak['low']:.2f}, {peak['high']:.2f}]; gold of {best} "
            f"less gold there is {lost['mean']:.2f} [{lost['low']:.2f}, {lost['high']:.2f}]"
        )
    if fitted["p_value"] is not None and fitted["p_value"] < 1 - LEVEL:
        said += f". The curve departs from the law by more than noise (by up to {fitted['largest_miss']:.2f} gold)"
    early = analysis["early_fit"]
    if early is not None and analysis["peak_test"]["result"] == "turned":
        lost, at = early["cost_of_following_law"]["lost"], _number(early["peak_distance"]["value"])
        said += f". Fitted to the first {EARLY:.0%} of the way alone it "
        said += (
            f"puts it at √KL {at}" if early["turns"] >= LEVEL else f"has a peak in {early['turns']:.0%} of resamples"
        )
        said += f"; following it would lose {lost['mean']:.2f} [{lost['low']:.2f}, {lost['high']:.2f}] gold"
    return said + "."


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0e}"


def curve(kl_curve: KLCurve, seed: int = 0, resamples: int = 2000) -> list[Figures]:
    """Gold, proxy, KL and distance of each point, with bootstrap intervals over prompts, drawn jointly."""
    measured = {"gold": kl_curve.gold, "proxy": kl_curve.proxy, "kl": kl_curve.kl}
    drawn = _resampled(np.stack(list(measured.values())), seed, resamples)  # [3, B, C]
    gone = distances(drawn[2])
    return [
        {
            "point": point,
            **{
                name: {"mean": float(values[c].mean()), "se": _error(values[c]), **_interval(drawn[place][:, c])}
                for place, (name, values) in enumerate(measured.items())
            },
            "distance": {"value": float(distances(kl_curve.kl[c].mean())), **_interval(gone[:, c])},
        }
        for c, point in enumerate(kl_curve.points)
    ]


def distances(kl: Any) -> np.ndarray:
    """√KL in √nats; an estimate that came out below zero is no distance."""
    return np.asarray(np.sqrt(np.maximum(np.asarray(kl, dtype=np.float64), 0)))


def paired(values: Float[np.ndarray, " P"]) -> Figures:
    """Mean over prompts with its standard error and 95 % interval (Student's t)."""
    mean, error = float(values.mean()), _error(values)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * error
    return {"mean": mean, "se": error, "low": mean - half, "high": mean + half}


def _peak_test(kl_curve: KLCurve, best: int) -> Figures:
    """Whether gold fell after its peak, on prompts that did not choose the peak.

    turned: it lies lower at the end, and the 95 % interval of the difference leaves zero out. not yet: the end is the
    best point and lies above the start by the same measure. cannot tell: neither.
    """
    fell, gained = paired(kl_curve.gold[best] - kl_curve.gold[-1]), paired(kl_curve.gold[-1] - kl_curve.gold[0])
    last = best == len(kl_curve.points) - 1
    result = "cannot tell"
    if not last and fell["low"] > 0:
        result = "turned"
    elif last and gained["low"] > 0:
        result = "not yet"
    return {
        "result": result,
        "gold_fell": fell,
        "gold_gained": gained,
        "proxy_rose": paired(kl_curve.proxy[-1] - kl_curve.proxy[best]),
    }


def _within_one_error(kl_curve: KLCurve, best: int) -> int:
    """The nearest point whose gold is within one standard error (of the paired difference) of the best one's."""
    short = kl_curve.gold[best] - kl_curve.gold  # [C, P]
    good = short.mean(1) <= np.array([_error(values) for values in short])
    kl = kl_curve.kl.mean(1)
    return min(np.flatnonzero(good & (kl <= kl[best])).tolist(), key=lambda index: (kl[index], index))


def _lack_of_fit(
    kl_curve: KLCurve,
    gains: Float[np.ndarray, "C P"],
    distance: Float[np.ndarray, " C"],
    inside: Bool[np.ndarray, " C"],
    weights: Float[np.ndarray, " C"],
) -> Figures:
    """Whether the curve departs from the law by more than noise: Hotelling's T² of what the fit leaves over.

    What is left at C points after two parameters lies in C − 2 dimensions. Its noise is estimated from the prompts, in
    the distances too: an error of kl moves the point along the law by slope · error / 2d.
    """
    d, w, y = distance[inside], np.sqrt(weights[inside]), gains[inside]
    design = np.stack([d, -_spent(d, kl_curve.source)], 1) * w[:, None]  # [C, 2]
    alpha, beta_law = fit_law(d, y.mean(1), weights[inside], kl_curve.source)
    slope = alpha - beta_law * (2 * d if kl_curve.source == "best-of-n" else 1 + np.log(d))
    kl = kl_curve.kl[inside]
    influence = w[:, None] * (y - (slope / (2 * d))[:, None] * (kl - kl.mean(1, keepdims=True)))
    rest = np.linalg.svd(design)[0][:, 2:].T @ influence  # [C − 2, P]
    miss = np.abs(y.mean(1) - law_gain(d, alpha, beta_law, kl_curve.source))
    prompts, free = influence.shape[1], len(rest)
    p_value = None
    if prompts > free + 1:
        spread = np.cov(rest).reshape(free, free)
        left = rest.mean(1)
        if np.linalg.matrix_rank(spread) == free:
            t2 = prompts * float(left @ np.linalg.solve(spread, left))
            p_value = float(stats.f.sf(t2 * (prompts - free) / (free * (prompts - 1)), free, prompts - free))
    return {"largest_miss": float(miss.max()), "p_value": p_value}


def _spent(distance: np.ndarray, source: Source) -> np.ndarray:
    """What β′ multiplies: d², or d ln d, which is 0 at 0."""
    if source == "best-of-n":
        return np.asarray(distance**2)
    with np.errstate(over="ignore"):  # a peak that a resample puts beyond all bounds is infinite, and counted as none
        return np.asarray(distance * np.log(np.where(distance > 0, distance, 1.0)))


def _at_peak(alpha: Any, beta_law: Any, source: Source) -> np.ndarray:
    """The gain at a law's peak: α²/4β′, or β′ exp(α/β′ − 1)."""
    peak = law_peak(alpha, beta_law, source)
    finite = np.isfinite(peak)
    return np.where(finite, law_gain(np.where(finite, peak, 1.0), alpha, beta_law, source), np.inf)


def _weights(gains: Float[np.ndarray, "C P"], inside: Bool[np.ndarray, " C"]) -> Float[np.ndarray, " C"]:
    """1 / variance of each mean gain, none above ten times the median.

    A checkpoint that hardly differs from the start has hardly any variance, and would else decide alone.
    """
    variance = gains.var(1, ddof=1) / gains.shape[1]
    floor = 0.1 * float(np.median(variance[inside])) or 1.0
    return np.asarray(1 / np.maximum(variance, floor))


def _resampled(values: Float[np.ndarray, "F C P"], seed: int, resamples: int) -> Float[np.ndarray, "F B C"]:
    """Means over prompts drawn with replacement, the same draw for all figures and points."""
    prompts = values.shape[-1]
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)  # [B, P]
    return np.asarray(np.moveaxis(values @ (counts / prompts).T, -1, -2))


def _error(values: Float[np.ndarray, " P"]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _interval(draws: Float[np.ndarray, " B"]) -> dict[str, float | None]:
    """The middle 95 % of draws, each end one of them, since a mean of two could be infinity minus infinity."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return {"low": _finite(low), "high": _finite(high)}


def _estimate(value: Any, draws: Float[np.ndarray, " B"]) -> dict[str, float | None]:
    return {"value": _finite(value), **_interval(draws)}


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None

"""What a reward model is worth on held-out pairs: not its accuracy alone (F16).

Everything is computed over all pairs at once, so that neither batch size nor a short last batch changes a figure. Every
figure is the same if the two columns of any pair change places. Formulas: docs/metrics.md.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float, Real
from scipy import stats
from scipy.special import expit
from torch import Tensor

from kleash.errors import DataError

Array = np.ndarray | Tensor
Report = dict[str, Any]
"""Figures that serialise to JSON: finite numbers, None where one does not exist, "unknown" where nobody can tell."""

UNKNOWN = "unknown"
BINS = 10


def preference_report(
    scores: Real[Array, "P 2"],
    p: Real[Array, " P"],
    lengths: Real[Array, "P 2"],
    *,
    label_probability: Real[Array, " P"] | None = None,
    votes: Real[Array, "P 2"] | None = None,
    train_lengths: Real[Array, "N 2"] | None = None,
    train_p: Real[Array, " N"] | None = None,
) -> Report:
    """Measure a reward model on pairs, beside what any model could reach and what length alone reaches.

    Args:
        scores: r(x, y) of both responses.
        p: the label: probability that column 0 is the better one; one half is a tie, left out of accuracies.
        lengths: of both responses, in whatever unit the labeller saw (tokens, words).
        label_probability: probability that the labellers, asked afresh, prefer column 0; gives the noise ceiling.
        votes: how many labels each column got; pairs with two and more bound the noise ceiling.
        train_lengths, train_p: the training pairs, on which the length baseline decides whether longer or shorter wins.
            Without them it decides on these pairs, which flatters it, and the report says so.

    Returns:
        The figures of docs/metrics.md, "Reward model".

    Raises:
        DataError: no pairs, a score that is not finite, a probability outside [0, 1].
    """
    margin = _pairs("score", scores) @ np.array([1.0, -1.0])  # [P]
    longer = _pairs("length", lengths) @ np.array([1.0, -1.0])  # [P]
    label = _probabilities("p", p)
    decided = label != 0.5
    if train_lengths is None or train_p is None:
        fitted_on, fit_longer, fit_label = "these pairs", longer, label
    else:
        fitted_on, fit_label = "training pairs", _probabilities("train_p", train_p)
        fit_longer = _pairs("length", train_lengths) @ np.array([1.0, -1.0])
    prefers_longer = float(((2 * fit_label - 1) * np.sign(fit_longer)).sum()) >= 0
    model = _hits(margin, label)[decided]
    baseline = _hits(longer if prefers_longer else -longer, label)[decided]
    wins, losses = int((model > baseline).sum()), int((model < baseline).sum())

    report: Report = {
        "pairs": len(margin),
        "label_ties": int((~decided).sum()),
        "score_ties": int((margin[decided] == 0).sum()),
        **_accuracy("accuracy", model),
        "chance": 0.5,
        # −log σ(m) = log(1 + e^−m), by logaddexp so that neither tail overflows.
        "log_loss": float(np.mean(label * np.logaddexp(0, -margin) + (1 - label) * np.logaddexp(0, margin))),
        "log_loss_chance": float(np.log(2)),
        **_calibration(margin, label),
        **_length(margin, label, longer),
        **_accuracy("length_accuracy", baseline),
        "length_prefers": "longer" if prefers_longer else "shorter",
        "length_fitted_on": fitted_on,
        "against_length": {"wins": wins, "losses": losses, "p_value": sign_test(wins, losses)},
        "noise_ceiling": UNKNOWN,
        "noise_ceiling_bounds": UNKNOWN,
        "expected_accuracy": UNKNOWN,
    }
    if label_probability is not None and decided.any():
        q = _probabilities("label_probability", label_probability)[decided]
        report["noise_ceiling"] = float(np.maximum(q, 1 - q).mean())
        side = np.sign(margin[decided])
        report["expected_accuracy"] = float(np.mean(0.5 + side * (q - 0.5)))
    if votes is not None:
        report["noise_ceiling_bounds"] = ceiling_bounds(votes)
    return report


def wilson(hits: float | int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927); unlike scipy's it takes halves, as ties are half a hit.

    Args:
        hits: between 0 and n.
        n: trials, at least 1.
        level: confidence.
    """
    z = float(stats.norm.ppf(0.5 + level / 2))
    share, shrink = hits / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact test that wins and losses are equally likely; on two classifiers, McNemar's exact test."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def ceiling_bounds(votes: Real[Array, "P 2"]) -> tuple[float, float] | str:
    """Between what the noise ceiling lies, as far as repeated labels tell.

    Two labels of a pair agree with probability A = E[q² + (1−q)²] = ½ + 2·E[(q−½)²]. The ceiling is ½ + E|q−½|. As
    |q−½| ≤ ½ and by Jensen it lies in [A, ½ + √((A−½)/2)]. A is estimated without bias, pair by pair, from the votes.

    Args:
        votes: labels that each column got.

    Returns:
        (low, high), point estimates both; "unknown" where no pair has two labels.
    """
    counts = _pairs("vote count", votes)
    total = counts.sum(1)
    counts, total = counts[total >= 2], total[total >= 2]
    if not len(counts):
        return UNKNOWN
    agreement = max(0.5, float(np.mean((counts * (counts - 1)).sum(1) / (total * (total - 1)))))
    return agreement, 0.5 + sqrt((agreement - 0.5) / 2)


def _hits(margin: Float[np.ndarray, " P"], label: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """1 where the margin prefers what the label prefers, 0 where the other, one half where the margin is 0."""
    return 0.5 + 0.5 * np.sign(margin) * np.sign(label - 0.5)


def _accuracy(name: str, hits: Float[np.ndarray, " P"]) -> Report:
    """Share of hits with its interval; None where every label is a tie."""
    if not len(hits):
        return {name: None, f"{name}_interval": None}
    return {name: float(hits.mean()), f"{name}_interval": list(wilson(float(hits.sum()), len(hits)))}


def _calibration(margin: Float[np.ndarray, " P"], label: Float[np.ndarray, " P"]) -> Report:
    """Expected calibration error (Naeini et al. 2015) over bins of equal mass.

    Which response stands in column 0 is arbitrary, and files put the chosen one there, so a diagram of σ(margin)
    against the label would be a flat line at 1. A pair is therefore turned to the side that the model prefers:
    confidence σ(|margin|) in [½, 1], outcome the label's probability of that side.
    """
    confidence = expit(np.abs(margin))
    outcome = 0.5 + np.sign(margin) * (label - 0.5)
    # Bins are cut at quantiles of the value, so equal confidences share a bin and the order of rows is nothing.
    edges = np.quantile(confidence, np.linspace(0, 1, BINS + 1)[1:-1])
    bins = np.searchsorted(edges, confidence, side="right")
    reliability: list[Report] = []
    for index in np.unique(bins):
        inside = bins == index
        n, share = int(inside.sum()), float(outcome[inside].mean())
        low, high = wilson(share * n, n)
        reliability.append(
            {"confidence": float(confidence[inside].mean()), "outcome": share, "low": low, "high": high, "pairs": n}
        )
    gap = sum(row["pairs"] * abs(row["confidence"] - row["outcome"]) for row in reliability)
    return {"ece": gap / len(margin), "reliability": reliability}


def _length(margin: Float[np.ndarray, " P"], label: Float[np.ndarray, " P"], longer: Float[np.ndarray, " P"]) -> Report:
    """Least-squares slopes through the origin on the length difference: of the margin, and of the label itself.

    Through the origin because a pair turned round turns both signs; standardised by root mean squares for the same
    reason. The label's own slope stands beside the model's, since better answers may well be longer.
    """
    slope, error = slope_through_origin(longer, margin)
    label_slope, label_error = slope_through_origin(longer, 2 * label - 1)
    square = float((longer * longer).sum())
    raw = float((longer * margin).sum()) / square if square else None
    residual = margin - (raw or 0.0) * longer
    return {
        "length_slope": slope,
        "length_slope_se": error,
        "length_slope_raw": raw,
        "length_slope_raw_se": sqrt(float((longer**2 * residual**2).sum())) / square if square else None,
        "label_length_slope": label_slope,
        "label_length_slope_se": label_error,
    }


def slope_through_origin(x: Float[np.ndarray, " P"], y: Float[np.ndarray, " P"]) -> tuple[float | None, float | None]:
    """Standardised slope of y on x through the origin, and its standard error (White 1980, HC0)."""
    xx, yy = float((x * x).sum()), float((y * y).sum())
    if xx == 0 or yy == 0:
        return None, None
    scale = sqrt(xx / yy)
    slope = float((x * y).sum()) / xx
    residual = y - slope * x
    return slope * scale, sqrt(float((x * x * residual * residual).sum())) / xx * scale


def _pairs(name: str, values: Real[Array, "P 2"]) -> Float[np.ndarray, "P 2"]:
    """Two finite numbers a pair, in double precision."""
    array = _double(values)
    if not len(array):
        raise DataError("no pairs to measure on; give at least one held-out pair")
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise DataError(f"the {name}s of pair {row + 1} are {array[row].tolist()}; every one must be a finite number")
    return array


def _probabilities(name: str, values: Real[Array, " P"]) -> Float[np.ndarray, " P"]:
    """Numbers in [0, 1], in double precision."""
    array = _double(values)
    wrong = np.flatnonzero(~((array >= 0) & (array <= 1)))  # NaN is wrong too
    if len(wrong):
        raise DataError(f"`{name}` of pair {wrong[0] + 1} is {array[wrong[0]]}; give a probability between 0 and 1")
    return array


def _double(values: Array) -> np.ndarray:
    """A NumPy array in double precision, from wherever it lay."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)

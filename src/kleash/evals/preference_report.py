"""Report on a reward model on held-out pairs (F16: accuracy by itself hides length bias and miscalibration).

Everything is computed over all pairs at once, so that the batch size does not change a figure. Swapping the two columns
of any pair does not change a figure either. Formulas: docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from jaxtyping import Float, Real
from scipy.special import expit
from torch import Tensor

from kleash.errors import DataError
from kleash.evals.intervals import Prompts, effective_pairs, mean_error, share_interval, sign_test, sums_by_prompt

Array = np.ndarray | Tensor

UNKNOWN: Literal["unknown"] = "unknown"
"""Marks a figure that exists but cannot be estimated from these data."""

Unknown = Literal["unknown"]
BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs with about the same confidence of the model."""

    confidence: float
    """Mean of c = σ(|m|) over the bin, between ½ and 1."""
    outcome: float
    """Mean of o, the label's probability of the side that the model prefers (½ where m = 0)."""
    low: float
    """Lower end of the 95 % interval of `outcome`, as `accuracy_interval`."""
    high: float
    """Its upper end."""
    pairs: int
    """Pairs in the bin."""


@dataclass(frozen=True)
class AgainstLength:
    """The model against a rule that uses only length."""

    wins: int
    """Pairs on which the model is better than the rule."""
    losses: int
    """Pairs on which it is worse."""
    differ: tuple[float, float]
    """95 % interval of (wins + losses) / pairs with p ≠ ½, as `accuracy_interval`."""
    p_value: float
    """Exact two-sided sign test (McNemar's exact test where nothing ties) that as many prompts have more wins than
    losses as have more losses: with one pair a prompt, of wins = losses."""


@dataclass(frozen=True, kw_only=True)
class PreferenceReport:
    """Figures of a reward on held-out pairs. Swapping y₀ and y₁ of any pair does not change them."""

    pairs: int
    """N."""
    prompts: int
    """Different prompts of these pairs. All intervals, standard errors and tests are over prompts."""
    label_ties: int
    """Number of pairs with p = ½: excluded from every accuracy below, included in log loss, ECE and slopes."""
    score_ties: int
    """Number of the other pairs with m = 0."""
    accuracy: float | None
    """Mean over pairs with p ≠ ½ of 1 if sign m = sign(p − ½), ½ if m = 0, else 0; null where every label is a tie."""
    accuracy_interval: tuple[float, float] | None
    """95 % Wilson (1927) score interval of it: (a + z²/2n ± z√(a(1−a)/n + z²/4n²)) / (1 + z²/n), z = 1.96, n the
    `effective_pairs`."""
    effective_pairs: float
    """Independent pairs that would tell the accuracy as precisely. The number of pairs with p ≠ ½ where each prompt has
    one; where a prompt has several (a ranking), n / D · (z/t)² (Korn & Graubard 1998): D the design effect, the
    variance of the accuracy a over prompts divided by a(1−a)/n, at least 1; t Student's quantile for one degree of
    freedom less than prompts. 0 with one prompt."""
    chance: float
    """0.5."""
    log_loss: float
    """Mean of −p log σ(m) − (1−p) log σ(−m), in nats: the Bradley–Terry loss against the soft label."""
    log_loss_se: float | None
    """Its standard error √(G/(G−1) · Σ over the G prompts (Σ of their pairs (loss − mean))²) / N; null with one
    prompt."""
    log_loss_chance: float
    """log 2: the log loss of equal scores."""
    ece: float
    """Expected calibration error (Naeini et al. 2015): Σ over bins (pairs/N)·|confidence − outcome|. Of a perfectly
    calibrated model it is above 0 too, by about √(2/π · o(1−o)/(pairs in a bin)): compare with that."""
    reliability: list[ReliabilityBin]
    """Pairs oriented to the side that the model prefers, in ten bins of equal mass, cut at the deciles of the
    confidence c; equal confidences share a bin, empty bins are left out."""
    length_slope: float | None
    """Standardised slope of the margin on the length difference, through the origin: Σmd / √(Σm² Σd²), between −1
    and 1. Positive: the model prefers longer responses. Equal to an ordinary regression over all pairs and their mirror
    images."""
    length_slope_se: float | None
    """Its heteroscedasticity-consistent standard error (White 1980, HC0), the scale held fixed: √(Σd²e²)/Σd² ·
    √(Σd²/Σm²), e the residual. Where a prompt has several pairs, their de are added up before they are squared."""
    length_slope_raw: float | None
    """Σmd / Σd²: score for one more unit of length."""
    length_slope_raw_se: float | None
    """Its HC0 error √(Σd²e²)/Σd²."""
    label_length_slope: float | None
    """`length_slope` of 2p − 1 on d. Better answers may well be longer; a model whose slope exceeds its labels'
    exaggerates."""
    label_length_slope_se: float | None
    """Its standard error, as that of `length_slope`."""
    length_accuracy: float | None
    """Accuracy of "prefer the longer" or "prefer the shorter" response; equal lengths count ½."""
    length_accuracy_interval: tuple[float, float] | None
    """Its 95 % Wilson interval."""
    length_prefers: Literal["longer", "shorter"]
    """Which of the two: longer if Σ(2p−1)·sign d ≥ 0."""
    length_fitted_on: Literal["training pairs", "these pairs"]
    """On which pairs `length_prefers` was decided; deciding on these pairs favours the baseline slightly."""
    against_length: AgainstLength
    """The paired comparison with that rule."""
    noise_ceiling: float | Unknown
    """Accuracy against drawn labels of the best possible predictor: mean of max(q, 1−q) over pairs with p ≠ ½, where q
    is the known probability that a labeller prefers y₀; else `"unknown"`."""
    noise_ceiling_bounds: tuple[float, float] | Unknown
    """From repeated labels: [A, ½ + √((A−½)/2)] with A the unbiased agreement of two labels of a pair,
    Σᵥ v(v−1)/(n(n−1)), averaged over pairs with n ≥ 2 labels. E|q−½| lies between 2E(q−½)² and √E(q−½)². `"unknown"`
    without repeats."""
    expected_accuracy: float | Unknown
    """Mean of q where m > 0, 1−q where m < 0, ½ at 0: `accuracy` in expectation over the labels, never above the
    ceiling; `"unknown"` without q."""


def preference_report(
    scores: Real[Array, "P 2"],
    p: Real[Array, " P"],
    lengths: Real[Array, "P 2"],
    *,
    label_probability: Real[Array, " P"] | None = None,
    votes: Real[Array, "P 2"] | None = None,
    train_lengths: Real[Array, "N 2"] | None = None,
    train_p: Real[Array, " N"] | None = None,
    prompts: Prompts | None = None,
) -> PreferenceReport:
    """Measure a reward model on pairs, with the noise ceiling and the accuracy of a rule that uses only length.

    Args:
        scores: r(x, y) of both responses.
        p: the label: probability that column 0 is the better one; one half is a tie, left out of accuracies.
        lengths: of both responses, in the labeller's unit (tokens, words).
        label_probability: probability that the labellers, asked again, prefer column 0; gives the noise ceiling.
        votes: number of labels for each column; pairs with two or more bound the noise ceiling.
        train_lengths, train_p: the training pairs, on which the length baseline decides whether longer or shorter wins.
            Without them it decides on these pairs, which favours it; the report notes it.
        prompts: the prompt of each pair, as of `number_prompts`; None: each pair has its own.

    Returns:
        The figures; None where one does not exist, "unknown" where it cannot be estimated.

    Raises:
        DataError: no pairs, a score that is not finite, a probability outside [0, 1].
    """
    margin = _pairs("score", scores) @ np.array([1.0, -1.0])  # [P]
    longer = _pairs("length", lengths) @ np.array([1.0, -1.0])  # [P]
    label = _probabilities("p", p)
    decided = label != 0.5
    fitted_on: Literal["training pairs", "these pairs"]
    if train_lengths is None or train_p is None:
        fitted_on, fit_longer, fit_label = "these pairs", longer, label
    else:
        fitted_on, fit_label = "training pairs", _probabilities("train_p", train_p)
        fit_longer = _pairs("length", train_lengths) @ np.array([1.0, -1.0])
    prefers_longer = float(((2 * fit_label - 1) * np.sign(fit_longer)).sum()) >= 0
    model = _hits(margin, label)[decided]
    baseline = _hits(longer if prefers_longer else -longer, label)[decided]
    of_decided = None if prompts is None else prompts[decided]

    noise_ceiling: float | Unknown = UNKNOWN
    expected_accuracy: float | Unknown = UNKNOWN
    if label_probability is not None and decided.any():
        q = _probabilities("label_probability", label_probability)[decided]
        noise_ceiling = float(np.maximum(q, 1 - q).mean())
        expected_accuracy = float(np.mean(0.5 + np.sign(margin[decided]) * (q - 0.5)))
    accuracy, interval = _accuracy(model, of_decided)
    length_accuracy, length_interval = _accuracy(baseline, of_decided)
    ece, reliability = _calibration(margin, label, prompts)
    # −log σ(m) = log(1 + e^−m), by logaddexp so that neither tail overflows.
    log_losses = label * np.logaddexp(0, -margin) + (1 - label) * np.logaddexp(0, margin)
    groups = len(sums_by_prompt(margin, prompts))
    return PreferenceReport(
        pairs=len(margin),
        prompts=groups,
        label_ties=int((~decided).sum()),
        score_ties=int((margin[decided] == 0).sum()),
        accuracy=accuracy,
        accuracy_interval=interval,
        effective_pairs=effective_pairs(model, of_decided) if len(model) else 0.0,
        chance=0.5,
        log_loss=float(log_losses.mean()),
        log_loss_se=mean_error(log_losses, prompts) if groups > 1 else None,
        log_loss_chance=float(np.log(2)),
        ece=ece,
        reliability=reliability,
        **_length_slopes(margin, label, longer, prompts),
        length_accuracy=length_accuracy,
        length_accuracy_interval=length_interval,
        length_prefers="longer" if prefers_longer else "shorter",
        length_fitted_on=fitted_on,
        against_length=_against_length(model - baseline, of_decided),
        noise_ceiling=noise_ceiling,
        noise_ceiling_bounds=UNKNOWN if votes is None else ceiling_bounds(votes),
        expected_accuracy=expected_accuracy,
    )


def ceiling_bounds(votes: Real[Array, "P 2"]) -> tuple[float, float] | Unknown:
    """Bounds of the noise ceiling from repeated labels.

    Two labels of a pair agree with probability A = E[q² + (1−q)²] = ½ + 2·E[(q−½)²]. The ceiling is ½ + E|q−½|. As
    |q−½| ≤ ½ and by Jensen it lies in [A, ½ + √((A−½)/2)]. A is estimated without bias, pair by pair, from the votes.

    Args:
        votes: number of labels for each column.

    Returns:
        (low, high), both point estimates; "unknown" where no pair has two labels.
    """
    counts = _pairs("vote count", votes)
    total = counts.sum(1)
    counts, total = counts[total >= 2], total[total >= 2]
    if not len(counts):
        return UNKNOWN
    agreement = max(0.5, float(np.mean((counts * (counts - 1)).sum(1) / (total * (total - 1)))))
    return agreement, 0.5 + sqrt((agreement - 0.5) / 2)


def _hits(margin: Float[np.ndarray, " P"], label: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """1 where margin and label prefer the same side, 0 where they differ, one half where the margin is 0."""
    return 0.5 + 0.5 * np.sign(margin) * np.sign(label - 0.5)


def _accuracy(
    hits: Float[np.ndarray, " P"], prompts: Prompts | None
) -> tuple[float | None, tuple[float, float] | None]:
    """Share of hits with its interval; None where every label is a tie."""
    return (float(hits.mean()), share_interval(hits, prompts)) if len(hits) else (None, None)


def _against_length(lead: Float[np.ndarray, " P"], prompts: Prompts | None) -> AgainstLength:
    """The paired test, from the model's hits minus the rule's; the pairs of a prompt count as one."""
    of_prompt = sums_by_prompt(lead, prompts)
    p_value = sign_test(int((of_prompt > 0).sum()), int((of_prompt < 0).sum()))
    differ = share_interval(lead != 0, prompts) if len(lead) else (0.0, 1.0)
    return AgainstLength(int((lead > 0).sum()), int((lead < 0).sum()), differ, p_value)


def _calibration(
    margin: Float[np.ndarray, " P"], label: Float[np.ndarray, " P"], prompts: Prompts | None
) -> tuple[float, list[ReliabilityBin]]:
    """Expected calibration error (Naeini et al. 2015) over bins of equal mass.

    Which response stands in column 0 is arbitrary, and files put the chosen one there, so a diagram of σ(margin)
    against the label would be a flat line at 1. A pair is therefore oriented to the side that the model prefers:
    confidence σ(|margin|) in [½, 1], outcome the label's probability of that side.
    """
    confidence = expit(np.abs(margin))
    outcome = 0.5 + np.sign(margin) * (label - 0.5)
    # Bins are cut at quantiles of the value, so equal confidences share a bin and the order of rows has no effect.
    edges = np.quantile(confidence, np.linspace(0, 1, BINS + 1)[1:-1])
    bins = np.searchsorted(edges, confidence, side="right")
    reliability = []
    for index in np.unique(bins):
        inside = bins == index
        n, share = int(inside.sum()), float(outcome[inside].mean())
        low, high = share_interval(outcome[inside], None if prompts is None else prompts[inside])
        reliability.append(ReliabilityBin(float(confidence[inside].mean()), share, low, high, n))
    gap = sum(row.pairs * abs(row.confidence - row.outcome) for row in reliability)
    return gap / len(margin), reliability


def _length_slopes(
    margin: Float[np.ndarray, " P"],
    label: Float[np.ndarray, " P"],
    longer: Float[np.ndarray, " P"],
    prompts: Prompts | None,
) -> dict[str, float | None]:
    """Least-squares slopes through the origin on the length difference: of the margin, and of the label itself.

    Through the origin because swapping a pair flips both signs; standardised by root mean squares for the same reason.
    The label's own slope is reported with the model's, since better answers may well be longer.
    """
    slope, error = slope_through_origin(longer, margin, prompts)
    label_slope, label_error = slope_through_origin(longer, 2 * label - 1, prompts)
    square = float((longer * longer).sum())
    raw = float((longer * margin).sum()) / square if square else None
    moments = sums_by_prompt(longer * (margin - (raw or 0.0) * longer), prompts)
    return {
        "length_slope": slope,
        "length_slope_se": error,
        "length_slope_raw": raw,
        "length_slope_raw_se": sqrt(float((moments**2).sum())) / square if square else None,
        "label_length_slope": label_slope,
        "label_length_slope_se": label_error,
    }


def slope_through_origin(
    x: Float[np.ndarray, " P"], y: Float[np.ndarray, " P"], prompts: Prompts | None = None
) -> tuple[float | None, float | None]:
    """Standardised slope of y on x through the origin, and its standard error (White 1980, HC0) over prompts."""
    xx, yy = float((x * x).sum()), float((y * y).sum())
    if xx == 0 or yy == 0:
        return None, None
    scale = sqrt(xx / yy)
    slope = float((x * y).sum()) / xx
    moments = sums_by_prompt(x * (y - slope * x), prompts)
    return slope * scale, sqrt(float((moments**2).sum())) / xx * scale


def _pairs(name: str, values: Real[Array, "P 2"]) -> Float[np.ndarray, "P 2"]:
    """Two finite numbers per pair, in double precision."""
    array = _double(values)
    if not len(array):
        raise DataError("no pairs to measure on; give at least one held-out pair")
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise DataError(f"the {name}s of pair {row + 1} are {array[row].tolist()}; each must be a finite number")
    return array


def _probabilities(name: str, values: Real[Array, " P"]) -> Float[np.ndarray, " P"]:
    """Numbers in [0, 1], in double precision."""
    array = _double(values)
    wrong = np.flatnonzero(~((array >= 0) & (array <= 1)))  # NaN is wrong too
    if len(wrong):
        raise DataError(f"`{name}` of pair {wrong[0] + 1} is {array[wrong[0]]}; give a probability between 0 and 1")
    return array


def _double(values: Array) -> np.ndarray:
    """A NumPy array in double precision, from any kind of array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)

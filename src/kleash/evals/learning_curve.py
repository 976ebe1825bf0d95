"""Will more labels help? Held-out figures of a reward model against its number of labels, extrapolated to twice as
many.

Formulas: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from jaxtyping import Float
from scipy import stats

from kleash.evals.intervals import Prompts, mean_error
from kleash.evals.report_values import MeanSE

NOTHING = 0.01
"""A gain in accuracy whose interval lies below this counts as none."""


@dataclass(frozen=True)
class CurvePoint:
    """A reward model trained on a part of the rows, each part within the next: ⅛, ¼, ½, all."""

    rows: int
    """Rows trained on."""
    accuracy: MeanSE
    """On the held-out pairs."""
    log_loss: MeanSE
    """Likewise, −log P(label)."""


@dataclass(frozen=True)
class Interval:
    """A value of a fitted line, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Extrapolation:
    """The least-squares line in log₂ rows through the sizes. Half-widths are √((1.96·se)² + (4.30·s)²): se over
    held-out pairs of that mix of the figures of a pair, s the error of the reading from the scatter about the line (2
    degrees of freedom; for `at_twice` that of one more run).
    """

    at_twice: Interval
    """The line at twice the rows, capped at a known `noise_ceiling`."""
    gain: Interval
    """Its slope: what twice the rows add."""


@dataclass(frozen=True)
class LearningCurve:
    """Will more labels help? With `learning_curve` only."""

    points: list[CurvePoint]
    """Measured sizes, ascending."""
    accuracy: Extrapolation
    """Of the accuracy."""
    log_loss: Extrapolation
    """Of the log loss."""
    answer: str
    """The answer in a sentence."""


def learning_curve(
    rows: Sequence[int],
    hits: Float[np.ndarray, "S P"],
    log_losses: Float[np.ndarray, "S P"],
    *,
    ceiling: float | None = None,
    prompts: Prompts | None = None,
) -> LearningCurve:
    """Fit a straight line in log₂ of the number of labels and read it off at twice the largest.

    A straight line in the logarithm, because four sizes determine no more; a curve that flattens will gain less.

    Args:
        rows: labels trained on, S ≥ 3 sizes, ascending.
        hits: of each size on the same held-out pairs: 1 ordered as the label has it, 0 not, one half a tie.
        log_losses: likewise, −log P(label).
        ceiling: no accuracy above this is expected.
        prompts: the prompt of each pair, at least two; None: each pair has its own.
    """
    points = [
        CurvePoint(int(size), _mean_se(hit, prompts), _mean_se(loss, prompts))
        for size, hit, loss in zip(rows, hits, log_losses, strict=True)
    ]
    sizes = np.asarray(rows, dtype=np.float64)
    accuracy, log_loss = (_extrapolate(sizes, values, prompts) for values in (hits, log_losses))
    if ceiling is not None:
        twice = accuracy.at_twice
        capped = Interval(min(twice.value, ceiling), min(twice.low, ceiling), min(twice.high, ceiling))
        accuracy = replace(accuracy, at_twice=capped)
    return LearningCurve(points, accuracy, log_loss, _answer(int(rows[-1]), accuracy))


def _extrapolate(
    rows: Float[np.ndarray, " S"], values: Float[np.ndarray, "S P"], prompts: Prompts | None
) -> Extrapolation:
    """The least-squares line in log₂ N at 2N, and by how much it rises from N.

    Every value of the line is a fixed linear combination of the sizes' means, hence a mean over pairs, whose standard
    error is that of the held-out sample (the pairs are the same for all sizes, so that their common part cancels in the
    gain). The variance of training is estimated by the scatter of the sizes about the line, S − 2 degrees of freedom.
    Both variances are added, though the scatter contains part of the first: intervals are conservative.
    """
    x = np.log2(rows / rows[-1])
    design = np.stack([np.ones_like(x), x], 1)
    solve = np.linalg.pinv(design)  # [2, S]
    means = values.mean(1)
    freedom = len(rows) - 2
    scatter = float(((means - design @ (solve @ means)) ** 2).sum() / freedom)
    bread = np.linalg.inv(design.T @ design)

    def reading(position: Float[np.ndarray, " 2"], one_more_run: float) -> Interval:
        mix = position @ solve
        of_pairs = mix @ values
        sampling = mean_error(of_pairs, prompts) * float(stats.norm.ppf(0.975))
        training = sqrt(scatter * (one_more_run + float(position @ bread @ position))) * float(
            stats.t.ppf(0.975, freedom)
        )
        value, half = float(of_pairs.mean()), sqrt(sampling**2 + training**2)
        return Interval(value, value - half, value + half)

    return Extrapolation(at_twice=reading(np.array([1.0, 1.0]), 1.0), gain=reading(np.array([0.0, 1.0]), 0.0))


def _answer(rows: int, accuracy: Extrapolation) -> str:
    gain, twice = accuracy.gain, accuracy.at_twice
    expected = (
        f"at {2 * rows:,} labels, twice as many, expect an accuracy of {twice.value:.3f} "
        f"({twice.low:.3f} to {twice.high:.3f}), a gain of {gain.value:+.3f} ({gain.low:+.3f} to "
        f"{gain.high:+.3f})"
    )
    if gain.low > 0:
        return f"More labels will help: {expected}."
    if gain.high < NOTHING:
        return f"More labels of this kind will hardly help: {expected}."
    return f"The curve cannot tell whether more labels will help: {expected}."


def _mean_se(values: Float[np.ndarray, " P"], prompts: Prompts | None) -> MeanSE:
    return {"mean": float(values.mean()), "se": mean_error(values, prompts)}

"""Will more labels help? A reward model's held-out figures against how many labels it saw, drawn on to twice as many.

Formulas: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

NOTHING = 0.01
"""A gain in accuracy that surely is below this is called none."""


def learning_curve(
    rows: Sequence[int],
    hits: Float[np.ndarray, "S P"],
    log_losses: Float[np.ndarray, "S P"],
    *,
    ceiling: float | None = None,
) -> dict[str, Any]:
    """Fit a straight line in log₂ of the number of labels and read it off at twice the largest.

    Straight in the logarithm because four sizes cannot tell more; a curve that flattens will gain less than it says.

    Args:
        rows: labels trained on, S ≥ 3 sizes, ascending.
        hits: of each size on the same held-out pairs: 1 ordered as the label has it, 0 not, one half a tie.
        log_losses: likewise, −log P(label).
        ceiling: no accuracy above this is expected.

    Returns:
        `points`: `rows`, `accuracy`, `log_loss`, each {"mean", "se"}; `accuracy` and `log_loss`: `at_twice` and `gain`
        over the line at the largest size, each `value`, `low`, `high` (95 %); `answer`, a sentence.
    """
    points = [
        {"rows": int(size), "accuracy": _estimate(own), "log_loss": _estimate(loss)}
        for size, own, loss in zip(rows, hits, log_losses, strict=True)
    ]
    accuracy, log_loss = (_extrapolate(np.asarray(rows, dtype=np.float64), values) for values in (hits, log_losses))
    if ceiling is not None:
        for name in ("value", "low", "high"):
            accuracy["at_twice"][name] = min(accuracy["at_twice"][name], ceiling)
    return {
        "points": points,
        "accuracy": accuracy,
        "log_loss": log_loss,
        "answer": _answer(int(rows[-1]), accuracy),
    }


def _extrapolate(rows: Float[np.ndarray, " S"], values: Float[np.ndarray, "S P"]) -> dict[str, dict[str, float]]:
    """The least-squares line in log₂ N at 2N, and by how much it rises from N.

    Every reading of the line is a fixed mix of the sizes' means, hence a mean over pairs, whose standard error is that
    of the held-out sample (the pairs are the same for all sizes, so that what they share drops out of the gain). What
    luck in training adds is the scatter of the sizes about the line, S − 2 degrees of freedom. Both are added in
    square, though the scatter holds a part of the first: intervals are rather too wide.
    """
    x = np.log2(rows / rows[-1])
    design = np.stack([np.ones_like(x), x], 1)
    solve = np.linalg.pinv(design)  # [2, S]
    means = values.mean(1)
    freedom = len(rows) - 2
    scatter = float(((means - design @ (solve @ means)) ** 2).sum() / freedom)
    bread = np.linalg.inv(design.T @ design)
    readings = {"at_twice": (np.array([1.0, 1.0]), 1.0), "gain": (np.array([0.0, 1.0]), 0.0)}
    found = {}
    for name, (place, one_more_run) in readings.items():
        mix = place @ solve
        of_pairs = mix @ values
        sampling = float(of_pairs.std(ddof=1)) / sqrt(len(of_pairs)) * float(stats.norm.ppf(0.975))
        training = sqrt(scatter * (one_more_run + float(place @ bread @ place))) * float(stats.t.ppf(0.975, freedom))
        value, half = float(of_pairs.mean()), sqrt(sampling**2 + training**2)
        found[name] = {"value": value, "low": value - half, "high": value + half}
    return found


def _answer(rows: int, accuracy: dict[str, dict[str, float]]) -> str:
    gain, twice = accuracy["gain"], accuracy["at_twice"]
    expected = (
        f"at {2 * rows:,} labels, twice as many, expect an accuracy of {twice['value']:.3f} "
        f"({twice['low']:.3f} to {twice['high']:.3f}), a gain of {gain['value']:+.3f} ({gain['low']:+.3f} to "
        f"{gain['high']:+.3f})"
    )
    if gain["low"] > 0:
        return f"More labels will help: {expected}."
    if gain["high"] < NOTHING:
        return f"More labels of this kind will hardly help: {expected}."
    return f"The curve cannot tell whether more labels will help: {expected}."


def _estimate(values: Float[np.ndarray, " P"]) -> dict[str, float]:
    return {"mean": float(values.mean()), "se": float(values.std(ddof=1)) / sqrt(len(values))}

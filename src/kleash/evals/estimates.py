"""Estimates with their uncertainty: a share with its interval, a mean and a slope with their standard errors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kleash.evals.intervals import Prompts, mean_error, share_interval, sums_by_prompt


@dataclass(frozen=True)
class Share:
    """A share of pairs."""

    share: float
    """Hits / pairs."""
    low: float
    """Lower end of its 95 % interval (docs/metrics.md, `accuracy_interval`)."""
    high: float
    """Upper end."""
    pairs: int
    """At least 1."""

    @classmethod
    def of(cls, hits: Any, prompts: Prompts | None = None) -> Share:
        """From one value per pair: 1 for a hit, 0 for a miss, one half for a tie.

        Args:
            hits: of at least one pair.
            prompts: the prompt of each pair; None: each pair has its own.
        """
        values = np.asarray(hits, dtype=np.float64)
        return cls(float(values.mean()), *share_interval(values, prompts), len(values))

    @property
    def interval(self) -> tuple[float, float]:
        """`low` and `high`."""
        return self.low, self.high


def share(hits: Any, prompts: Prompts | None = None) -> Share | None:
    """As `Share.of`; None where there are no pairs."""
    return Share.of(hits, prompts) if len(hits) else None


def share_json(value: Share | None) -> dict[str, object]:
    """A share as JSON; without pairs its numbers are null."""
    return {"share": None, "low": None, "high": None, "pairs": 0} if value is None else asdict(value)


@dataclass(frozen=True)
class Mean:
    """A mean over pairs."""

    mean: float | None
    """None without pairs."""
    se: float | None
    """Standard error of the mean, s / √N with one pair a prompt; None with fewer than two prompts."""

    @classmethod
    def of(cls, values: Any, prompts: Prompts | None = None) -> Mean:
        """From one finite value per pair; `prompts` as of `Share.of`."""
        array = np.asarray(values, dtype=np.float64)
        if not len(array):
            return cls(None, None)
        several = len(sums_by_prompt(array, prompts)) > 1
        return cls(float(array.mean()), mean_error(array, prompts) if several else None)


@dataclass(frozen=True)
class Slope:
    """A slope of a regression through the origin."""

    value: float | None
    """None where there is nothing to regress on."""
    se: float | None
    """Its standard error."""

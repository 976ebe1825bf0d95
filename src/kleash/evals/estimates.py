"""Estimates with their uncertainty: a share with its interval, a mean and a slope with their standard errors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kleash.evals.policy_stats import mean_se
from kleash.evals.preference_report import wilson


@dataclass(frozen=True)
class Share:
    """A share of pairs."""

    share: float
    """Hits / pairs."""
    low: float
    """Lower end of Wilson's 95 % interval."""
    high: float
    """Upper end."""
    pairs: int
    """At least 1."""

    @classmethod
    def of(cls, hits: Any) -> Share:
        """From one value per pair: 1 for a hit, 0 for a miss, one half for a tie.

        Args:
            hits: of at least one pair.
        """
        values = np.asarray(hits, dtype=np.float64)
        low, high = wilson(float(values.sum()), len(values))
        return cls(float(values.mean()), low, high, len(values))


def share(hits: Any) -> Share | None:
    """As `Share.of`; None where there are no pairs."""
    return Share.of(hits) if len(hits) else None


def share_json(value: Share | None) -> dict[str, object]:
    """A share as JSON; without pairs its numbers are null."""
    return {"share": None, "low": None, "high": None, "pairs": 0} if value is None else asdict(value)


@dataclass(frozen=True)
class Mean:
    """A mean over pairs."""

    mean: float | None
    """None without pairs."""
    se: float | None
    """Standard error of the mean, s / √N; None with fewer than two pairs."""

    @classmethod
    def of(cls, values: Any) -> Mean:
        """From one value per pair."""
        result = mean_se(values)
        return cls(result["mean"], result["se"])


@dataclass(frozen=True)
class Slope:
    """A slope of a regression through the origin."""

    value: float | None
    """None where there is nothing to regress on."""
    se: float | None
    """Its standard error."""

"""Stop a run when a held-out figure no longer rises: plain early stopping, the baseline of other rules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Plateau:
    """Ends a run after `patience` measurements in a row without a new best."""

    patience: int | None
    """Measurements; None never ends a run."""
    name: str
    """Name of the figure in the reason: "gold"."""
    best: float = -math.inf
    """Best figure so far."""
    since: int = 0
    """Measurements since then."""
    reason: str | None = None
    """See `StopRule`."""

    def see(self, measurement: float) -> str | None:
        """Update the rule by a figure measured on held-out prompts; higher is better."""
        self.since = 0 if measurement > self.best else self.since + 1
        self.best = max(self.best, measurement)
        if self.patience is not None and self.since >= self.patience:
            self.reason = (
                f"{self.name} on held-out prompts has not risen for {self.since} measurements (best {self.best:.3g})"
            )
        return self.reason

    def state_dict(self) -> dict[str, float | int | str | None]:
        """See `StopRule`."""
        return {"best": self.best, "since": self.since, "reason": self.reason}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `StopRule`."""
        self.best = state.get("best", self.best)
        self.since = state.get("since", self.since)
        self.reason = state.get("reason", self.reason)

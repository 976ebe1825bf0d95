"""A run ends that has gone far enough, or that gets no better."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Ends a run that has gone far enough, or that gets no better; its fields are what a checkpoint stores of it.

    Plain early stopping, the baseline that any cleverer rule has to beat.
    """

    best: float = -math.inf
    """Best held-out figure so far."""
    since: int = 0
    """Measurements since then."""
    reason: str | None = None
    """Why the run ends; None while it goes on."""

    def see_kl(self, kl: float, budget: float | None) -> None:
        """Take in the KL of a rollout, in nats a response."""
        if budget is not None and kl > budget:
            self.reason = f"KL {kl:.3g} nats is beyond the budget of {budget:g}"

    def see_figure(self, figure: float, patience: int | None, what: str) -> None:
        """Take in a held-out figure, more of which is better."""
        self.since = 0 if figure > self.best else self.since + 1
        self.best = max(self.best, figure)
        if patience is not None and self.since >= patience:
            self.reason = (
                f"{what} on held-out prompts has not risen for {self.since} measurements (best {self.best:.3g})"
            )

"""Stop a run whose KL from the reference exceeds a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class KLBudget:
    """Ends a run with the first rollout whose KL exceeds a budget."""

    budget: float | None
    """Nats a response; None never ends a run."""
    reason: str | None = None
    """See `StopRule`."""

    def see(self, measurement: float) -> str | None:
        """Update the rule by the KL of a rollout, in nats a response."""
        if self.budget is not None and measurement > self.budget:
            self.reason = f"KL {measurement:.3g} nats is beyond the budget of {self.budget:g}"
        return self.reason

    def state_dict(self) -> dict[str, str | None]:
        """See `StopRule`."""
        return {"reason": self.reason}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `StopRule`."""
        self.reason = state.get("reason", self.reason)

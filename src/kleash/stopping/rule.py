"""What ends a run before its last step: a rule that sees one measurement after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

Measurement = TypeVar("Measurement", contravariant=True)


class StopRule(Protocol[Measurement]):
    """A rule that ends a run. Its state goes with the checkpoint, so that a resumed run ends where it would have."""

    @property
    def reason(self) -> str | None:
        """Why the run ends; None while it goes on."""
        ...

    def see(self, measurement: Measurement) -> str | None:
        """Take in a measurement, in the order of training; returns `reason`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores of the rule: JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint stored; an empty state leaves the rule as it was built."""
        ...

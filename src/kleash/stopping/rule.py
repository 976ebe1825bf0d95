"""The protocol of a stop rule: it sees one measurement after another and may end the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

Measurement = TypeVar("Measurement", contravariant=True)


@runtime_checkable
class StopRule(Protocol[Measurement]):
    """A rule that ends a run. Its state is part of the checkpoint, so that a resumed run ends at the same step."""

    @property
    def reason(self) -> str | None:
        """Why the run ends; None while it continues."""
        ...

    def see(self, measurement: Measurement) -> str | None:
        """Update the rule by a measurement, in the order of training; returns `reason`."""
        ...

    def state_dict(self) -> Mapping[str, object]:
        """What a checkpoint stores of the rule: JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint; an empty state leaves the rule unchanged."""
        ...


class StopRules:
    """Several rules as one, each with its own measurement.

        stop = StopRules(kl=KLBudget(8.0), figure=Plateau(3, "gold"))
        reason = stop.see(kl=9.1)

    Args:
        rules: by the name of their measurement.
    """

    def __init__(self, **rules: StopRule[Any]) -> None:
        self.rules = rules

    def see(self, **measurements: Any) -> str | None:
        """Update the rules by measurements by name, None for one that was not taken; returns the first reason to
        end.
        """
        for name, measurement in measurements.items():
            if measurement is not None:
                self.rules[name].see(measurement)
        return self.reason

    @property
    def reason(self) -> str | None:
        """Why the run ends; None while it continues."""
        return next((rule.reason for rule in self.rules.values() if rule.reason is not None), None)

    def state_dict(self) -> Mapping[str, object]:
        """The state of each rule."""
        return {name: rule.state_dict() for name, rule in self.rules.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        for name, rule in self.rules.items():
            rule.load_state_dict(state[name])

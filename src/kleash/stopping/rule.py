"""What ends a run before its last step: a rule that sees one measurement after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

Measurement = TypeVar("Measurement", contravariant=True)


@runtime_checkable
class StopRule(Protocol[Measurement]):
    """A rule that ends a run. Its state goes with the checkpoint, so that a resumed run ends where it would have."""

    @property
    def reason(self) -> str | None:
        """Why the run ends; None while it goes on."""
        ...

    def see(self, measurement: Measurement) -> str | None:
        """Take in a measurement, in the order of training; returns `reason`."""
        ...

    def state_dict(self) -> Mapping[str, object]:
        """What a checkpoint stores of the rule: JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint stored; an empty state leaves the rule as it was built."""
        ...


class StopRules:
    """Several rules as one, each looking at a measurement of its own.

        stop = StopRules(kl=KLBudget(8.0), figure=Plateau(3, "gold"))
        reason = stop.see(kl=9.1)

    Args:
        rules: by the name of what they look at.
    """

    def __init__(self, **rules: StopRule[Any]) -> None:
        self.rules = rules

    def see(self, **measurements: Any) -> str | None:
        """Take in measurements by name, None for what was not measured; returns the first reason to end."""
        for name, measurement in measurements.items():
            if measurement is not None:
                self.rules[name].see(measurement)
        return self.reason

    @property
    def reason(self) -> str | None:
        """Why the run ends; None while it goes on."""
        return next((rule.reason for rule in self.rules.values() if rule.reason is not None), None)

    def state_dict(self) -> Mapping[str, object]:
        """The state of each rule."""
        return {name: rule.state_dict() for name, rule in self.rules.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for name, rule in self.rules.items():
            rule.load_state_dict(state[name])

"""How far the training has come, for reward functions that ask for `trainer_state`, as in TRL."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainerState:
    """The part of TRL's `trainer_state` that a reward can mean here."""

    global_step: int = 0
    """Rollouts that the policy was trained on."""
    max_steps: int | None = None
    """Rollouts of the whole run; None where nothing is trained."""


_state: ContextVar[TrainerState] = ContextVar("trainer_state")


def set_trainer_state(state: TrainerState) -> None:
    """Say how far the training has come."""
    _state.set(state)


def trainer_state() -> TrainerState:
    """How far the training has come."""
    return _state.get(TrainerState())

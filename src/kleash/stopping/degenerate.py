"""Degenerate runs: one without any gradient from the reward stops with an error, a solved one ends (F13).

A group whose responses all have the same reward gives no gradient. If every group is like that, the reward causes no
update, and neither an error nor the curves show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kleash.errors import TrainingError

DEAD_AFTER = 20
"""After this many consecutive rollouts without an update from the reward, a run is dead."""

SOLVED_AFTER = 5
"""After this many consecutive rollouts in which every response has the best reward so far, a run is solved."""


@dataclass(frozen=True)
class GroupScores:
    """The scores and mask of a rollout."""

    scores: Float[Tensor, "P K"]
    """As the reward gave them, before the penalties of length and KL; NaN where it has no opinion."""
    mask: Bool[Tensor, "N J T"]
    """True where a token counts; the responses may be in any order."""


@dataclass
class DegenerateRun:
    """Ends a solved run, and stops a dead one with an error."""

    idle: int = 0
    """Rollouts in a row without an update from the reward."""
    perfect: int = 0
    """Rollouts in a row in which every response has the best reward."""
    best: float = -math.inf
    """Best reward of the run so far."""
    least: float = math.inf
    """Least reward of the run so far."""
    solved_share: float = 0.0
    """Share of the last rollout's groups that are solved: every response has the best reward, and a lower one occurred
    before."""

    @property
    def reason(self) -> str | None:
        """See `StopRule`: the run is solved."""
        if self.perfect < SOLVED_AFTER:
            return None
        return f"solved: every response of {self.perfect} rollouts had the best reward seen, {self.best:g}"

    def see(self, measurement: GroupScores) -> str | None:
        """Update the rule by a rollout."""
        scores, none = measurement.scores, measurement.scores.isnan()
        self.best = max([self.best, *scores[~none].tolist()])
        self.least = min([self.least, *scores[~none].tolist()])
        solved = ((scores == self.best) | none).all(-1) & ~none.all(-1) & (self.best > self.least)
        learns = bool((~zero_spread(scores)).any()) and bool(measurement.mask.any())
        self.perfect = self.perfect + 1 if bool((solved | none.all(-1)).all()) and bool(solved.any()) else 0
        self.idle = 0 if learns or self.perfect else self.idle + 1
        self.solved_share = float(solved.float().mean())
        return self.reason

    def raise_if_dead(self, *, end_rate: float, empty: bool, longest: int) -> None:
        """Stop a run without an update for `DEAD_AFTER` rollouts.

        Args:
            end_rate: share of the last rollout's responses that ended by themselves.
            empty: whether no token of the last rollout counts.
            longest: most tokens of a response.

        Raises:
            TrainingError: names the cause and the remedy.
        """
        if self.idle < DEAD_AFTER:
            return
        if empty:
            cause = (
                f"every response is cut off at {longest} tokens and left out of the loss; "
                "raise --max-new-tokens, or take another --overlong"
            )
        elif end_rate == 0:
            cause = (
                f"every response is cut off at {longest} tokens, and all of a group have the same reward; "
                "raise --max-new-tokens, or check with `kleash generate` whether the model ends its responses"
            )
        else:
            rewards = f"{self.best:g}" if self.best == self.least else f"{self.least:g} to {self.best:g} by prompt"
            cause = (
                f"all responses of a group have the same reward ({rewards}); use easier prompts or a better --model, "
                "a larger --group-size or a finer reward"
            )
        raise TrainingError(f"no update in the last {self.idle} rollouts: {cause}")

    def state_dict(self) -> dict[str, float | int]:
        """See `StopRule`."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `StopRule`."""
        for name, value in state.items():
            setattr(self, name, value)


def zero_spread(scores: Float[Tensor, "P K"]) -> Bool[Tensor, " P"]:
    """Groups whose responses all have the same score; NaN: no score."""
    none = scores.isnan()
    return torch.where(none, -math.inf, scores).amax(-1) <= torch.where(none, math.inf, scores).amin(-1)

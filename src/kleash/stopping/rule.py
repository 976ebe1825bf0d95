"""Runs with nothing left to learn: dead ones stop and say why, solved ones end (F13).

A group whose responses all have one reward says nothing about which is better. Where every group is like that, no
update follows from the reward, no error is raised, and the curves look calm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from kleash.errors import TrainingError

DEAD_AFTER = 20
"""Rollouts in a row without an update from the reward."""

SOLVED_AFTER = 5
"""Rollouts in a row in which every response has the best reward seen."""


@dataclass
class DegenerateRun:
    """Watches a run's rollouts; its fields are what a checkpoint stores of it."""

    idle: int = 0
    """Rollouts in a row without an update from the reward."""
    perfect: int = 0
    """Rollouts in a row with nothing but the best reward."""
    best: float = -math.inf
    least: float = math.inf
    """Best and least reward seen in this run."""

    def see(
        self, scores: Float[Tensor, "P K"], penalised_scores: Float[Tensor, "P K"], mask: Bool[Tensor, "N J T"]
    ) -> Bool[Tensor, " P"]:
        """Take in a rollout.

        Args:
            scores: as the reward gave them.
            penalised_scores: what groups are compared by: with penalties, without the KL penalty.
            mask: True where a token counts; any order of the rollout's responses.

        Returns:
            Which groups are solved: nothing but the best reward, which was better than another one.
        """
        self.best, self.least = max(self.best, float(scores.max())), min(self.least, float(scores.min()))
        solved = (scores == self.best).all(-1) & (self.best > self.least)
        learns = bool((~zero_spread_groups(penalised_scores)).any()) and bool(mask.any())
        self.perfect = self.perfect + 1 if bool(solved.all()) else 0
        self.idle = 0 if learns or self.perfect else self.idle + 1
        return solved

    @property
    def solved(self) -> bool:
        """Whether the run is at an end because there is nothing better to be found."""
        return self.perfect >= SOLVED_AFTER

    def raise_if_dead(self, *, end_rate: float, empty: bool, longest: int) -> None:
        """Stop a run that has learned nothing for `DEAD_AFTER` rollouts.

        Args:
            end_rate: share of the last rollout's responses that ended by themselves.
            empty: no token of it counts.
            longest: most tokens of a response.

        Raises:
            TrainingError: naming the cause and the remedy.
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
                f"every response is cut off at {longest} tokens, and all of a group have one reward; "
                "raise --max-new-tokens, or look with `kleash generate` whether the model ends its responses at all"
            )
        else:
            same = self.best == self.least
            seen = f"{self.best:g}" if same else f"between {self.least:g} and {self.best:g} by prompt"
            cause = (
                f"all responses of a group have one reward ({seen}); take easier prompts or a better --model, "
                "a larger --group-size or a finer reward"
            )
        raise TrainingError(f"no update in the last {self.idle} rollouts: {cause}")


def zero_spread_groups(scores: Float[Tensor, "P K"]) -> Bool[Tensor, " P"]:
    """Groups of zero spread: all responses have one score."""
    return scores.amax(-1) == scores.amin(-1)


@dataclass
class Plateau:
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

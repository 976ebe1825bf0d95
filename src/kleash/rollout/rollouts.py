"""The rollouts of a run: an iterator over prompts in a random order, each sampled and scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from kleash.data.batching import rows_at
from kleash.data.group import EncodedGroup
from kleash.data.stream import Rows, Stream, rows_used, stream_state
from kleash.errors import RewardError
from kleash.rewards.trainer_state import TrainerState, set_trainer_state
from kleash.rollout.rollout import Components, Rollout, concatenate_rollouts, measured, sample_scored
from kleash.run import derive_seed

RESAMPLING_ROUNDS = 10
"""Maximum number of times that groups of zero spread are replaced, as in DAPO's released recipe."""


class Rollouts:
    """An endless iterator of rollouts by the current policy.

    Args:
        parts: sampler, models and rewards.
        prompts: cycled without end, reshuffled each time; or a stream.
        batch_size: groups of a rollout.
        group_size: responses of a group.
        seed: of the order of the prompts and of all draws.
        zero_spread: returns which groups have equal scores, to be replaced by groups of other prompts (DAPO's dynamic
            sampling); None: groups are neither replaced nor counted.
        resample: whether those groups are replaced.
        steps: rollouts of the run, for rewards that ask for it.

    Attributes:
        cursor: prompts taken so far.
        step: rollouts made so far.
    """

    def __init__(
        self,
        parts: Components,
        prompts: Rows,
        *,
        batch_size: int,
        group_size: int = 1,
        seed: int,
        zero_spread: Callable[[Rollout], Bool[Tensor, " P"]] | None = None,
        resample: bool = False,
        steps: int | None = None,
    ) -> None:
        self.parts, self.prompts, self.steps = parts, prompts, steps
        self.batch_size, self.group_size, self.seed = batch_size, group_size, seed
        self.zero_spread, self.resample = zero_spread, resample
        self.cursor = 0
        self.step = 0

    def __iter__(self) -> Iterator[Rollout]:
        return self

    def __next__(self) -> Rollout:
        """The next rollout, with the log-probabilities of policy and reference."""
        set_trainer_state(TrainerState(self.step, self.steps))
        self.step += 1
        rounds = RESAMPLING_ROUNDS if self.resample else 1
        useful: list[Rollout] = []
        sampled = zero_spread = missing = 0
        missing = self.batch_size
        for attempt in range(rounds):
            rollout = self._sample(missing, attempt)
            nothing = torch.zeros(len(rollout.groups), dtype=torch.bool, device=rollout.scores.device)
            replaceable = nothing if self.zero_spread is None else self.zero_spread(rollout)
            sampled, zero_spread = sampled + len(rollout.groups), zero_spread + int(replaceable.sum())
            usable = (nothing if attempt + 1 == rounds else replaceable).logical_not().nonzero().squeeze(1)
            if len(usable):
                useful.append(rollout.select(usable))
            missing -= len(usable)
            if missing == 0:
                break
        combined = replace(concatenate_rollouts(useful), sampled_groups=sampled, zero_spread_groups=zero_spread)
        if not bool(combined.opinions.any()):
            raise RewardError(
                f"the reward has no opinion of any of the {combined.scores.numel()} responses of rollout {self.step} "
                "(None for each), so there is nothing to learn from; correct it, or use prompts that it knows"
            )
        return measured(combined, self.parts)

    def _sample(self, count: int, attempt: int) -> Rollout:
        """Groups of the next `count` prompts."""
        prompts = self._next_prompts(count)
        name = ("rollout", self.step) if attempt == 0 else ("rollout", self.step, attempt)
        return sample_scored(
            self.parts,
            prompts,
            group_size=self.group_size,
            seed=derive_seed(self.seed, *name),
            version=self.step - 1,
        )

    @property
    def prompts_read(self) -> int:
        """How many prompts there are; of a stream those so far."""
        return rows_used(self.prompts)

    def _next_prompts(self, count: int) -> list[EncodedGroup]:
        start = self.cursor
        self.cursor += count
        if isinstance(self.prompts, Stream):
            return self.prompts.take(count)[1]
        return [self.prompts[row] for row in rows_at(start, count, len(self.prompts), self.seed)]

    def state_dict(self) -> dict[str, Any]:
        """The position in the prompts, and the number of rollouts so far."""
        streams = {name: stream.state_dict() for name, stream in stream_state(self.prompts).items()}
        return {"cursor": self.cursor, "step": self.step, **streams}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.cursor, self.step = state_dict["cursor"], state_dict["step"]
        for name, stream in stream_state(self.prompts).items():
            stream.load_state_dict(state_dict[name])


def minibatches(rollout: Rollout, count: int, epochs: int, *, seed: int, step: int) -> Iterator[Rollout]:
    """The groups of each optimiser step on a rollout: `epochs` passes, each reshuffled and cut into `count` parts."""
    groups = len(rollout.groups)
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "minibatch", step, epoch))
        for part in torch.randperm(groups, generator=generator).tensor_split(min(count, groups)):
            yield rollout.select(part.to(rollout.batch.mask.device))

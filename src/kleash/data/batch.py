"""Groups in training: tensors over [P prompts, K responses, T tokens]; see `kleash.data.group` for the axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from kleash.data.group import EncodedGroup
from kleash.errors import DataError


@dataclass(frozen=True)
class GroupBatch:
    """Groups in training. K is the same for all; prompts are padded on the left, responses on the right.

    Masks, not token ids, tell which tokens are real, so a pad token that equals the end token changes nothing (F3). The
    per-token fields are 0 where `mask` is False, and move with the tokens whenever groups are selected, split or
    joined.
    """

    prompt_ids: Int[Tensor, "P S"]
    prompt_attention: Bool[Tensor, "P S"]
    """True on real prompt tokens; the last column always is."""
    response_ids: Int[Tensor, "P K T"]
    response_attention: Bool[Tensor, "P K T"]
    """True on real response tokens, chosen or forced."""
    mask: Bool[Tensor, "P K T"]
    """True where the policy chose the token: the tokens of the loss. A subset of `response_attention`."""
    sampler_logprobs: Float[Tensor, "P K T"] | None = None
    """log π_sampler of each token, at the sampling temperature."""
    old_logprobs: Float[Tensor, "P K T"] | None = None
    """log π_old of each token, computed by the trainer, at the sampling temperature."""
    reference_logprobs: Float[Tensor, "P K T"] | None = None
    """log π_ref of each token, at the same temperature."""
    values: Float[Tensor, "P K T"] | None = None
    """Value estimate before each token."""
    returns: Float[Tensor, "P K T"] | None = None
    """Return from each token: the value network's target."""
    advantages: Float[Tensor, "P K T"] | None = None
    """Advantage of each token."""
    weights: Float[Tensor, "P K T"] | None = None
    """Weight of each token in the loss of an optimiser step; the sum is 1, or less with `dr-grpo`'s constant length."""
    version: int | None = None
    """Version of the sampling policy: how many optimiser steps or rollouts it was trained on."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(P, K, T)."""
        prompts, responses, tokens = self.response_ids.shape
        return prompts, responses, tokens

    @property
    def lengths(self) -> Int[Tensor, "P K"]:
        """Real tokens of each response."""
        return self.response_attention.sum(-1)

    def to(self, device: torch.device | str) -> GroupBatch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def select(self, prompts: Int[Tensor, " N"] | slice) -> GroupBatch:
        """The groups of some prompts, trimmed of columns that are padding for all of them."""
        batch = self._map(lambda tensor: tensor[prompts])
        start = int((~batch.prompt_attention.any(0)).sum())
        end = int(batch.response_attention.any(0).any(0).sum())

        def trim(tensor: Tensor) -> Tensor:
            return tensor[..., :end] if tensor.dim() == 3 else tensor[:, start:]

        return batch._map(trim)

    def without(self, responses: Bool[Tensor, "P K"]) -> GroupBatch:
        """The same groups without the tokens of some responses in the mask."""
        return replace(self, mask=self.mask & ~responses[..., None])

    def split(self, size: int) -> GroupBatch:
        """Groups of K as K/size groups of `size` each, the parts of one group consecutive, so that micro-batches can
        separate them.

        A tensor over [P, K, …] follows by `tensor.reshape(-1, size, …)`.
        """

        def part(tensor: Tensor) -> Tensor:
            repeats = self.shape[1] // size
            if tensor.dim() == 3:
                return tensor.reshape(-1, size, tensor.shape[-1])
            return tensor.repeat_interleave(repeats, 0)

        return self._map(part)

    def _map(self, change: Callable[[Tensor], Tensor]) -> GroupBatch:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


def collate(groups: Sequence[EncodedGroup], *, pad_id: int = 0, device: torch.device | str = "cpu") -> GroupBatch:
    """Pad groups of one K into a batch.

    Args:
        groups: at least one group, all with the same number of responses.
        pad_id: fills the padding; any valid id, since masks tell which tokens are real.

    Raises:
        DataError: the groups differ in K.
    """
    sizes = {len(group.responses) for group in groups}
    if len(sizes) != 1:
        raise DataError(f"a batch needs one number of responses for all its prompts, got {sorted(sizes)}; batch by K")
    width = max(len(group.prompt_ids) for group in groups)
    responses = [response for group in groups for response in group.responses]
    depth = max((len(response.ids) for response in responses), default=0)
    shape = (len(groups), sizes.pop(), depth)

    def left(rows: Iterable[Sequence[Any]], fill: Any) -> Tensor:
        return torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows], device=device)

    def right(rows: Iterable[Sequence[Any]], fill: Any, dtype: torch.dtype) -> Tensor:
        padded = [list(row) + [fill] * (depth - len(row)) for row in rows]
        return torch.tensor(padded, dtype=dtype, device=device).reshape(shape)

    sampled = all(response.logprobs is not None for response in responses) and bool(responses)
    return GroupBatch(
        prompt_ids=left((group.prompt_ids for group in groups), pad_id),
        prompt_attention=left(([True] * len(group.prompt_ids) for group in groups), False),
        response_ids=right((response.ids for response in responses), pad_id, torch.long),
        response_attention=right(([True] * len(response.ids) for response in responses), False, torch.bool),
        mask=right((response.mask for response in responses), False, torch.bool),
        sampler_logprobs=right((response.logprobs or () for response in responses), 0.0, torch.float32)
        if sampled
        else None,
    )


def concatenate(batches: Sequence[GroupBatch]) -> GroupBatch:
    """Sampled batches of one K as one, padded to the widest."""
    width = max(batch.prompt_ids.shape[1] for batch in batches)
    depth = max(batch.shape[2] for batch in batches)

    def widen(tensor: Tensor) -> Tensor:
        left, right = (0, depth - tensor.shape[-1]) if tensor.dim() == 3 else (width - tensor.shape[-1], 0)
        return pad(tensor, (left, right))

    widened = [vars(batch._map(widen)) for batch in batches]
    tensors: dict[str, Any] = {
        name: torch.cat([batch[name] for batch in widened])
        for name, value in widened[0].items()
        if isinstance(value, Tensor)
    }
    return replace(batches[0], **tensors)

"""Groups in training: tensors over [P prompts, K responses, T tokens]; see `kleash.data.group` for the axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from kleash.data.group import EncodedGroup
from kleash.errors import DataError

T = TypeVar("T", int, float)


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
    index: Int[Tensor, " N"] | None = None
    """Where `mask`, flattened, is True, so that a GPU need not be asked; None where it was not known on the host."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(P, K, T)."""
        prompts, responses, tokens = self.response_ids.shape
        return prompts, responses, tokens

    @property
    def lengths(self) -> Int[Tensor, "P K"]:
        """Real tokens of each response."""
        return self.response_attention.sum(-1)

    @property
    def token_index(self) -> Int[Tensor, " N"]:
        """Where `mask`, flattened, is True."""
        return self.mask.flatten().nonzero().squeeze(1) if self.index is None else self.index

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
        return replace(self, mask=self.mask & ~responses[..., None], index=None)

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
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor) and name != "index"}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed, index=None)


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
    responses = [response for group in groups for response in group.responses]
    width = max(len(group.prompt_ids) for group in groups)
    depth = max((len(response.ids) for response in responses), default=0)
    prompts, shape = (len(groups), width), (len(groups), sizes.pop(), depth)
    mask = _padded([response.mask for response in responses], depth, 0)
    prompt_ids, prompt_attention, response_ids, response_attention, in_loss, index = _at_once(
        [
            _padded([group.prompt_ids for group in groups], width, pad_id, at_end=True),
            _padded([[1] * len(group.prompt_ids) for group in groups], width, 0, at_end=True),
            _padded([response.ids for response in responses], depth, pad_id),
            _padded([[1] * len(response.ids) for response in responses], depth, 0),
            mask,
            np.flatnonzero(mask),
        ],
        device,
    )
    logprobs = None
    if responses and all(response.logprobs is not None for response in responses):
        rows = _padded([response.logprobs or () for response in responses], depth, 0.0)
        logprobs = torch.as_tensor(rows, dtype=torch.float32, device=device).reshape(shape)
    return GroupBatch(
        prompt_ids=prompt_ids.reshape(prompts),
        prompt_attention=prompt_attention.bool().reshape(prompts),
        response_ids=response_ids.reshape(shape),
        response_attention=response_attention.bool().reshape(shape),
        mask=in_loss.bool().reshape(shape),
        sampler_logprobs=logprobs,
        index=index,
    )


def _padded(rows: Sequence[Sequence[T]], width: int, fill: T, *, at_end: bool = False) -> Shaped[np.ndarray, ...]:
    """Rows of different lengths as an array, at its beginning or its end, the rest filled."""
    whole = np.full((len(rows), width), fill)
    for row, values in zip(whole, rows, strict=True):
        row[slice(width - len(values), None) if at_end else slice(len(values))] = values
    return whole


def _at_once(arrays: Sequence[Shaped[np.ndarray, ...]], device: torch.device | str) -> tuple[Tensor, ...]:
    """Arrays of integers on a device, flat, by one copy for which the host does not wait."""
    whole = torch.from_numpy(np.concatenate([array.ravel() for array in arrays], dtype=np.int64))
    if torch.device(device).type == "cuda":
        whole = whole.pin_memory()
    return whole.to(device, non_blocking=True).split([array.size for array in arrays])


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

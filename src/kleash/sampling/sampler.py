"""What a sampler is: prompts in, groups out. A stage knows no more of an engine than this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from kleash.data.batch import GroupBatch
from kleash.data.group import Group, Response


class Sampler(Protocol):
    """Draws K responses to each of P prompts.

    A response is a function of (weights, prompt, seed, key, k) and of nothing else: not of the batch it is drawn in,
    the order of the prompts or the number of its siblings.
    """

    end_ids: tuple[int, ...]
    """Tokens that end a response."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        seed: int,
        keys: Sequence[int] | None = None,
        version: int | None = None,
    ) -> GroupBatch:
        """Sample a group for each prompt.

        Args:
            prompts: token ids, each at least one.
            group_size: K.
            seed: of all draws.
            keys: one integer a prompt, which names its stream of random numbers; by default its index.
            version: which policy samples; passed on.

        Returns:
            A batch in the order of the prompts. `mask` is True up to and including the end token, or all along where a
            response was cut off; `sampler_logprobs` holds log π_sampler at the sampling temperature.
        """
        ...

    def sync(self, version: int) -> None:
        """Take over the trainer's weights as of an optimiser step."""
        ...


def decode_groups(
    batch: GroupBatch, prompts: Sequence[Group], tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]
) -> list[Group]:
    """Sampled ids as groups: the ids are kept as they are, and decoded only where someone reads the text (F7).

    Args:
        batch: what a sampler returned.
        prompts: the groups that were asked for, in the batch's order; prompt and columns are kept, responses replaced.
        tokenizer: turns ids into text; the end token and other special tokens are left out of it.
        end_ids: a response that ends in one of them has finished.
    """
    ends = frozenset(end_ids)

    def decode(ids: Sequence[int]) -> str:
        text = ids[:-1] if ids and ids[-1] in ends else ids  # an end token need not be a special token
        return str(tokenizer.decode(list(text), skip_special_tokens=True))

    def response(ids: list[int], attention: list[bool]) -> Response:
        kept = tuple(token for token, real in zip(ids, attention, strict=True) if real)
        return Response(ids=kept, finished=bool(kept) and kept[-1] in ends, decode=decode)

    rows = zip(prompts, batch.response_ids.tolist(), batch.response_attention.tolist(), strict=True)
    return [
        Group(
            prompt=group.prompt,
            responses=tuple(response(*pair) for pair in zip(ids, attention, strict=True)),
            columns=group.columns,
        )
        for group, ids, attention in rows
    ]

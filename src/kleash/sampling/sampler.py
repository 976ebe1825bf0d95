"""The sampler protocol: prompts in, groups out. A stage uses an engine only through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.batch import GroupBatch
from kleash.data.group import EncodedGroup, Group, Response
from kleash.models.compute import DType
from kleash.models.finite import is_finite, not_finite


@runtime_checkable
class Sampler(Protocol):
    """Draws K responses to each of P prompts.

    A response is a function of (weights, prompt, seed, key, k) and of nothing else: not of the batch it is drawn in,
    the order of the prompts or the number of its siblings.
    """

    end_ids: tuple[int, ...]
    """Tokens that end a response."""
    exact: bool
    """Whether `sampler_logprobs` equal the trainer's, so that they need not be computed again."""

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
            keys: one integer per prompt, which names its stream of random numbers; by default its index.
            version: which policy samples; passed on.

        Returns:
            A batch in the order of the prompts. `mask` is True up to and including the end token, or all along where a
            response was cut off; `sampler_logprobs` holds log π_sampler at the sampling temperature.
        """
        ...

    def sync(self, version: int) -> None:
        """Load the trainer's weights of an optimiser step."""
        ...


def build_sampler(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    max_rows: int = 256,
    dtype: DType = "float32",
) -> Sampler:
    """The engine that samples from a model.

    Args:
        model: a causal language model.
        tokenizer: gives the end tokens and the padding.
        max_new_tokens: longest response, end token included.
        temperature: divides the logits; 0 takes the likeliest token.
        max_rows: responses sampled at once.
        dtype: what to compute in.
    """
    from kleash.sampling.local import LocalSampler  # here, so that the protocol can be read without an engine

    return LocalSampler(
        model, tokenizer, max_new_tokens=max_new_tokens, temperature=temperature, max_rows=max_rows, dtype=dtype
    )


def sample_groups(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedGroup],
    *,
    group_size: int,
    seed: int,
    version: int | None = None,
) -> tuple[GroupBatch, list[Group]]:
    """Sample K responses to each prompt, as tensors and as groups whose text is decoded on demand.

    Raises:
        TrainingError: a log-probability is not finite.
    """
    ids = [prompt.prompt_ids for prompt in prompts]
    batch = sampler(ids, group_size=group_size, seed=seed, version=version)
    if batch.sampler_logprobs is not None and not is_finite(batch.sampler_logprobs):
        model = getattr(sampler, "model", None)
        raise not_finite("the log-probabilities of the samples are", model, trained=bool(version))
    return batch, decode_groups(batch, [prompt.source for prompt in prompts], tokenizer, sampler.end_ids)


def decode_groups(
    batch: GroupBatch, prompts: Sequence[Group], tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]
) -> list[Group]:
    """Sampled ids as groups: the ids are kept, and decoded only when the text is read (F7).

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
        tokens = tuple(token for token, real in zip(ids, attention, strict=True) if real)
        return Response(ids=tokens, finished=bool(tokens) and tokens[-1] in ends, decode=decode)

    rows = zip(prompts, batch.response_ids.tolist(), batch.response_attention.tolist(), strict=True)
    return [
        Group(
            prompt=group.prompt,
            responses=tuple(response(*pair) for pair in zip(ids, attention, strict=True)),
            columns=group.columns,
        )
        for group, ids, attention in rows
    ]

"""The sampler protocol: prompts in, groups out. A stage uses an engine only through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.batch import GroupBatch
from kleash.data.group import EncodedGroup, Group, Response
from kleash.models.compute import DType
from kleash.models.finite import is_finite, not_finite
from kleash.sampling.stop_texts import StopTexts
from kleash.sampling.truncation import Truncation


@runtime_checkable
class Sampler(Protocol):
    """Draws K responses to each of P prompts.

    A response is a function of (weights, prompt, seed, key, k) and of nothing else: not of the batch it is drawn in,
    the order of the prompts or the number of its siblings. A sampler whose responses end with stop texts, too, has a
    `stop: StopTexts`.
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
            A batch in the order of the prompts. `mask` is True up to and including the token that ends the response, or
            all along where it was cut off; `sampler_logprobs` holds log π_sampler at the sampling temperature.
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
    stop: Sequence[str] = (),
    truncation: Truncation | None = None,
    max_rows: int = 256,
    dtype: DType = "float32",
) -> Sampler:
    """The engine that samples from a model.

    Args:
        model: a causal language model.
        tokenizer: gives the end tokens and the padding.
        max_new_tokens: longest response, end token included.
        temperature: divides the logits; 0 takes the likeliest token.
        stop: texts that end a response, too, see `stop_texts`.
        truncation: which tokens may be sampled; None: all. Log-probabilities are then those of the truncated
            distribution.
        max_rows: responses sampled at once.
        dtype: what to compute in.
    """
    from kleash.sampling.local import LocalSampler  # here, so that the protocol can be read without an engine

    return LocalSampler(
        model, tokenizer, max_new_tokens=max_new_tokens, temperature=temperature, stop=stop, truncation=truncation,
        max_rows=max_rows, dtype=dtype,
    )  # fmt: skip


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
    sources = [prompt.source for prompt in prompts]
    return batch, decode_groups(batch, sources, tokenizer, sampler.end_ids, stop=stop_texts(sampler))


def stop_texts(sampler: Sampler) -> StopTexts | None:
    """The texts that end a sampler's responses; a sampler need not know of any."""
    return getattr(sampler, "stop", None)


def decode_groups(
    batch: GroupBatch,
    prompts: Sequence[Group],
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int],
    *,
    stop: StopTexts | None = None,
) -> list[Group]:
    """Sampled ids as groups: the ids are kept, and decoded only when the text is read (F7).

    Args:
        batch: what a sampler returned.
        prompts: the groups that were asked for, in the batch's order; prompt and columns are kept, responses replaced.
        tokenizer: turns ids into text; the end token and other special tokens are left out of it.
        end_ids: a response that ends in one of them has finished.
        stop: a response that ends with one of these texts has finished, too; the text is left out.
    """
    ends = frozenset(end_ids)

    def decode(ids: Sequence[int]) -> str:
        visible = ids[:-1] if ids and ids[-1] in ends else ids  # an end token need not be a special token
        text = str(tokenizer.decode(list(visible), skip_special_tokens=True))
        return text if stop is None else stop.cut(text)

    rows = zip(batch.response_ids.flatten(0, 1).tolist(), batch.response_attention.flatten(0, 1).tolist(), strict=True)
    sampled = [tuple(token for token, real in zip(*row, strict=True) if real) for row in rows]
    stopped = [False] * len(sampled) if stop is None else stop.completed(sampled)
    responses = [
        Response(ids=ids, finished=by_text or not ends.isdisjoint(ids[-1:]), stopped=by_text, decode=decode)
        for ids, by_text in zip(sampled, stopped, strict=True)
    ]
    siblings = batch.shape[1]
    return [
        Group(group.prompt, tuple(responses[p * siblings : (p + 1) * siblings]), columns=group.columns)
        for group, p in zip(prompts, range(batch.shape[0]), strict=True)
    ]

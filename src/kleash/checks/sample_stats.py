"""Statistics of responses that a language model samples to a few prompts.

The checks themselves are in `sft_checks`. Responses of the data are described in the same terms, for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.batch import GroupBatch, collate
from kleash.data.batching import by_size, microbatches
from kleash.data.chat import end_ids
from kleash.data.group import EncodedGroup, Group
from kleash.evals.intervals import Prompts, number_prompts, ratio_interval, sums_by_prompt
from kleash.models.forward import response_logprobs
from kleash.models.load import autocast, context_length
from kleash.objectives.reduce import masked_sum
from kleash.run import derive_seed
from kleash.sampling.sampler import build_sampler, sample_groups

MICRO_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Responses:
    """Statistics of some responses."""

    lengths: tuple[int, ...]
    """Tokens of each, without the end token."""
    ended: tuple[bool, ...]
    """Whether each ended by itself."""
    repetition: tuple[float, ...]
    """Share of its 4-grams that occur earlier in it, of each with at least one (Welleck et al. 2020, seq-rep-4)."""
    controls: tuple[bool, ...]
    """Whether each holds a control token (of a template, padding, …) before its end."""


@dataclass(frozen=True)
class Samples(Responses):
    """K ≥ 2 responses sampled to each prompt, those of a prompt one after another."""

    differ: tuple[bool, ...]
    """Whether the first two responses to each prompt differ."""
    distinct: float
    """Different responses over all responses."""
    entropy: float
    """Of the next token, in nats, mean over the tokens sampled."""
    entropy_interval: tuple[float, float]
    """Its 95 % interval, over prompts."""
    vocabulary: int
    """Size of the vocabulary: the entropy is at most its logarithm."""
    limit: int
    """Most tokens a response could have, end token included."""

    @property
    def prompts(self) -> Prompts:
        """The prompt of each response."""
        return np.arange(len(self.ended)) // (len(self.ended) // len(self.differ))

    @property
    def prompts_of_repetition(self) -> Prompts:
        """The prompt of each response that has a `repetition`."""
        return self.prompts[np.array(self.lengths) >= 4]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedGroup],
    *,
    limit: int,
    seed: int,
    group_size: int = 2,
    stop: Sequence[str] = (),
    dtype: str = "float32",
) -> tuple[list[Group], Samples] | None:
    """Sample responses and describe them.

    Args:
        model: a causal language model; its mode is restored.
        tokenizer: its own.
        prompts: their responses are not read; prompts that leave no room are skipped.
        limit: longest response in tokens.
        seed: of the draws.
        group_size: K ≥ 2.
        stop: texts that end a response, too.
        dtype: what to compute in.

    Returns:
        The groups sampled, and their figures; None where no prompt leaves room.
    """
    room = (context_length(model) or 1 << 30) - limit
    fitting = [prompt for prompt in prompts if len(prompt.prompt_ids) <= room]
    if not fitting:
        return None
    sampler = build_sampler(model, tokenizer, max_new_tokens=limit, stop=stop, max_rows=128, dtype=dtype)  # type: ignore[arg-type]
    seed = derive_seed(seed, "gate")
    batch, groups = sample_groups(sampler, tokenizer, fitting, group_size=group_size, seed=seed)
    ids = [[response.ids or () for response in group.responses] for group in groups]
    everything = [response for row in ids for response in row]
    described = describe(everything, tokenizer, ends=sampler.end_ids)
    nats, tokens = _entropies(model, batch, dtype)
    samples = Samples(
        **vars(described) | {"ended": tuple(response.finished for group in groups for response in group.responses)},
        differ=tuple(row[0] != row[1] for row in ids),
        distinct=len(set(everything)) / len(everything),
        entropy=float(nats.sum() / max(1, tokens.sum())),
        entropy_interval=ratio_interval(nats, tokens),
        vocabulary=int(model.config.get_text_config().vocab_size),
        limit=limit,
    )
    return groups, samples


def describe(
    responses: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, *, ends: Sequence[int] | None = None
) -> Responses:
    """Describe responses given as token ids, end token included where they ended.

    Args:
        responses: token ids.
        tokenizer: theirs.
        ends: the tokens that end a response; None: those of the tokenizer and its template.
    """
    last = frozenset(end_ids(tokenizer) if ends is None else ends)
    controls = frozenset([*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]) - last
    ended = tuple(bool(ids) and ids[-1] in last for ids in responses)
    words = [tuple(ids[:-1]) if over else tuple(ids) for ids, over in zip(responses, ended, strict=True)]
    return Responses(
        lengths=tuple(map(len, words)),
        ended=ended,
        repetition=tuple(_repetition(ids) for ids in words if len(ids) >= 4),
        controls=tuple(not controls.isdisjoint(ids) for ids in words),
    )


def responses_of(groups: Sequence[EncodedGroup]) -> list[tuple[int, ...]]:
    """Token ids of all responses that are the assistant's own from the first token to the last."""
    return [response.ids for group in groups for response in group.responses if all(response.mask)]


def usual_length(groups: Sequence[EncodedGroup], *, most: int) -> int:
    """How many tokens let nine tenths of the data's responses end, at most `most`."""
    lengths = [len(ids) for ids in responses_of(groups)]
    return min(most, math.ceil(float(np.quantile(lengths, 0.9)))) if lengths else most


@torch.no_grad()
def prompt_effect(
    model: PreTrainedModel, groups: Sequence[EncodedGroup], *, dtype: str = "float32"
) -> Float[np.ndarray, " N"]:
    """How much likelier each response is after its own prompt than after another row's, in nats.

    If the responses of the data were assigned to prompts at random, the differences would be as often below zero as
    above, for any model.

    Args:
        model: a causal language model.
        groups: rows with one response.
        dtype: what to compute in.

    Returns:
        log π(y|x) − log π(y|x′) of each row that has another with a different prompt.
    """
    pairs = [
        (group, other)
        for group, other in zip(groups, [*groups[1:], *groups[:1]], strict=True)
        if group.prompt_ids != other.prompt_ids
    ]
    own_sums = _sums(model, [group for group, _ in pairs], dtype)
    swapped = [EncodedGroup(other.prompt_ids, group.responses, group.source) for group, other in pairs]
    return own_sums - _sums(model, swapped, dtype)


@dataclass(frozen=True)
class ExcessNLL:
    """Excess negative log-likelihood: how much less likely responses are under a model than its own samples."""

    nats: float
    """Mean over tokens of −log π(y_t) − H_t, H_t the entropy of the distribution that y_t was drawn from. Its
    expectation is 0 exactly for samples of the model at temperature 1, of any length and cut off anywhere, since each
    term has conditional mean 0. Above 0: another author; below 0: a lower temperature."""
    se: float
    """Its standard error, over prompts."""


@torch.no_grad()
def excess_nll(model: PreTrainedModel, groups: Sequence[EncodedGroup], *, dtype: str = "float32") -> ExcessNLL:
    """Excess negative log-likelihood of the responses of some groups, at least one; of any K."""
    sums: list[float] = []
    counts: list[int] = []
    prompts: list[tuple[int, ...]] = []
    for part in microbatches(groups, max_tokens=MICRO_BATCH_TOKENS, device=model.device):
        batch = collate([groups[row] for row in part], device=model.device)
        prompts += [groups[row].prompt_ids for row in part for _ in groups[row].responses]
        with autocast(dtype, model.device):
            logprobs, entropy = response_logprobs(model, batch)
        sums += masked_sum(-logprobs.float() - entropy.float(), batch.mask, -1).flatten().tolist()
        counts += batch.mask.sum(-1).flatten().tolist()
    total, tokens = np.array(sums), np.array(counts)
    nats = float(total.sum() / tokens.sum())
    residuals = sums_by_prompt(total - nats * tokens, number_prompts(prompts))
    return ExcessNLL(nats, float(np.sqrt((residuals**2).sum()) / tokens.sum()))


def _sums(model: PreTrainedModel, groups: Sequence[EncodedGroup], dtype: str) -> Float[np.ndarray, " N"]:
    """Log π(y|x) of the one response of each group."""
    sums = np.zeros(len(groups))
    for part in microbatches(groups, max_tokens=MICRO_BATCH_TOKENS, device=model.device):
        batch = collate([groups[row] for row in part], device=model.device)
        with autocast(dtype, model.device):
            logprobs, _ = response_logprobs(model, batch)
        sums[part] = masked_sum(logprobs.float(), batch.mask, -1)[:, 0].cpu().numpy()
    return sums


@torch.no_grad()
def _entropies(
    model: PreTrainedModel, batch: GroupBatch, dtype: str
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Entropy of the next token summed over the sampled tokens of each prompt, in nats, and how many they are."""
    _, responses, tokens = batch.shape
    lengths = batch.prompt_attention.sum(-1).tolist()
    sums = np.zeros(len(lengths))
    for part in by_size([(responses, length, tokens) for length in lengths], max_tokens=MICRO_BATCH_TOKENS):
        rows = batch.select(torch.tensor(part, device=model.device))
        with autocast(dtype, model.device):
            _, entropy = response_logprobs(model, rows)
        sums[part] = masked_sum(entropy.float(), rows.mask, -1).sum(-1).double().cpu().numpy()
    return sums, batch.mask.sum((1, 2)).double().cpu().numpy()


def _repetition(ids: Sequence[int]) -> float:
    grams = [tuple(ids[start : start + 4]) for start in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams)

"""Sampling from the trainer's own weights: no copy, no sync, no other engine.

Left out: compilation, which takes longer than a short run; a paged cache, which pays off on GPUs (use vLLM for that).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from kleash.data import chat
from kleash.data.batch import GroupBatch
from kleash.errors import DataError, ModelError
from kleash.models.compute import DType
from kleash.models.forward import find_decoder, plain_attention, projection, prompt_positions, run_decoder
from kleash.models.load import autocast, context_length
from kleash.progress import Progress
from kleash.sampling.stop_texts import StopTexts, Tail
from kleash.sampling.truncation import NEAR_TIE, Truncation

RETIRE_SHARE = 0.25
"""Rows are dropped from the cache as soon as this share of them has finished: more often costs copies."""


class LocalSampler:
    """Batched sampling over a cache, the prompt computed once for its K responses.

    Each (seed, key, k) has its own stream of random numbers, and each number picks a token by inverting the
    cumulative distribution. So a response does not depend on the batch it is drawn in, except where a number falls so
    near the boundary between two tokens that rounding decides: matrix products of another shape round differently.
    These near-ties are counted; a response without one is the same in every batch, but for the last digits of its
    log-probabilities.

    Args:
        model: a causal language model; sampled in evaluation mode, its mode restored.
        tokenizer: gives the end token and the padding.
        max_new_tokens: longest response, end token included.
        temperature: divides the logits; 0 takes the likeliest token.
        end_ids: tokens that end a response; None: those of `kleash.data.chat.end_ids` and of the model's generation
            config.
        stop: texts that end a response, too, see `stop_texts`.
        truncation: which tokens may be sampled; None: all.
        max_rows: responses sampled at once.
        dtype: of the computation.

    Attributes:
        exact: whether `sampler_logprobs` equal the trainer's: True in float32, where both compute the same, unless the
            distribution is truncated.
        near_ties: draws within `NEAR_TIE` of a boundary so far.
        tokens_sampled: tokens of all responses so far.

    Raises:
        ModelError: there is no end token.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        end_ids: Sequence[int] | None = None,
        stop: Sequence[str] = (),
        truncation: Truncation | None = None,
        max_rows: int = 256,
        dtype: DType = "float32",
    ) -> None:
        self.stop = StopTexts(stop, tokenizer) if stop else None
        ends = all_end_ids(model, tokenizer) if end_ids is None else tuple(end_ids)
        self.end_ids = tuple(dict.fromkeys((*ends, *(self.stop.end_ids if self.stop else ()))))
        if not self.end_ids:
            raise ModelError("no token may end a response, so none could ever end; give end_ids")
        self.model = model
        self.pad_id = self.end_ids[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.truncation = truncation
        self.max_rows = max_rows
        self.dtype = dtype
        self.exact = dtype == "float32" and truncation is None
        self.near_ties = 0
        self.tokens_sampled = 0

    def sync(self, version: int) -> None:
        """Nothing to do: these are the trainer's weights."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        seed: int,
        keys: Sequence[int] | None = None,
        version: int | None = None,
    ) -> GroupBatch:
        """Sample K responses to each prompt; see `Sampler`.

        At temperature 0 `sampler_logprobs` are those of temperature 1. A near-tie is then a gap of less than `NEAR_TIE`
        between the two largest logits.

        Raises:
            DataError: there is no prompt, or one is empty or does not fit into the model's context.
        """
        self._check(prompts)
        keys = range(len(prompts)) if keys is None else keys
        uniforms = np.stack(
            [stream(seed, key, k, self.max_new_tokens) for key in keys for k in range(group_size)]
        ).reshape(len(prompts), group_size, self.max_new_tokens)
        device = self.model.get_input_embeddings().weight.device
        shape = (len(prompts), group_size, self.max_new_tokens)
        ids = torch.full(shape, self.pad_id, device=device)
        logprobs = torch.zeros(shape, device=device)
        attention = torch.zeros(shape, dtype=torch.bool, device=device)
        training = self.model.training
        self.model.eval()  # dropout would sample from another policy (F7)
        try:
            with Progress(len(prompts) * group_size, "sample") as progress, autocast(self.dtype, device):
                for rows, siblings in self._blocks(prompts, group_size):
                    prompt_ids, prompt_attention = _pad_left([prompts[row] for row in rows], self.pad_id, device)
                    draws = torch.from_numpy(uniforms[rows, siblings].reshape(-1, self.max_new_tokens)).to(device)
                    block = self._sample(prompt_ids, prompt_attention, draws)
                    for whole, part in ((ids, block.ids), (logprobs, block.logprobs), (attention, block.attention)):
                        whole[rows, siblings] = part.reshape(len(rows), -1, self.max_new_tokens)
                    self.near_ties += int((block.near & block.attention).sum())
                    progress.update(progress.step + len(draws))
        finally:
            self.model.train(training)
        self.tokens_sampled += int(attention.sum())
        longest = int(attention.any(0).any(0).sum())
        prompt_ids, prompt_attention = _pad_left(prompts, self.pad_id, device)
        return GroupBatch(
            prompt_ids=prompt_ids,
            prompt_attention=prompt_attention,
            response_ids=ids[..., :longest],
            response_attention=attention[..., :longest],
            mask=attention[..., :longest].clone(),
            sampler_logprobs=logprobs[..., :longest],
            version=version,
        )

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        if not prompts:
            raise DataError("there is no prompt to respond to; give at least one")
        context = context_length(self.model)
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise DataError(f"prompt {index} is empty; give it at least one token")
            if context is not None and len(prompt) + self.max_new_tokens > context:
                raise DataError(
                    f"prompt {index} has {len(prompt)} tokens and {self.max_new_tokens} new ones are requested, "
                    f"but the model's context is {context}; shorten the prompt or max_new_tokens"
                )

    def _blocks(self, prompts: Sequence[Sequence[int]], group_size: int) -> Iterator[tuple[list[int], slice]]:
        """Prompts of similar length together, whole groups where a group fits into `max_rows`."""
        by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        width = max(1, self.max_rows // group_size)
        for start in range(0, len(prompts), width):
            for first in range(0, group_size, self.max_rows):
                yield by_length[start : start + width], slice(first, first + self.max_rows)

    @torch.no_grad()
    def _sample(
        self, prompt_ids: Int[Tensor, "P S"], prompt_attention: Bool[Tensor, "P S"], draws: Float64[Tensor, "R T"]
    ) -> _Block:
        """Sample one block: R = P·K rows, the K rows of a prompt together."""
        decoder, project = find_decoder(self.model), projection(self.model)
        (rows, steps), siblings = draws.shape, len(draws) // len(prompt_ids)
        positions = prompt_positions(prompt_attention)
        cache = DynamicCache(config=decoder.config)
        states = run_decoder(
            decoder,
            input_ids=prompt_ids,
            attention_mask=prompt_attention.long(),
            position_ids=positions,
            cache=cache,
        ).last_hidden_state
        logits = project(states[:, -1]).repeat_interleave(siblings, 0)
        _expand(decoder, cache, siblings, steps)

        width = prompt_ids.shape[1]
        attention = None  # without padding all of the cache is visible
        if not prompt_attention.all() or not plain_attention(decoder):
            visible = prompt_attention.long().repeat_interleave(siblings, 0)
            attention = torch.cat([visible, visible.new_ones(rows, steps)], 1)
        position = positions[:, -1:].repeat_interleave(siblings, 0)
        ends = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        ends[[end for end in self.end_ids if end < len(ends)]] = True  # the tokenizer may have more than the model

        block = _Block.empty(rows, steps, self.pad_id, logits.device)
        active = torch.arange(rows, device=logits.device)  # which rows still run
        running = torch.ones(rows, dtype=torch.bool, device=logits.device)
        tails: list[Tail] = [[] for _ in range(rows)]  # of the rows that still run
        chunk: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for step in range(steps):
            tokens, logprobs, near = draw(
                logits, draws[:, step], temperature=self.temperature, truncation=self.truncation
            )
            last = ends[tokens]
            if self.stop is not None:
                last = last | torch.tensor(self.stop.extend(tails, tokens.tolist()), device=last.device)
            chunk.append((tokens, logprobs, near, last))
            running = running & ~last
            remaining = int(running.sum())
            if remaining == 0 or step + 1 == steps:
                break
            if len(active) - remaining >= RETIRE_SHARE * len(active):
                block.write(active, step, chunk)
                chunk, survivors = [], running.nonzero().squeeze(1)
                cache.batch_select_indices(survivors)
                active, running, draws, tokens, position = (
                    tensor[survivors] for tensor in (active, running, draws, tokens, position)
                )
                attention = None if attention is None else attention[survivors]
                tails = [tails[row] for row in survivors.tolist()] if self.stop is not None else tails
            position = position + 1
            states = run_decoder(
                decoder,
                input_ids=tokens[:, None],
                attention_mask=None if attention is None else attention[:, : width + step + 1],
                position_ids=position,
                cache=cache,
            ).last_hidden_state
            logits = project(states[:, -1])
        block.write(active, step, chunk)
        block.end(self.pad_id)
        return block


def all_end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a response: the tokenizer's and its template's, and those of the model's generation_config.json
    that the model can write.

    Raises:
        ModelError: there is none.
    """
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    configured = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    rows = len(model.get_input_embeddings().weight) if configured else 0
    return tuple(dict.fromkeys((*chat.end_ids(tokenizer), *(end for end in configured if 0 <= end < rows))))


def draw(
    logits: Float[Tensor, "R V"],
    uniforms: Float64[Tensor, " R"],
    *,
    temperature: float,
    truncation: Truncation | None = None,
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"], Bool[Tensor, " R"]]:
    """Pick a token per row by inverting the cumulative distribution.

    Args:
        logits: any float dtype.
        uniforms: one number in [0, 1) a row.
        temperature: divides the logits; 0 takes the likeliest token and ignores the numbers.
        truncation: which tokens may be picked; None: all.

    Returns:
        (token, its log-probability, whether rounding could have picked its neighbour).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature == 0:
        best = logits.topk(min(2, logits.shape[-1]), -1).values
        tokens = logits.argmax(-1, keepdim=True)
        logprobs = logits.log_softmax(-1).gather(-1, tokens).squeeze(-1)
        return tokens.squeeze(-1), logprobs, best[:, 0] - best[:, -1] < NEAR_TIE
    logits, unsure = logits / temperature, None
    if truncation is not None:
        logits, unsure = truncation(logits)
    probabilities = logits.softmax(-1)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)  # float32 would lose bins in a large vocabulary
    total = cumulative[:, -1:]
    target = uniforms[:, None] * total
    tokens = torch.searchsorted(cumulative, target, right=True).clamp_max_(logits.shape[-1] - 1)
    logprobs = probabilities.gather(-1, tokens).log().squeeze(-1)
    above = cumulative.gather(-1, tokens)
    below = cumulative.gather(-1, (tokens - 1).clamp_min_(0))
    # beyond the first and the last token with any probability there is no neighbour
    near = ((above - target < NEAR_TIE) & (above < total)) | ((target - below < NEAR_TIE) & (below > 0) & (tokens > 0))
    near = near.squeeze(-1)
    return tokens.squeeze(-1), logprobs, near if unsure is None else near | unsure


def stream(seed: int, key: int, k: int, count: int) -> Float64[np.ndarray, " T"]:
    """The first `count` random numbers in [0, 1) of response k to the prompt named by `key`."""
    digest = hashlib.blake2b(f"{seed}/{key}/{k}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big"))).random(count)


@dataclass(frozen=True)
class _Block:
    """Responses of one block, filled in as its rows finish."""

    ids: Int[Tensor, "R T"]
    logprobs: Float[Tensor, "R T"]
    near: Bool[Tensor, "R T"]
    last: Bool[Tensor, "R T"]
    """Whether a response ends with the token."""
    attention: Bool[Tensor, "R T"]

    @classmethod
    def empty(cls, rows: int, steps: int, pad_id: int, device: torch.device) -> _Block:
        flags = torch.zeros(3, rows, steps, dtype=torch.bool, device=device)
        ids = torch.full((rows, steps), pad_id, device=device)
        return cls(ids, torch.zeros(rows, steps, device=device), *flags)

    def write(self, rows: Int[Tensor, " N"], step: int, chunk: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        """Store the draws of some rows in the steps up to and including `step`."""
        span = slice(step + 1 - len(chunk), step + 1)
        targets = (self.ids, self.logprobs, self.near, self.last)
        for target, pieces in zip(targets, zip(*chunk, strict=True), strict=True):
            target[rows, span] = torch.stack(pieces, 1).to(target.dtype)
        self.attention[rows, span] = True

    def end(self, pad_id: int) -> None:
        """Cut each row after its first last token: rows go on until enough of them can retire together."""
        ended = self.last.long()
        self.attention.logical_and_((ended.cumsum(-1) - ended) == 0)
        self.logprobs.masked_fill_(~self.attention, 0.0)
        self.ids.masked_fill_(~self.attention, pad_id)


class _FilledLayer(DynamicLayer):
    """Keys and values of one layer, written in place into a buffer; attention sees only the filled part."""

    def __init__(self, keys: Tensor, values: Tensor, repeats: int, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._filled = keys.shape[2]
        self._buffers = []
        for tensor in (keys, values):
            rows, heads, length, width = tensor.shape
            buffer = tensor.new_empty(rows, repeats, heads, length + room, width)
            buffer[:, :, :, :length] = tensor[:, None]
            self._buffers.append(buffer.flatten(0, 1))
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self._filled
        self._filled += key_states.shape[2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self._filled] = states
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        for index, buffer in enumerate(self._buffers):
            selection = buffer[: len(indices)]  # rows move to the front of the same buffer; no new buffer is allocated
            selection[:, :, : self._filled] = buffer[indices, :, : self._filled]
            self._buffers[index] = selection
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:, :, : self._filled] for buffer in self._buffers)
        return self.keys, self.values


def _expand(decoder: Any, cache: Any, repeats: int, room: int) -> None:
    """Repeat the prompts' cache for their responses, with room for `room` tokens where that can be foreseen."""
    if plain_attention(decoder):
        cache.layers = [_FilledLayer(layer.keys, layer.values, repeats, room) for layer in cache.layers]
    else:
        cache.batch_repeat_interleave(repeats)


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(width, device=device) >= width - lengths[:, None]

"""The group forward: a prompt and its K responses, with the prompt computed once.

Three back ends, equal in values and gradients, checked against each other by `check_forward`:

* rows: every response runs after a copy of its prompt. Sliding windows and recurrent layers need this one.
* cache: the prompts run once into a cache with gradients on, the cache is repeated K times and the responses run on
  it. The first token of a response is predicted from the prompt's last hidden state. Autograd flows through the cache.
* joined: a prompt and its K responses are one row, under a mask by which a response sees the prompt and itself. The
  prompt is computed once and every layer is launched once.

`pick_back_end` says which is taken when, and why.

A state is a hidden state after the last layer's norm; logits are computed only where a loss asks for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from kleash.data.batch import GroupBatch
from kleash.errors import ModelError
from kleash.models.finite import is_finite, not_finite
from kleash.objectives.combine import combine_scores
from kleash.objectives.logprobs import token_logprobs

Model = Any
"""A `transformers` model (language model, sequence classifier or bare decoder), one inside PEFT, or a `ValueModel`."""

BackEnd = Literal["rows", "cache", "joined"]
"""How the hidden states of groups are computed."""

JOINED_TOKENS = 4096
"""Longest joined row: its mask has a number for each pair of tokens, and attention computes those that it hides."""

Live = tuple[nn.Module, PreTrainedTokenizerBase]
"""A model in memory, plain or with adapters (a `PeftModel` too), and its tokenizer."""


def response_states(
    model: Model, batch: GroupBatch, *, back_end: BackEnd | None = None, final: bool = False
) -> Float[Tensor, "P K T1 D"]:
    """Hidden states from which the tokens of the responses are predicted.

    Args:
        model: any decoder-only model; its output head is not used.
        batch: prompts padded on the left, responses on the right. Positions follow the masks and do not depend on the
            padding.
        back_end: how they are computed; None: as `pick_back_end` says.
        final: also the state after the last token; without it the last token does not run through the model.

    Returns:
        [P, K, T, D]; state t predicts token t. With `final` [P, K, T + 1, D]: the state numbered `length` of a response
        lies after its last real token. States at and after padding are finite but meaningless.

    Raises:
        ModelError: the model cannot take the back end that was asked for.
    """
    decoder = find_decoder(model)
    prompts, responses, tokens = batch.shape
    fed = tokens if final else max(tokens - 1, 0)  # the last token predicts nothing
    if back_end is None:
        back_end = pick_back_end(decoder, batch)
    elif back_end not in _possible(decoder):
        raise ModelError(
            f"{type(decoder).__name__} cannot share a prompt between responses by the back end '{back_end}' (sliding "
            f"windows, recurrent layers, gradient checkpointing of a cache); use back_end='rows'"
        )
    states = _BACK_ENDS[back_end](decoder, batch, fed)[:, : tokens + final]  # T = 0 without `final`: none is needed
    return states.reshape(prompts, responses, *states.shape[1:])


def pick_back_end(decoder: Model, batch: GroupBatch) -> BackEnd:
    """The fastest back end for a batch on its device.

    A GPU at this size of batch waits for launches, and joined has half of the cache's. A processor computes what it
    is asked for, and the mask of joined does not spare it the attention between responses. Both, and the command that
    measured it: docs/benchmarks.md.

    Args:
        decoder: whose layers say what is possible.
        batch: on the device that computes.
    """
    possible = _possible(decoder)
    _, responses, tokens = batch.shape
    if responses < 2 or len(possible) == 1:
        return "rows"
    joined = batch.prompt_ids.shape[1] + responses * tokens
    if "joined" in possible and joined <= JOINED_TOKENS and batch.prompt_ids.device.type != "cpu":
        return "joined"
    return "cache" if "cache" in possible else "rows"


def response_logprobs(
    model: Model,
    batch: GroupBatch,
    *,
    temperature: float = 1.0,
    back_end: BackEnd | None = None,
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, "P K T"], Float[Tensor, "P K T"]]:
    """Log-probability of each response token, and the entropy (nats) of its distribution.

    Args:
        model: a language model.
        batch: groups; only positions where `batch.mask` is True are projected onto the vocabulary.
        temperature: divides the logits, as it did in the sampler.
        back_end: see `response_states`.
        chunk_size: positions projected at once (F12), see `token_logprobs`.

    Returns:
        (log π(token), entropy), both 0 where `batch.mask` is False. The entropy is detached.
    """
    states = response_states(model, batch, back_end=back_end)
    logprobs, entropy = token_logprobs(
        projection(model),
        states.flatten(0, 2)[batch.token_index],
        batch.response_ids.flatten()[batch.token_index],
        temperature=temperature,
        chunk_size=chunk_size,
    )
    return scatter(logprobs, batch), scatter(entropy, batch)


def response_scores(model: Model, batch: GroupBatch, *, back_end: BackEnd | None = None) -> Float[Tensor, "P K"]:
    """Scores of a reward model, one per response: the only function that computes them (F8).

    Read at the last real token of prompt + response, whatever its id (F3); an empty response is scored at the end of
    its prompt.

    Args:
        model: a sequence classifier with one output, `score`, or with several heads that `config.kleash_heads` says
            how to combine. The centring offset `config.kleash_offset`, where there is one, is subtracted: plain
            `transformers` gives our score plus that offset.
        batch: groups; `response_attention` says which tokens are real.
        back_end: see `response_states`.
    """
    scores = combine_scores(head_scores(model, batch, back_end=back_end), **combination(model))
    return scores - centring_offset(model)


def head_scores(model: Model, batch: GroupBatch, *, back_end: BackEnd | None = None) -> Float[Tensor, "P K M"]:
    """Scores of each head of a reward model, before they are combined and without the centring offset.

    Args:
        model: a sequence classifier whose output, `score`, has M ≥ 1 numbers.
        batch: groups; `response_attention` says which tokens are real.
        back_end: see `response_states`.
    """
    return read_heads(model, response_features(model, batch, back_end=back_end))


def read_heads(model: Model, features: Float[Tensor, "*S D"]) -> Float[Tensor, "*S M"]:
    """The heads' scores of `response_features`: the second half of `head_scores`."""
    head = getattr(model, "score", None)
    if head is None:
        raise ModelError(f"{type(model).__name__} has no `score` head; give a sequence classifier with one output")
    scores = head(features)
    if scores.shape[-1] != 1 and not combination(model):
        raise ModelError(f"{type(model).__name__} has {scores.shape[-1]} outputs; a reward model has one")
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def combination(model: Model) -> dict[str, Any]:
    """How the heads of a reward model on one trunk are combined; empty for a model with a single head."""
    return dict(getattr(model.config, "kleash_heads", None) or {})


def response_features(model: Model, batch: GroupBatch, *, back_end: BackEnd | None = None) -> Float[Tensor, "P K D"]:
    """The features that a reward model's head reads: the state at the last real token of prompt + response.

    Args:
        model: any decoder-only model; its head is not used.
        batch: groups; `response_attention` says which tokens are real.
        back_end: see `response_states`.
    """
    states = response_states(model, batch, back_end=back_end, final=True)
    last = batch.lengths[..., None, None].expand(-1, -1, 1, states.shape[-1])
    return states.gather(2, last).squeeze(2)


def centring_offset(model: Model) -> float:
    """The offset subtracted from a reward model's scores, so that their mean on SFT samples is zero."""
    return float(getattr(model.config, "kleash_offset", None) or 0.0)


def projection(model: Model) -> Callable[[Tensor], Tensor]:
    """From hidden states to logits: the output embedding and the config's transformation of logits.

    Raises:
        ModelError: the model has no output embedding.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output embedding; give a causal language model")
    config = find_decoder(model).config
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
    factor = getattr(config, "logit_scale", None) if config.model_type.startswith("cohere") else None

    def project(states: Tensor) -> Tensor:
        logits = head(states)
        if factor is not None:
            logits = logits * factor
        if divisor != 1.0:
            logits = logits / divisor
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return project


def find_decoder(model: Model) -> Model:
    """The part of a model that turns ids into hidden states: without its output head, with its adapters."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if decoder is None or getattr(decoder.config, "is_encoder_decoder", False):
        raise ModelError(f"{type(model).__name__} has no separate decoder; use a decoder-only model")
    return decoder


def prompt_positions(attention: Bool[Tensor, "P S"]) -> Int[Tensor, "P S"]:
    """Position of each prompt token, counted over real tokens; padding gets 0."""
    return (attention.long().cumsum(-1) - 1).clamp_min(0)


def plain_attention(decoder: Model) -> bool:
    """Whether the model's cache consists only of keys and values of all tokens."""
    layers = DynamicCache(config=decoder.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def scatter(values: Float[Tensor, " N"], batch: GroupBatch) -> Float[Tensor, "P K T"]:
    """Write values, in order, to the positions where the batch's mask is True, and 0 elsewhere."""
    return values.new_zeros(batch.mask.numel()).scatter(0, batch.token_index, values).view(batch.shape)


def run_decoder(decoder: Model, *, cache: DynamicCache | None = None, **inputs: Any) -> Any:
    """Call a decoder with the inputs that it accepts: models with relative positions take no `position_ids`.

    Args:
        decoder: of any kind.
        cache: keys and values so far, extended in place; None: no cache.
        inputs: ids, masks, positions.
    """
    accepted = _parameters(decoder.__class__)
    supported = {name: value for name, value in inputs.items() if name in accepted}
    if cache is not None:  # transformers 5.24 gave the argument this name
        supported["cache" if "cache" in accepted else "past_key_values"] = cache
    return decoder(**supported, use_cache=cache is not None)


def check_forward(model: Model, batch: GroupBatch) -> None:
    """Compare the two back ends and the model's own forward on a probe.

    Args:
        model: a language model or a reward model.
        batch: the probe; a few groups of different lengths will do.

    Raises:
        ModelError: they differ by more than rounding, naming which.
    """
    training = model.training
    model.eval()  # dropout would differ by itself
    try:
        with torch.no_grad():
            _check_forward(model, batch)
    finally:
        model.train(training)


def _check_forward(model: Model, batch: GroupBatch) -> None:
    scores = hasattr(model, "score")
    forward: Callable[..., Tensor] = response_scores if scores else lambda *a, **k: response_logprobs(*a, **k)[0]
    rows = forward(model, batch, back_end="rows")
    if not is_finite(rows):
        raise ModelError(str(not_finite(f"{type(model).__name__}: the outputs on a probe are", model, trained=False)))
    results = {"the model's own forward": _own_scores(model, batch) if scores else _own_logprobs(model, batch)}
    for back_end in _possible(find_decoder(model))[1:]:
        results[f"the shared prompt ({back_end})"] = forward(model, batch, back_end=back_end)
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(next(model.parameters()).dtype, 0.2)
    for name, values in results.items():
        gap = float((values - rows).abs().max()) if rows.numel() else 0.0
        if not gap <= tolerance:
            raise ModelError(
                f"{type(model).__name__}: plain rows and {name} differ by {gap:.2g} on a probe; this kind of model is "
                "not supported (does it change its logits after the output embedding, or need more inputs than ids?)"
            )


def _own_rows(batch: GroupBatch) -> list[tuple[int, int, Tensor, int]]:
    """Each response with its prompt in front, without padding: (p, k, ids [1, N], length of the prompt)."""
    prompts, responses, _ = batch.shape
    rows = []
    for p in range(prompts):
        prompt = batch.prompt_ids[p][batch.prompt_attention[p]]
        for k in range(responses):
            response = batch.response_ids[p, k][batch.response_attention[p, k]]
            rows.append((p, k, torch.cat([prompt, response])[None], len(prompt)))
    return rows


def _own_logprobs(model: Model, batch: GroupBatch) -> Tensor:
    result = torch.zeros(batch.shape, dtype=torch.float64, device=batch.response_ids.device)
    for p, k, ids, start in _own_rows(batch):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double()
        logprobs = logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1)
        result[p, k, : ids.shape[1] - start] = logprobs[start - 1 :]
    return torch.where(batch.mask, result, 0.0)


def _own_scores(model: Model, batch: GroupBatch) -> Tensor:
    result = torch.zeros(batch.shape[:2], device=batch.response_ids.device)
    for p, k, ids, _ in _own_rows(batch):
        states = run_decoder(find_decoder(model), input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        result[p, k] = combine_scores(model.score(states[0, -1]), **combination(model))
    return result - centring_offset(model)


@cache
def _parameters(kind: Any) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def _possible(decoder: Model) -> tuple[BackEnd, ...]:
    """The back ends that a decoder can take; plain rows are always possible, and come first."""
    if not plain_attention(decoder):
        return ("rows",)
    # the property was renamed within transformers 5; the flag behind it was not
    checkpointing = decoder.training and any(getattr(m, "gradient_checkpointing", False) for m in decoder.modules())
    cache: tuple[BackEnd, ...] = () if checkpointing else ("cache",)
    config = decoder.config
    # a mask of our own needs attention that takes one, and places that are told and not counted in the mask
    joinable = (
        config._attn_implementation in ("sdpa", "eager")
        and "position_ids" in _parameters(decoder.__class__)
        and not getattr(config, "alibi", False)
    )
    return ("rows", *cache, "joined") if joinable else ("rows", *cache)


def _cache_states(decoder: Model, batch: GroupBatch, fed: int) -> Float[Tensor, "R T1 D"]:
    responses = batch.shape[1]
    attention = batch.prompt_attention
    positions = prompt_positions(attention)
    past = DynamicCache(config=decoder.config)
    states = run_decoder(
        decoder,
        input_ids=batch.prompt_ids,
        attention_mask=attention.long(),
        position_ids=positions,
        cache=past,
    ).last_hidden_state
    first = states[:, -1:].repeat_interleave(responses, 0)
    if fed == 0:
        return first
    past.batch_repeat_interleave(responses)
    mask = batch.response_attention[..., :fed].flatten(0, 1).long()
    start = positions[:, -1].repeat_interleave(responses)[:, None]
    states = run_decoder(
        decoder,
        input_ids=batch.response_ids[..., :fed].flatten(0, 1),
        attention_mask=torch.cat([attention.long().repeat_interleave(responses, 0), mask], 1),
        position_ids=start + mask.cumsum(-1),
        cache=past,
    ).last_hidden_state
    return torch.cat([first, states], 1)


def _joined_states(decoder: Model, batch: GroupBatch, fed: int) -> Float[Tensor, "R T1 D"]:
    responses, device = batch.shape[1], batch.prompt_ids.device
    width = batch.prompt_ids.shape[1]
    attention = batch.response_attention[..., :fed]
    real = torch.cat([batch.prompt_attention, attention.flatten(1)], 1)
    prompt = prompt_positions(batch.prompt_attention)
    after = (prompt[:, -1:, None] + attention.long().cumsum(-1)).flatten(1)
    place = torch.arange(real.shape[1], device=device)
    part = ((place - width).div(max(fed, 1), rounding_mode="floor") + 1).clamp_min(0)  # 0: prompt, k: response k
    visible = (place[:, None] >= place) & ((part == 0) | (part[:, None] == part))
    mask = (visible & real[:, None]) | torch.eye(len(place), dtype=torch.bool, device=device)  # a row of none is NaN
    bias = torch.zeros(mask.shape, dtype=_compute_dtype(decoder), device=device).masked_fill_(~mask, float("-inf"))
    states = run_decoder(
        decoder,
        input_ids=torch.cat([batch.prompt_ids, batch.response_ids[..., :fed].flatten(1)], 1),
        attention_mask=bias[:, None],
        position_ids=torch.cat([prompt, after], 1),
    ).last_hidden_state
    first = states[:, None, width - 1 : width].expand(-1, responses, -1, -1)
    return torch.cat([first, states[:, width:].unflatten(1, (responses, fed))], 2).flatten(0, 1)


def _row_states(decoder: Model, batch: GroupBatch, fed: int) -> Float[Tensor, "R T1 D"]:
    """Rows of prompt, response and padding: what is real comes before all padding and so never sees it, without a
    mask.
    """
    responses, width = batch.shape[1], batch.prompt_ids.shape[1]

    def join(prompt: Tensor, response: Tensor) -> Tensor:
        return torch.cat([prompt.repeat_interleave(responses, 0), response[..., :fed].flatten(0, 1)], 1)

    ids = join(batch.prompt_ids, batch.response_ids)
    length = ids.shape[1]
    padding = (~batch.prompt_attention).sum(1, keepdim=True).repeat_interleave(responses, 0)
    place = torch.arange(length, device=ids.device)
    room = getattr(decoder.config, "max_position_embeddings", None)
    states = run_decoder(
        decoder,
        input_ids=ids.gather(1, (place + padding) % length),
        # padding may lie beyond the last position that the model has
        position_ids=None if room is None or length <= room else place.clamp_max(room - 1).expand_as(ids),
    ).last_hidden_state
    ends = width - 1 - padding + torch.arange(fed + 1, device=ids.device)
    row = torch.arange(len(ids), device=ids.device)[:, None]
    return states.flatten(0, 1)[ends + length * row]  # an index, whose backward is deterministic on CUDA too


def _compute_dtype(decoder: Model) -> torch.dtype:
    device = decoder.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else next(decoder.parameters()).dtype


_BACK_ENDS: dict[BackEnd, Callable[[Model, GroupBatch, int], Tensor]] = {
    "rows": _row_states,
    "cache": _cache_states,
    "joined": _joined_states,
}

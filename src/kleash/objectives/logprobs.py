"""Log-probabilities of tokens from hidden states, without storing the logits of a whole batch (F12).

The logits of N positions over V tokens are the largest tensor of training by far. They are computed a chunk of
positions at a time, and a second time in the backward pass: plain autograd over chunks would store every chunk and save
no memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 64 * 2**20
"""Largest float32 logits of one chunk, in bytes, where the caller sets no chunk size."""

Projection = Callable[[Float[Tensor, "n D"]], Float[Tensor, "n V"]]
"""From hidden states to logits: a model's output embedding and its transformation of logits."""


def token_logprobs(
    project: Projection,
    states: Float[Tensor, "N D"],
    tokens: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probability of each token, and the entropy of the distribution it was drawn from.

    Args:
        project: hidden states to logits; called once per chunk, and again per chunk in the backward pass.
        states: the hidden state that *predicts* each token, so the one before it.
        tokens: the tokens, each below V.
        temperature: divides the logits, > 0. Training must use the temperature of the sampler (F7).
        chunk_size: positions projected at once; None: as many as keep float32 logits within 64 MiB.

    Returns:
        (log π(token), entropy in nats), one of each per position, in float32 or wider. The entropy is detached.
    """

    def chunk(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = project_float(project, states) / temperature
        normaliser = logits.logsumexp(-1)
        logprobs = logits.gather(-1, tokens[:, None]).squeeze(-1) - normaliser
        with torch.no_grad():  # entr(0) is 0, where p·log p is NaN
            entropy = torch.special.entr((logits - normaliser[:, None]).exp_()).sum(-1)
        return logprobs, entropy

    if chunk_size is None:
        chunk_size = positions_per_chunk(project, states)
    logprobs, entropy = by_chunks(chunk, states, tokens.long(), chunk_size=chunk_size)
    return logprobs, entropy


def project_float(project: Projection, states: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
    """Logits wide enough for a softmax: at least float32."""
    logits = project(states)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def positions_per_chunk(project: Projection, states: Float[Tensor, "N D"]) -> int:
    """How many positions keep float32 logits within `CHUNK_BYTES`."""
    with torch.no_grad():
        vocabulary = project(states[:0]).shape[-1]  # the width, without computing a logit
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def by_chunks(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, chunk_size: int) -> tuple[Tensor, ...]:
    """Apply a position-wise function a chunk of positions at a time, storing only the result of each chunk.

    Args:
        function: tensors of n positions to tensors of n positions. Run again in the backward pass, so not
            random.
        inputs: tensors whose first axis is the positions.
        chunk_size: positions per chunk; with one chunk nothing is recomputed.

    Returns:
        The results of all positions.
    """
    if len(inputs[0]) <= chunk_size:
        return function(*inputs)
    # split and not slices: the gradient of each slice would be a zero tensor of the size of the whole
    chunks = zip(*(tensor.split(chunk_size) for tensor in inputs), strict=True)
    results = [checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return tuple(torch.cat(pieces) for pieces in zip(*results, strict=True))

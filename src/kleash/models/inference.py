"""Per-token quantities without gradient, in micro-batches, whose size changes memory and speed but not the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.data.batch import GroupBatch, collate
from kleash.data.batching import by_size, microbatches
from kleash.data.group import EncodedGroup
from kleash.models.compute import Compute
from kleash.models.finite import is_finite, is_trained, not_finite
from kleash.models.forward import Model, response_logprobs
from kleash.objectives.reduce import masked_sum
from kleash.progress import Progress


def micro_batches(batch: GroupBatch, rows: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Some groups of a batch, split into micro-batches of similar length."""
    responses = batch.shape[1]
    prompts, lengths = batch.prompt_attention.sum(-1).tolist(), batch.lengths.amax(-1).tolist()
    cuts = by_size(
        [(responses, prompts[row], lengths[row]) for row in rows], max_tokens=max_tokens, device=batch.mask.device
    )
    return [[rows[index] for index in cut] for cut in cuts]


def split_to_fit(batch: GroupBatch, *, max_tokens: int) -> GroupBatch:
    """The batch with its groups split into parts that fit into one micro-batch: of the size of the largest divisor of K
    whose rows fit, at least 1.
    """
    _, responses, tokens = batch.shape
    width = batch.prompt_ids.shape[1] + tokens
    sizes = [size for size in range(1, responses + 1) if responses % size == 0 and size * width <= max_tokens]
    return batch.split(max(sizes, default=1))


def each_micro_batch(batch: GroupBatch, *, max_tokens: int) -> Iterator[GroupBatch]:
    """The micro-batches of a batch, each as large as fits; groups without an unmasked token are left out, since they
    have no gradient.
    """
    parts = split_to_fit(batch, max_tokens=max_tokens)
    counts = parts.mask.flatten(1).any(-1).tolist()
    for rows in micro_batches(parts, [row for row, any_token in enumerate(counts) if any_token], max_tokens=max_tokens):
        yield parts.select(torch.tensor(rows, device=batch.mask.device))


@torch.no_grad()
def in_micro_batches(
    batch: GroupBatch, function: Callable[[GroupBatch], Float[Tensor, "N J T"]], *, compute: Compute
) -> Float[Tensor, "P K T"]:
    """A function of each token, computed in micro-batches; 0 where masked."""
    parts, device = split_to_fit(batch, max_tokens=compute.micro_batch_tokens), batch.mask.device
    out = torch.zeros(parts.mask.shape, device=device)
    for rows in micro_batches(parts, range(len(parts.mask)), max_tokens=compute.micro_batch_tokens):
        index = torch.tensor(rows, device=device)
        groups = parts.select(index)
        with compute.autocast(device):
            out[index, :, : groups.shape[2]] = torch.where(groups.mask, function(groups).float(), 0)
    return out.reshape(batch.mask.shape)


def batch_logprobs(
    model: Model, batch: GroupBatch, *, temperature: float = 1.0, compute: Compute
) -> Float[Tensor, "P K T"]:
    """Log π of each token under a model, without gradient; 0 where masked."""
    logprobs = in_micro_batches(
        batch, lambda groups: response_logprobs(model, groups, temperature=temperature)[0], compute=compute
    )
    if not is_finite(logprobs):
        raise not_finite("the log-probabilities of the responses are", model, trained=is_trained(model))
    return logprobs


@torch.no_grad()
def summed_logprobs(model: Model, groups: Sequence[EncodedGroup], *, compute: Compute) -> list[Float[Tensor, " _"]]:
    """Log π(y|x) of the responses of each group, summed over their tokens, on the CPU; K may differ between groups."""
    sums: list[Tensor] = [torch.empty(0)] * len(groups)
    device = model.device
    with Progress(len(groups), "log-probabilities") as progress:
        for rows in microbatches(groups, max_tokens=compute.micro_batch_tokens, device=device):
            batch = collate([groups[row] for row in rows], device=device)
            with compute.autocast(device):
                logprobs, _ = response_logprobs(model, batch)
            if not is_finite(logprobs[batch.mask]):
                raise not_finite("the log-probabilities of the responses are", model, trained=is_trained(model))
            for row, values in zip(rows, masked_sum(logprobs, batch.mask, -1).cpu(), strict=True):
                sums[row] = values
            progress.update(progress.step + len(rows))
    return sums

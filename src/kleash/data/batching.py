"""Batches: micro-batches by length within a step, and a stateless order of the data over steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from kleash.data.group import EncodedGroup


def microbatches(groups: Sequence[EncodedGroup], *, max_tokens: int, device: Any = "cpu") -> list[list[int]]:
    """Split the groups of a step into batches of similar length and one K, so that there is little padding.

    Args:
        groups: in any order.
        max_tokens: most tokens in a batch, padding included; a prompt counts once per response (as in the plain
            forward). A group that is larger by itself gets a separate batch.
        device: that computes them, a `torch.device` or its name; see `_pass_cost`.

    Returns:
        Indices into `groups`; each occurs once. Largest batch first, so that too little memory shows at once.
    """
    return by_size(
        [(len(g.responses), len(g.prompt_ids), max((len(r.ids) for r in g.responses), default=0)) for g in groups],
        max_tokens=max_tokens,
        device=device,
    )


def by_size(sizes: Sequence[tuple[int, int, int]], *, max_tokens: int, device: Any = "cpu") -> list[list[int]]:
    """The same for groups known by their sizes: (responses, tokens of the prompt, tokens of the longest response)."""
    overhead = _pass_cost(device, max_tokens)
    # Prompts and responses are padded separately: sort by one in classes of a factor 2^½ or 2^¼, within a class by the
    # other, in alternating direction so that a batch over two classes is homogeneous. Of all plans the cheapest is
    # taken.
    plans = [
        _cut(sorted(range(len(sizes)), key=lambda i: _place(sizes[i], first, fineness)), sizes, max_tokens, overhead)
        for first in (1, 2)
        for fineness in (2, 4)
    ]
    _, best = min(plans, key=lambda plan: plan[0])
    return sorted(best, key=lambda batch: -_padded([sizes[i] for i in batch]))


def _place(size: tuple[int, int, int], first: int, fineness: int) -> tuple[int, int, int, int]:
    kind = int(fineness * np.log2(max(size[first], 1)))
    second = size[3 - first]
    return size[0], kind, second if kind % 2 else -second, size[first]


def _pass_cost(device: Any, max_tokens: int) -> float:
    """What a pass costs besides its tokens, in tokens.

    On a processor 1/32 of the largest batch: a little padding is cheaper than another pass. A GPU waits for some
    thousand launches whatever they compute, so there no padding that fits is worth another pass.
    """
    return max_tokens / 32 if getattr(device, "type", device) == "cpu" else float(max_tokens)


def _cut(
    order: Sequence[int], sizes: Sequence[tuple[int, int, int]], max_tokens: int, overhead: float
) -> tuple[float, list[list[int]]]:
    """Cut a sequence of groups into batches at least cost: the total cost, and the batches.

    `cost[j]` is the least cost of the first j groups, over all starts of their last batch. A batch costs its tokens
    with padding, and its `overhead`.
    """
    k, prompt, response = np.array([sizes[i] for i in order], dtype=np.int64).reshape(-1, 3).T
    rows = np.maximum(k, 1)  # a prompt without responses is a row, too
    cost = np.zeros(len(order) + 1)
    begin = [0] * (len(order) + 1)
    for j in range(1, len(order) + 1):
        reach = max(1, max_tokens // int(rows[j - 1] * (prompt[j - 1] + response[j - 1]) or 1))
        back = slice(max(0, j - reach), j)
        width = np.maximum.accumulate(prompt[back][::-1])
        depth = np.maximum.accumulate(response[back][::-1])
        count = np.arange(1, len(width) + 1)
        tokens = count * rows[j - 1] * (width + depth)
        fits = (k[back][::-1] == k[j - 1]) & (tokens <= max_tokens)
        fits[0] = True  # a batch of one group, whatever its size
        total = np.where(fits, cost[back][::-1] + tokens + overhead, np.inf)
        best = int(total.argmin())
        cost[j], begin[j] = total[best], j - 1 - best
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(list(order[begin[end] : end]))
        end = begin[end]
    return float(cost[-1]), batches


def _padded(sizes: Sequence[tuple[int, int, int]]) -> int:
    """Tokens of a batch with its padding, as plain rows."""
    return len(sizes) * max(sizes[0][0], 1) * (max(size[1] for size in sizes) + max(size[2] for size in sizes))


def order(rows: int, *, seed: int, epoch: int) -> list[int]:
    """The order of the rows in an epoch: a permutation that depends only on its arguments."""
    return list(_order(rows, seed, epoch))


def batch_at(step: int, rows: int, batch_size: int, seed: int, total: int | None = None) -> list[int]:
    """The rows of a step, from 0: the data cycled, reshuffled each time.

    A batch may hold the end of one epoch and the beginning of the next.

    Args:
        step: steps before it.
        rows: how many there are.
        batch_size: rows of a step.
        seed: of the order.
        total: rows of all steps together, so that the last step is smaller where `batch_size` does not divide it;
            None: without end.
    """
    cursor = step * batch_size
    size = batch_size if total is None else max(0, min(batch_size, total - cursor))
    return rows_at(cursor, size, rows, seed)


def rows_at(cursor: int, number: int, rows: int, seed: int) -> list[int]:
    """The next `number` rows after `cursor` of them: the data cycled without end, reshuffled each time.

    The position is one number, so that a run resumes exactly, and every row comes once before any is repeated (F11).
    """
    return [_order(rows, seed, index // rows)[index % rows] for index in range(cursor, cursor + number)]


@lru_cache(maxsize=4)
def _order(rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, epoch]).permutation(rows).tolist())

"""Batches by length and the order of the rows."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kleash.data.batching import batch_at, microbatches, order
from kleash.data.group import EncodedGroup, EncodedResponse, Group
from kleash.data.stream import batches
from kleash.training.settings import TrainingConfig


def group(prompt: int, *responses: int) -> EncodedGroup:
    rows = tuple(EncodedResponse((1,) * tokens, (True,) * tokens) for tokens in responses)
    return EncodedGroup((1,) * prompt, rows, Group("Q"))


def padded(groups: list[EncodedGroup], batch: list[int]) -> int:
    """Cells of the rectangle that holds a batch as plain rows."""
    width = max(len(groups[i].prompt_ids) for i in batch)
    depth = max((len(response.ids) for i in batch for response in groups[i].responses), default=0)
    return len(batch) * max(len(groups[batch[0]].responses), 1) * (width + depth)


sizes = st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(0, 30), max_size=3)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 200))
@example([(1, []), (1, [0])], 2)  # a bare prompt and an empty response are of two kinds
def test_every_group_is_in_one_batch_of_its_k_that_fits(shapes, max_tokens):
    groups = [group(prompt, *responses) for prompt, responses in shapes]
    batches = microbatches(groups, max_tokens=max_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(groups)))
    for batch in batches:
        assert len({len(groups[i].responses) for i in batch}) == 1
        assert padded(groups, batch) <= max_tokens or len(batch) == 1
    assert all(padded(groups, a) >= padded(groups, b) for a, b in pairwise(batches))


def test_groups_of_like_length_share_a_batch():
    # Unsorted, three batches of two hold 2·101·3 cells; by length 2·(101 + 3 + 3) with the long one of each pair.
    groups = [group(1, 1), group(1, 100), group(2, 1), group(1, 99), group(1, 2), group(2, 2)]
    batches = microbatches(groups, max_tokens=202)
    assert sorted(sorted(batch) for batch in batches) == [[0, 2, 4, 5], [1, 3]]


def test_padding_is_a_few_percent():
    """Lengths as in real comparisons: prompts and responses independent and skewed."""
    lengths = [(8 + (i * i * 7919) % 211 // (1 + i % 3), 4 + (i * 104729) % 173 // (1 + i % 4)) for i in range(1024)]
    groups = [group(prompt, response) for prompt, response in lengths]
    real = sum(prompt + response for prompt, response in lengths)
    batches = microbatches(groups, max_tokens=2048)
    assert sum(padded(groups, batch) for batch in batches) < 1.1 * real
    assert sum(padded(groups, list(range(start, start + 16))) for start in range(0, 1024, 16)) > 1.8 * real


def test_few_batches_where_nothing_is_to_gain():
    assert len(microbatches([group(10, 10) for _ in range(100)], max_tokens=1000)) == 2


def test_order_is_a_permutation_that_depends_only_on_its_arguments():
    first = order(50, seed=1, epoch=0)
    assert sorted(first) == list(range(50))
    assert first != list(range(50))
    assert first == order(50, seed=1, epoch=0)
    assert len({tuple(order(50, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}) == 9


@given(rows=st.integers(1, 12), size=st.integers(1, 30), seed=st.integers(0, 3), steps=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_F11_steps_lose_and_repeat_no_row(rows, size, seed, steps):
    taken = [row for step in range(steps) for row in batch_at(step, rows, size, seed)]
    assert len(taken) == steps * size
    for start in range(0, len(taken), rows):  # each epoch holds every row once, whatever the batch size
        epoch = taken[start : start + rows]
        assert max(Counter(epoch).values()) == 1
    counts = Counter(taken)
    assert max(counts.values()) - min(counts[row] for row in range(rows)) <= 1


@given(rows=st.integers(1, 50), size=st.integers(1, 40), epochs=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_sees_every_row_once_and_the_last_step_is_smaller(rows, size, epochs):
    config = TrainingConfig(model="m", data="d.jsonl", out=Path("o"), batch_size=size, epochs=epochs)
    steps = config.steps(rows)
    taken = [numbers for numbers, _ in islice(batches([group(1)] * rows, **config.batch_settings(rows)), steps)]
    assert [len(batch) for batch in taken[:-1]] == [size] * (steps - 1)
    assert 0 < len(taken[-1]) <= size
    assert Counter(row for batch in taken for row in batch) == {row: epochs for row in range(rows)}


def test_43_rows_at_batch_32_are_two_steps():
    config = TrainingConfig(model="m", data="d.jsonl", out=Path("o"), batch_size=32)
    assert config.steps(43) == 2
    assert [len(batch) for batch, _ in islice(batches([group(1)] * 43, **config.batch_settings(43)), 2)] == [32, 11]


def test_max_steps_repeats_the_rows_in_whole_batches():
    config = TrainingConfig(model="m", data="d.jsonl", out=Path("o"), batch_size=4, max_steps=3)
    assert [len(batch) for batch, _ in islice(batches([group(1)] * 5, **config.batch_settings(5)), 3)] == [4, 4, 4]


def test_F11_a_step_depends_on_nothing_that_came_before():
    straight = [batch_at(step, 7, 3, 5) for step in range(10)]
    assert [batch_at(step, 7, 3, 5) for step in (9, 4)] == [straight[9], straight[4]]
    assert straight != [batch_at(step, 7, 3, 6) for step in range(10)]
    epochs = [row for batch in straight for row in batch]
    assert epochs[:7] != epochs[7:14]  # reshuffled

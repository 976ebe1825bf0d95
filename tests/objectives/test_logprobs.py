from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from kleash.objectives import logprobs, token_logprobs


def plain(weight, bias, states, tokens, temperature):
    """The definition, all logits at once."""
    table = torch.log_softmax(linear(states, weight, bias) / temperature, dim=-1)
    return table[torch.arange(len(tokens)), tokens], -(table.exp() * table).sum(-1)


def problem(n, vocabulary=11, width=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()  # noqa: E731
    return (
        make(vocabulary, width),
        make(vocabulary),
        make(n, width),
        torch.randint(vocabulary, (n,), generator=generator),
    )


def test_log_probability_and_entropy_by_hand():
    states = torch.tensor([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]]).log()
    logprob, entropy = token_logprobs(lambda x: x, states, torch.tensor([2, 0]))
    assert logprob.tolist() == pytest.approx([math.log(5 / 8), math.log(1 / 4)])
    by_hand = [-sum(q * math.log(q) for q in row) for row in ([1 / 8, 2 / 8, 5 / 8], [1 / 4, 1 / 4, 1 / 2])]
    assert entropy.tolist() == pytest.approx(by_hand)


def test_temperature_divides_the_logits():
    states = torch.tensor([[1.0, 4.0, 9.0]]).log()
    logprob, entropy = token_logprobs(lambda x: x, states, torch.tensor([1]), temperature=2.0)  # weights 1, 2, 3
    assert logprob.item() == pytest.approx(math.log(2 / 6))
    assert entropy.item() == pytest.approx(-sum(q * math.log(q) for q in (1 / 6, 2 / 6, 3 / 6)))


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 13),
    chunk_size=st.none() | st.integers(1, 15),
    temperature=st.sampled_from([0.7, 1.0, 1.6]),
    seed=st.integers(0, 99),
)
def test_F12_chunks_change_neither_values_nor_gradients(n, chunk_size, temperature, seed):
    weight, bias, states, tokens = problem(n, seed=seed)
    project = lambda x: linear(x, weight, bias)  # noqa: E731
    ours = token_logprobs(project, states, tokens, temperature=temperature, chunk_size=chunk_size)
    theirs = plain(weight, bias, states, tokens, temperature)
    torch.testing.assert_close(
        ours, tuple(t.detach() if i else t for i, t in enumerate(theirs)), rtol=1e-10, atol=1e-10
    )
    slope = torch.linspace(-1, 2, n, dtype=torch.float64)  # a different weight for each position
    inputs = (weight, bias, states)
    torch.testing.assert_close(
        torch.autograd.grad((ours[0] * slope).sum(), inputs),
        torch.autograd.grad((theirs[0] * slope).sum(), inputs),
        rtol=1e-10,
        atol=1e-10,
    )


def test_no_gradient_flows_through_the_entropy():
    weight, bias, states, tokens = problem(6)
    for chunk_size in (2, 6):
        logprob, entropy = token_logprobs(lambda x: linear(x, weight, bias), states, tokens, chunk_size=chunk_size)
        assert logprob.requires_grad
        assert not entropy.requires_grad


def test_the_softmax_is_in_float32_or_wider():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(5)
    for given_dtype, wide in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        states = logits.to(given_dtype)
        for logprob in (token_logprobs(lambda x: x, states, tokens, temperature=0.9, chunk_size=c)[0] for c in (2, 9)):
            assert logprob.dtype == wide
            expected = (states.double() / 0.9).log_softmax(-1)[torch.arange(5), tokens]
            torch.testing.assert_close(logprob.double(), expected, rtol=1e-6, atol=1e-6)


def test_a_token_that_is_ruled_out_leaves_entropy_and_gradient_finite():
    states = torch.tensor([[0.3, -math.inf, 1.0]], requires_grad=True)
    logprob, entropy = token_logprobs(lambda x: x * 1, states, torch.tensor([2]))
    logprob.sum().backward()
    low, high = 1 / (1 + math.exp(0.7)), 1 / (1 + math.exp(-0.7))
    assert logprob.item() == pytest.approx(math.log(high))
    assert entropy.item() == pytest.approx(-low * math.log(low) - high * math.log(high))
    assert states.grad.tolist()[0] == pytest.approx([-low, 0.0, 1 - high])


def test_the_default_chunk_keeps_float32_logits_within_its_bytes(monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 4 * 11 * 3 + 4)  # three positions of eleven logits, and a bit
    weight, bias, states, tokens = problem(8)
    seen = []

    def project(x):
        seen.append(len(x))
        return linear(x, weight, bias)

    token_logprobs(project, states, tokens)
    assert [n for n in seen if n] == [3, 3, 2]
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 1)  # a vocabulary wider than the budget still moves on
    seen.clear()
    token_logprobs(project, states, tokens)
    assert [n for n in seen if n] == [1] * 8


def test_one_chunk_is_projected_once():
    weight, bias, states, tokens = problem(5)
    calls = []

    def project(x):
        calls.append(len(x))
        return linear(x, weight, bias)

    token_logprobs(project, states, tokens, chunk_size=5)[0].sum().backward()
    assert calls == [5]
    calls.clear()
    token_logprobs(project, states, tokens, chunk_size=4)[0].sum().backward()
    assert sorted(calls) == [1, 1, 4, 4]


def test_works_where_nothing_needs_a_gradient():
    weight, bias, states, tokens = problem(7)
    with torch.no_grad():
        logprob, _ = token_logprobs(lambda x: linear(x, weight, bias), states, tokens, chunk_size=2)
    torch.testing.assert_close(logprob, plain(weight, bias, states, tokens, 1.0)[0].detach())


VOCABULARY, WIDTH, CHUNK = 4000, 4, 16


def policy_loss(n, chunk_size):
    weight, bias, states, tokens = problem(n, VOCABULARY, WIDTH, torch.float32)
    return lambda: token_logprobs(lambda x: linear(x, weight, bias), states, tokens, chunk_size=chunk_size)[0].sum()


def test_F12_memory_does_not_grow_with_positions_forward_and_backward(watch):
    few, many = (watch(policy_loss(n, CHUNK)) for n in (4 * CHUNK, 32 * CHUNK))
    assert max(few.largest, many.largest) <= CHUNK * VOCABULARY
    # Between them lie 28 chunks of logits of 256 kB each; what may grow is what N·D and N numbers cost.
    assert many.peak - few.peak <= 28 * CHUNK * 4 * (8 * WIDTH + 16)
    everything = watch(policy_loss(32 * CHUNK, 32 * CHUNK))  # and the watch does see what plain autograd holds
    assert everything.peak >= 32 * CHUNK * VOCABULARY * 4 > 4 * many.peak
    assert everything.largest == 32 * CHUNK * VOCABULARY


def test_F12_tensors_saved_by_autograd_do_not_grow_with_the_vocabulary():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        policy_loss(8 * CHUNK, CHUNK)()
    assert sum(saved) < CHUNK * VOCABULARY

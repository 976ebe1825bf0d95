from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kleash.checks.sample_stats import describe, excess_nll, prompt_effect, sample
from kleash.data.chat import encode_all
from kleash.data.formats import read_groups
from kleash.data.group import Group, Response
from kleash.sampling.local import LocalSampler
from kleash.sampling.sampler import decode_groups


def prompts_of(words: str, count: int, tokenizer: Any) -> list[Any]:
    groups = [Group(f"{words[i % len(words)]} {words[(i // 3) % len(words)]}") for i in range(count)]
    return encode_all(groups, tokenizer)[0]


def sampled(model: Any, tokenizer: Any, temperature: float, limit: int) -> list[Any]:
    prompts = prompts_of("abcdefg", 200, tokenizer)
    sampler = LocalSampler(model, tokenizer, max_new_tokens=limit, temperature=temperature)
    batch = sampler([prompt.prompt_ids for prompt in prompts], group_size=2, seed=1)
    groups = decode_groups(batch, [prompt.source for prompt in prompts], tokenizer, sampler.end_ids)
    return encode_all(groups, tokenizer)[0]


@pytest.fixture
def sharp_model(tiny_model: Any) -> Any:
    """Random weights with an opinion: a few tokens hold most of the probability."""
    with torch.no_grad():
        tiny_model.lm_head.weight.mul_(12)
    return tiny_model


@pytest.mark.parametrize("limit", [3, 12])
def test_a_models_own_samples_have_no_excess_negative_log_likelihood(
    sharp_model: Any, tiny_tokenizer: Any, limit: int
) -> None:
    found = excess_nll(sharp_model, sampled(sharp_model, tiny_tokenizer, 1.0, limit))
    assert abs(found.nats) < 3 * found.se
    assert found.se < 0.1, "this would tell nothing"


def test_foreign_responses_have_positive_excess_and_cooler_samples_negative(
    sharp_model: Any, tiny_tokenizer: Any
) -> None:
    cool = excess_nll(sharp_model, sampled(sharp_model, tiny_tokenizer, 0.5, 12))
    hot = excess_nll(sharp_model, sampled(sharp_model, tiny_tokenizer, 2.0, 12))
    assert cool.nats < -5 * cool.se
    assert hot.nats > 5 * hot.se


def test_excess_nll_is_that_of_plain_transformers(tiny_model: Any, tiny_tokenizer: Any, demonstrations: Path) -> None:
    groups = encode_all(list(read_groups(demonstrations)), tiny_tokenizer)[0][:8]
    total, tokens = 0.0, 0
    for group in groups:
        ids, start = torch.tensor([[*group.prompt_ids, *group.responses[0].ids]]), len(group.prompt_ids)
        logprobs = tiny_model(ids).logits[0, start - 1 : -1].log_softmax(-1).detach()
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        total += float((-logprobs.gather(-1, ids[0, start:, None]).squeeze(-1) - entropy).sum())
        tokens += len(logprobs)
    assert excess_nll(tiny_model, groups).nats == pytest.approx(total / tokens, abs=1e-5)


def test_the_effect_of_a_prompt_is_the_difference_of_two_plain_log_likelihoods(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    rows = [Group("a b", (Response("c d"),)), Group("a b", (Response("e"),)), Group("f", (Response("g h i"),))]
    groups = encode_all(rows, tiny_tokenizer)[0]

    def likelihood(prompt: Any, response: Any) -> float:
        ids, start = torch.tensor([[*prompt.prompt_ids, *response.responses[0].ids]]), len(prompt.prompt_ids)
        logprobs = tiny_model(ids).logits[0, start - 1 : -1].log_softmax(-1).detach()
        return float(logprobs.gather(-1, ids[0, start:, None]).sum())

    first, second, third = groups
    expected = [
        likelihood(second, second) - likelihood(third, second),
        likelihood(third, third) - likelihood(first, third),
    ]  # the first row's neighbour has its own prompt
    np.testing.assert_allclose(prompt_effect(tiny_model, groups), expected, atol=1e-5)


def test_responses_are_described_by_their_tokens(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer.convert_tokens_to_ids
    end, pad = ids("<end>"), ids("<pad>")
    found = describe([(*ids(list("abcdabcd")), end), (*ids(["a", "b"]), pad, ids("c")), (end,)], tiny_tokenizer)
    assert found.lengths == (8, 4, 0)
    assert found.ended == (True, False, True)
    assert found.controls == (False, True, False)
    assert found.repetition == (pytest.approx(1 / 5), 0.0), "of 5 four-grams one was there before"


def test_entropy_is_that_of_the_positions_that_were_sampled(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with torch.no_grad():
        tiny_model.lm_head.weight.zero_()  # every token alike
    _, found = sample(tiny_model, tiny_tokenizer, prompts_of("abc", 6, tiny_tokenizer), limit=5, seed=0)  # type: ignore[misc]
    assert found.entropy == pytest.approx(np.log(42), rel=1e-5)
    assert found.vocabulary == 42


def test_equal_samples_do_not_differ(sharp_model: Any, tiny_tokenizer: Any) -> None:
    with torch.no_grad():
        sharp_model.lm_head.weight.mul_(1000)  # as good as greedy
    _, found = sample(sharp_model, tiny_tokenizer, prompts_of("abc", 6, tiny_tokenizer), limit=5, seed=0)  # type: ignore[misc]
    assert not any(found.differ)


def test_a_prompt_that_fills_the_context_is_left_out(tiny_model: Any, tiny_tokenizer: Any) -> None:
    long = encode_all([Group("a " * 255)], tiny_tokenizer)[0]
    assert sample(tiny_model, tiny_tokenizer, long, limit=5, seed=0) is None

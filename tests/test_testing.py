"""The test doubles shipped for users implement the protocols that they replace."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from kleash.chat.messages import Chat, ChatRequest
from kleash.data.chat import encode_prompt
from kleash.data.group import Group, Response
from kleash.rewards.reward import Reward
from kleash.sampling.local import LocalSampler
from kleash.sampling.sampler import Sampler, decode_groups
from kleash.stages import grpo, sft
from kleash.testing import ConstantReward, FakeChat, FakeSampler, tiny_model, tiny_tokenizer


def test_the_tiny_model_is_the_same_for_a_seed_and_does_not_change_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    one, same, other = tiny_model(), tiny_model(), tiny_model(seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert tiny_model(num_hidden_layers=1).config.num_hidden_layers == 1


def test_the_tiny_tokenizer_gives_back_what_it_was_given_and_speaks_in_turns() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer.encode("a b 7")) == "a b 7"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    prompt = encode_prompt(({"role": "user", "content": "a b"},), tokenizer)
    assert tokenizer.decode(list(prompt)) == "user a b <end> assistant"


def test_the_fake_sampler_gives_the_batch_that_a_sampler_gives() -> None:
    tokenizer = tiny_tokenizer()
    sampler = FakeSampler(tokenizer, ["a b c", "z"], logprob=-0.5)
    assert isinstance(sampler, Sampler)
    batch = sampler([[6, 7], [8]], group_size=2, seed=0, version=3)
    real = LocalSampler(tiny_model(), tokenizer, max_new_tokens=4)([[6, 7], [8]], group_size=2, seed=0, version=3)
    assert batch.shape[:2] == real.shape[:2] == (2, 2)
    assert batch.version == real.version == 3
    batch = replace(batch, index=None)  # which is known where a batch is made from lists
    assert {name: value.dtype for name, value in vars(batch).items() if isinstance(value, torch.Tensor)} == {
        name: value.dtype for name, value in vars(real).items() if isinstance(value, torch.Tensor)
    }
    assert torch.equal(batch.sampler_logprobs, torch.where(batch.mask, -0.5, 0.0))
    groups = decode_groups(batch, [Group("a b", ()), Group("c", ())], tokenizer, sampler.end_ids)
    assert [[response.text for response in group.responses] for group in groups] == [["a b c", "z"], ["z", "a b c"]]
    assert all(response.finished for group in groups for response in group.responses)
    sampler.sync(4)
    assert (sampler.prompts, sampler.versions) == ([[6, 7], [8]], [4])


def test_a_response_of_the_fake_sampler_depends_on_key_and_k_only() -> None:
    sampler = FakeSampler(tiny_tokenizer(), ["a", "b", "c"])
    whole = sampler([[6], [7], [8]], group_size=2, seed=0)
    last = sampler([[8]], group_size=2, seed=1, keys=[2])
    assert torch.equal(whole.response_ids[2:], last.response_ids)


def test_the_fake_sampler_truncates_long_responses_and_calls_a_function() -> None:
    tokenizer = tiny_tokenizer()
    sampler = FakeSampler(tokenizer, lambda prompt, k: "a b c d" if k else "z", max_new_tokens=3)
    (group,) = decode_groups(sampler([[6]], group_size=2, seed=0), [Group("a", ())], tokenizer, sampler.end_ids)
    assert [(response.text, response.finished) for response in group.responses] == [("z", True), ("a b c", False)]


def test_the_fake_chat_answers_by_text_or_by_the_probability_of_options() -> None:
    chat = FakeChat(lambda question: {"1": 0.25, "2": 0.75} if question.options else "well said")
    assert isinstance(chat, Chat)
    choice = ChatRequest(messages=({"role": "user", "content": "which?"},), options=("1", "2"))
    text = ChatRequest(messages=({"role": "user", "content": "what?"},))
    first, second = chat.ask([choice, text])
    assert first.text == "2"
    assert first.shares(("1", "2")) == pytest.approx([0.25, 0.75])
    assert (second.text, second.error) == ("well said", "")
    assert chat.questions == [choice, text]
    assert math.isclose(math.exp(first.logprobs["1"]), 0.25, rel_tol=1e-6)


def test_the_constant_reward_scores_every_response_alike() -> None:
    reward = ConstantReward(0.5)
    assert isinstance(reward, Reward)
    scores = reward([Group("a", (Response("b"), Response("c")))] * 3)
    assert torch.equal(scores, torch.full((3, 2), 0.5))


def test_a_stage_runs_on_them(tmp_path) -> None:
    rows = [{"prompt": f"a {letter}", "response": "b"} for letter in "abcdefghij"]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    live = (tiny_model(), tiny_tokenizer())
    config = grpo.GRPOConfig(
        model="tiny", data=str(data), reward="constant", out=tmp_path / "grpo", max_steps=1, group_size=2,
        batch_size=2, max_new_tokens=4,
    )  # fmt: skip
    assert grpo.run(config, policy=live, reward=ConstantReward()).finished
    trained = sft.run(sft.SFTConfig(model="tiny", data=str(data), out=tmp_path / "sft", max_steps=1), policy=live)
    assert trained.finished

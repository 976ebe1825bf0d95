"""What each step launches, and for what the host waits: on a GPU these are its time at small size."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from kleash.data import batching
from kleash.data.batch import collate
from kleash.data.group import EncodedGroup, EncodedResponse, Group, Preference, Response
from kleash.models import forward
from kleash.models.compute import Compute
from kleash.models.reference import Reference
from kleash.rewards.ended import EndedReward
from kleash.rollout.rollout import Components, Rollout
from kleash.sampling.local import LocalSampler
from kleash.stages import dpo, grpo, reward_model, sft
from kleash.stages.training_configs import DPOConfig, GRPOConfig, RewardConfig
from kleash.testing import tiny_tokenizer
from kleash.training.optim import Optimizer
from tests.launches import Launches

COMPUTE = Compute(device="cpu")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The back end and the micro-batches that a GPU gets, and its operations over many tensors."""
    on_cpu = forward.pick_back_end
    joined = lambda decoder, batch: "joined" if batch.shape[1] > 1 else on_cpu(decoder, batch)  # noqa: E731
    monkeypatch.setattr(forward, "pick_back_end", joined)
    monkeypatch.setattr(batching, "_pass_cost", lambda device, most: float(most))
    monkeypatch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda device: True)


def model(layers: int, kind: type = LlamaForCausalLM):
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, bos_token_id=None, num_labels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    made = kind(config) if kind is LlamaForCausalLM else kind.from_config(config)
    return made.eval()


def rows(count: int, k: int, tokens: int) -> list[EncodedGroup]:
    draw = random.Random(0)

    def ids(most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, 64) for _ in range(draw.randint(1, most)))

    groups = []
    for _ in range(count):
        texts = [ids(tokens) for _ in range(k)]
        label = Preference(1.0) if k == 2 else None
        source = Group("x", tuple(Response("y") for _ in texts), label)
        responses = tuple(EncodedResponse(text, (True,) * len(text)) for text in texts)
        groups.append(EncodedGroup(ids(tokens), responses, source))
    return groups


def sft_step(layers: int, count: int, tokens: int) -> Callable[[], object]:
    trained = model(layers)
    optimizer, groups = Optimizer(trained, steps=9, learning_rate=1e-3), rows(count, 1, tokens)
    return lambda: sft.update(trained, groups, optimizer, COMPUTE)


def reward_step(layers: int, count: int, tokens: int) -> Callable[[], object]:
    trained = model(layers, AutoModelForSequenceClassification)
    optimizer, groups = Optimizer(trained, steps=9, learning_rate=1e-3), rows(count, 2, tokens)
    config = RewardConfig(model="m", data="d", out="o", device="cpu")
    weights = torch.ones(count, 1)
    return lambda: reward_model.update(trained, groups, optimizer, config, weights)


def dpo_step(layers: int, count: int, tokens: int) -> Callable[[], object]:
    trained = model(layers)
    optimizer, groups = Optimizer(trained, steps=9, learning_rate=1e-3), rows(count, 2, tokens)
    config = DPOConfig(model="m", data="d", out="o", device="cpu")
    references = [torch.zeros(2) for _ in groups]
    return lambda: dpo.update(trained, groups, references, optimizer, config)


@pytest.mark.parametrize(("step", "more", "looks"), [(sft_step, 130, 3), (reward_step, 180, 2), (dpo_step, 270, 2)])
def test_a_step_launches_as_much_for_many_long_rows_as_for_few_short_ones(step, more: int, looks: int) -> None:
    found = {}
    for layers, count, tokens in ((2, 4, 8), (2, 16, 32), (4, 4, 8)):
        run = step(layers, count, tokens)
        run()  # the first makes the optimiser's state
        with Launches() as counted:
            run()
        found[layers, count] = counted
    assert found[2, 4].launches == found[2, 16].launches
    for (layers, _), counted in found.items():
        assert counted.launches.total() <= 110 * layers + more, counted.launches.most_common(12)
        assert counted.looks.total() <= looks, counted.looks


def grpo_step(layers: int, count: int, k: int, tokens: int) -> Callable[[], object]:
    trained = model(layers)
    optimizer, groups = Optimizer(trained, steps=9, learning_rate=1e-3), rows(count, k, tokens)
    batch = collate(groups)
    with torch.no_grad():
        old, _ = forward.response_logprobs(trained, batch)
    advantages = torch.linspace(-1, 1, count * k).reshape(count, k, 1).expand(batch.shape)
    given = replace(batch, sampler_logprobs=old, old_logprobs=old, reference_logprobs=old, advantages=advantages)
    rollout = Rollout(given, [group.source for group in groups], torch.zeros(count, k), {}, sampled_groups=count)
    config = GRPOConfig(model="m", data="d", out="o", reward="ended", device="cpu", group_size=k)
    parts = Components(
        policy=trained, tokenizer=tiny_tokenizer(), reference=Reference(trained), reward=EndedReward(), compute=COMPUTE,
        sampler=LocalSampler(trained, tiny_tokenizer(), max_new_tokens=tokens),
    )  # fmt: skip
    return lambda: grpo.update(parts, rollout, optimizer, config)


def test_a_grpo_update_launches_as_much_for_any_number_of_prompts_responses_and_tokens() -> None:
    found = {}
    for layers, count, k, tokens in ((2, 4, 2, 8), (2, 16, 8, 20), (4, 4, 2, 8)):
        run = grpo_step(layers, count, k, tokens)
        run()
        with Launches() as counted:
            run()
        found[layers, count] = counted
    assert found[2, 4].launches == found[2, 16].launches
    for (layers, _), counted in found.items():
        assert counted.launches.total() <= 110 * layers + 350, counted.launches.most_common(12)
        assert counted.looks.total() <= 12, counted.looks


@pytest.mark.parametrize(("count", "k"), [(4, 2), (16, 8)])
def test_a_sampled_token_launches_as_much_for_any_number_of_responses(count: int, k: int) -> None:
    trained = model(2)
    prompts = [group.prompt_ids for group in rows(count, 1, 8)]
    totals = []
    for tokens in (4, 12):
        sampler = LocalSampler(trained, tiny_tokenizer(), max_new_tokens=tokens, end_ids=(0,))
        with Launches() as counted:
            sampler(prompts, group_size=k, seed=0)
        totals.append(counted)
    launches, looks = (
        (getattr(totals[1], what).total() - getattr(totals[0], what).total()) / 8 for what in ("launches", "looks")
    )
    assert launches <= 40 * 2 + 70, totals[1].launches.most_common(12)
    assert looks <= 2, totals[1].looks  # how many rows still run, and the mask of `transformers`

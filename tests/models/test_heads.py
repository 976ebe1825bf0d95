from __future__ import annotations

import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from kleash.data.batch import collate
from kleash.data.group import EncodedGroup, EncodedResponse, Group
from kleash.errors import ModelError
from kleash.models.forward import response_scores
from kleash.models.heads import ValueModel, values
from tests.jitter import jitter


def config(labels: int = 1, width: int = 32) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=40,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        num_labels=labels,
        pad_token_id=0,
    )


def policy(width: int = 32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return jitter(LlamaForCausalLM(config(width=width)).eval())


def reward_model(labels: int = 1) -> LlamaForSequenceClassification:
    torch.manual_seed(1)
    return jitter(LlamaForSequenceClassification(config(labels)).eval())


def encoded(*lengths: tuple[int, tuple[int, ...]]) -> list[EncodedGroup]:
    draw = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, 40) for _ in range(count))

    return [
        EncodedGroup(ids(prompt), tuple(EncodedResponse(ids(n), (True,) * n) for n in responses), Group("x"))
        for prompt, responses in lengths
    ]


@torch.no_grad()
def test_the_value_is_that_before_each_token() -> None:
    model, groups = ValueModel.from_policy(policy(), seed=0), encoded((3, (5, 2)), (6, (1, 4)))
    for back_end in ("rows", "cache", "joined"):
        found = values(model, collate(groups), back_end=back_end)
        for p, group in enumerate(groups):
            for k, response in enumerate(group.responses):
                row = torch.tensor([group.prompt_ids + response.ids])
                states = model.decoder(row).last_hidden_state[0]
                for t in range(5):
                    state = states[len(group.prompt_ids) - 1 + t] if t < len(response.ids) else None
                    expected = torch.tensor(0.0) if state is None else model.head(state)[0]
                    torch.testing.assert_close(found[p, k, t], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_from_a_reward_model_the_value_is_its_score_so_far() -> None:
    reward = reward_model()
    reward.config.kleash_offset = 0.75
    model = ValueModel.from_reward_model(reward)
    group = encoded((4, (6,)))[0]
    found = values(model, collate([group]))[0, 0]
    for t in range(6):
        cut = EncodedResponse(group.responses[0].ids[:t], (True,) * t)
        score = response_scores(reward, collate([EncodedGroup(group.prompt_ids, (cut,), group.source)]))
        torch.testing.assert_close(found[t], score[0, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["policy", "reward model"])
def test_training_the_copy_leaves_the_original(kind: str) -> None:
    source = (policy() if kind == "policy" else reward_model()).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    model = ValueModel.from_policy(source, seed=3) if kind == "policy" else ValueModel.from_reward_model(source)
    assert all(parameter.requires_grad for parameter in model.parameters())
    values(model, collate(encoded((3, (4, 2))))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())


def test_fresh_head_has_the_published_spread() -> None:
    heads = torch.cat(
        [ValueModel.from_policy(policy(width=64), seed=seed).head.weight.detach()[0] for seed in range(30)]
    )
    assert float(heads.std()) == pytest.approx(65**-0.5, rel=0.06)  # 1,920 draws: standard error 1.6 %
    assert abs(float(heads.mean())) < 4 * 65**-0.5 / 1920**0.5
    model = ValueModel.from_policy(policy(), seed=0)
    assert not model.head.bias.any()
    assert torch.equal(model.head.weight, ValueModel.from_policy(policy(), seed=0).head.weight)
    assert not torch.equal(model.head.weight, ValueModel.from_policy(policy(), seed=1).head.weight)


@torch.no_grad()
def test_F7_no_dropout_is_left_in_the_copy() -> None:
    reward = reward_model()
    for layer in reward.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model, batch = ValueModel.from_reward_model(reward), collate(encoded((3, (4, 2))))
    assert torch.equal(values(model.train(), batch), values(model.eval(), batch))


@torch.no_grad()
def test_weights_survive_safetensors(tmp_path) -> None:
    model, batch = ValueModel.from_reward_model(reward_model()), collate(encoded((3, (4, 2))))
    save_file(model.state_dict(), tmp_path / "value.safetensors")
    other = ValueModel.from_policy(policy(), seed=5)
    assert not torch.allclose(values(other, batch), values(model, batch))
    other.load_state_dict(load_file(tmp_path / "value.safetensors"))
    assert torch.equal(values(other, batch), values(model, batch))


def test_a_classifier_of_many_outputs_is_not_a_reward_model() -> None:
    with pytest.raises(ModelError, match="one output"):
        ValueModel.from_reward_model(reward_model(labels=3))
    with pytest.raises(ModelError, match="score"):
        ValueModel.from_reward_model(policy())

"""Adapters change nothing until they are trained, can be switched off, and end as a plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from kleash.checks.reward_report import held_out_rewards, preference_figures
from kleash.data.batch import GroupBatch
from kleash.io import read_jsonl
from kleash.models import reference
from kleash.models.load import load_policy, load_reward_model
from kleash.models.lora import add_lora, as_it_came, merge_lora
from kleash.rollout.rollout_log import read_rollout
from kleash.run import read_record
from kleash.stages import dpo, grpo, ppo, reward_model, sft

from .conftest import logprobs


def train_adapters(model: LlamaForCausalLM) -> None:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def test_new_adapters_change_no_output_and_are_all_that_is_trained(tiny_model: Any, batch: GroupBatch) -> None:
    before = logprobs(tiny_model, batch)
    add_lora(tiny_model, {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}, seed=0)
    assert torch.equal(logprobs(tiny_model, batch), before)
    trained = [name for name, parameter in tiny_model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)


def test_switched_off_they_leave_the_model_that_training_began_with(tiny_model: Any, batch: GroupBatch) -> None:
    before = logprobs(tiny_model, batch)
    add_lora(tiny_model, {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}, seed=0)
    train_adapters(tiny_model)
    after = logprobs(tiny_model, batch)
    assert (after - before).abs().max() > 1e-2
    with as_it_came(tiny_model):
        assert torch.equal(logprobs(tiny_model, batch), before)
    assert torch.equal(logprobs(tiny_model, batch), after)


def test_alpha_over_rank_scales_what_they_add(tiny_model: Any) -> None:
    add_lora(tiny_model, {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}, seed=0)
    assert tiny_model.model.layers[0].self_attn.q_proj.scaling == {"default": 1.5}


def test_merged_and_saved_they_are_a_plain_model(tiny_model: Any, batch: GroupBatch, tmp_path: Path) -> None:
    add_lora(tiny_model, {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}, seed=0)
    train_adapters(tiny_model)
    after = logprobs(tiny_model, batch)
    merge_lora(tiny_model)
    tiny_model.save_pretrained(tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("adapter*"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logprobs(loaded, batch), after, atol=1e-5, rtol=0)


def test_sft_with_adapters_goes_on_after_an_interruption_and_leaves_a_plain_model(
    base: Path, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model": str(base), "data": str(demonstrations), "lora_rank": 4, "learning_rate": 1e-2, "batch_size": 8}
    whole = sft.run(sft.SFTConfig.make({**settings, "out": tmp_path / "whole", "max_steps": 6, "save_every": 2}))
    assert whole.record["results"]["eval_loss"] < whole.record["results"]["eval_loss_before"] - 0.1

    steps = iter(range(100))

    def stop(self: Any, *arguments: Any, **named: Any) -> Any:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return log(self, *arguments, **named)

    log = sft.RunFolder.log
    config = sft.SFTConfig.make({**settings, "out": tmp_path / "cut", "max_steps": 6, "save_every": 2})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft.RunFolder, "log", stop)
        sft.run(config)
    (state,) = (tmp_path / "cut" / "checkpoints").glob("step-*")
    assert (state / "model.safetensors").stat().st_size < 0.5 * (base / "model.safetensors").stat().st_size
    sft.run(config)
    one, other = (load_policy(tmp_path / name)[0].state_dict() for name in ("whole", "cut"))
    assert one.keys() == load_policy(base)[0].state_dict().keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_F8_a_reward_model_trained_with_adapters_keeps_its_head_and_its_scores(
    base: Path, comparisons: Path, tmp_path: Path
) -> None:
    run = reward_model.run(
        reward_model.RewardConfig.make(
            {
                "model": str(base), "data": str(comparisons), "out": tmp_path / "reward", "lora_rank": 4,
                "learning_rate": 1e-2, "batch_size": 16, "max_steps": 12, "centre_samples": 0,
            }
        )
    )  # fmt: skip
    record = read_record(run.path) or {}
    loaded, tokenizer = load_reward_model(run.path)
    fresh = reward_model.new_reward_model(str(base), seed=0)[0]
    assert not torch.equal(loaded.score.weight, fresh.score.weight)
    settings = reward_model.RewardConfig.make(record["config"])
    train, held_out = reward_model.read_comparisons(settings, loaded, tokenizer, run.note)
    rewards = held_out_rewards(loaded, held_out, compute=settings.compute)
    assert preference_figures(held_out, rewards, train).log_loss == pytest.approx(
        record["results"]["report"]["log_loss"], abs=1e-5
    )


def test_F1_gradient_checkpointing_changes_no_weight(base: Path, demonstrations: Path, tmp_path: Path) -> None:
    trained = []
    for checkpointing in (False, True):
        out = tmp_path / str(checkpointing)
        settings = {"model": str(base), "data": str(demonstrations), "out": out, "max_steps": 3, "batch_size": 8}
        sft.run(sft.SFTConfig.make({**settings, "gradient_checkpointing": checkpointing}))
        trained.append(load_policy(out)[0].state_dict())
    for name, weight in trained[0].items():
        torch.testing.assert_close(trained[1][name], weight, atol=1e-6, rtol=1e-4)


class EarlyLetters:
    """A reward of one for each letter before n."""

    def __call__(self, groups: Any) -> Tensor:
        return torch.tensor(
            [[float(sum("a" <= word < "n" for word in r.text.split())) for r in group.responses] for group in groups]
        )


def nats(policy: Any, reference: Any, tokenizer: Any, prompt: str, response: str, end: bool) -> float:
    """log π(y|x) − log π_ref(y|x), each by one pass of plain transformers."""
    start = len(tokenizer(prompt).input_ids)
    ids = torch.tensor([tokenizer(f"{prompt} {response}").input_ids + [tokenizer.eos_token_id] * end])
    with torch.no_grad():
        first, second = (model(ids).logits[0, start - 1 : -1].log_softmax(-1) for model in (policy, reference))
    return float((first - second).gather(-1, ids[0, start:, None]).sum())


@pytest.mark.parametrize("stage", ["ppo", "grpo", "dpo"])
def test_the_reference_is_the_policy_with_its_adapters_off(
    stage: str, base: Path, prompts: Path, comparisons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run logs as its distance is that of its own weights from those it began with, response by response."""

    def no_copy(model: Any) -> Any:
        raise AssertionError("a second model in memory")

    monkeypatch.setattr(reference, "frozen_copy", no_copy)
    monkeypatch.setattr(dpo, "frozen_copy", no_copy)
    common = {"model": str(base), "out": tmp_path / "out", "max_steps": 6, "batch_size": 8, "learning_rate": 2e-2}
    common |= {"lora_rank": 4, "max_new_tokens": 6, "snapshot_every": 3}
    start, tokenizer = load_policy(base)
    if stage == "dpo":
        changes = {"data": str(comparisons), "eval_data": str(comparisons), "kl_samples": 0}
        run = dpo.run(dpo.DPOConfig.make(common | changes))
        trained = load_policy(run.path)[0]
        shifts = [
            nats(trained, start, tokenizer, row["prompt"], row["chosen"], end=True) / (len(row["chosen"].split()) + 1)
            for row in read_jsonl(comparisons)
        ]
        assert max(map(abs, shifts)) > 0.1, "the weights have moved"
        assert run.metrics()[-1]["eval_chosen_shift"] == pytest.approx(sum(shifts) / len(shifts), abs=1e-4)
    else:
        settings = {**common, "data": str(prompts), "reward": "early letters"}
        if stage == "grpo":
            run = grpo.run(grpo.GRPOConfig.make(settings | {"group_size": 4}), reward=EarlyLetters())
        else:
            run = ppo.run(ppo.PPOConfig.make(settings), reward=EarlyLetters())
        assert run.metrics()[0]["kl"] == pytest.approx(0, abs=1e-5)
        sampled_by = load_policy(run.path / "snapshots" / "step-000003")[0]  # the policy of step 4
        # Only responses whose words are all their tokens: text leaves special tokens out.
        rows = [row for row in read_rollout(run.path, 4) if len(row["text"].split()) == 6 and not row["finished"]]
        expected = [nats(sampled_by, start, tokenizer, row["prompt"], row["text"], end=False) for row in rows]
        assert max(map(abs, expected)) > 0.1, "the weights have moved"
        assert [row["kl"] for row in rows] == pytest.approx(expected, abs=1e-4)
    names = load_policy(base)[0].state_dict().keys()
    for folder in (run.path, *run.path.glob("snapshots/*")):
        assert load_policy(folder)[0].state_dict().keys() == names

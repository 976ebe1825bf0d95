"""Adapters by the settings of `peft.LoraConfig`, merged or written as an adapter's folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

import kleash
from kleash.errors import ConfigError, KleashError, ModelError
from kleash.models.load import load_policy
from kleash.models.lora import add_lora, as_it_came, can_be_disabled, merge_lora
from kleash.training.peft_settings import parse_peft_settings

VARIANTS = {
    "rank-stabilised": LoraConfig(r=2, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"]),
    "dora": LoraConfig(r=2, use_dora=True, target_modules="all-linear", modules_to_save=["lm_head"]),
    "bias": LoraConfig(r=2, bias="lora_only", target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 3}),
    "tokens": LoraConfig(r=2, target_modules=["v_proj"], trainable_token_indices=[3, 4]),
}

Stage = Callable[..., kleash.Run]


@pytest.fixture
def train(base: Path, demonstrations: Path, tmp_path: Path) -> Stage:
    def run(**arguments: Any) -> kleash.Run:
        settings = {
            "max_steps": 2, "batch_size": 8, "learning_rate": 1e-2, "gate_prompts": 0, "measure_share": 0.01,
            "force": True, "out": tmp_path / "out", "model": base, "data": demonstrations,
        }  # fmt: skip
        return kleash.sft(**settings | arguments)

    return run


@torch.no_grad()
def logprobs(model: Any) -> torch.Tensor:
    return model.eval()(torch.tensor([[5, 6, 7, 8, 3, 4]])).logits.log_softmax(-1)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_begins_as_the_model_came_and_merges_into_what_it_computes(name: str, base: Path) -> None:
    model, _ = load_policy(base, device="cpu")
    before = logprobs(model)
    settings = parse_peft_settings(VARIANTS[name])
    add_lora(model, settings, seed=0)
    assert torch.allclose(logprobs(model), before, atol=1e-6)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    after = logprobs(model)
    assert not torch.allclose(after, before, atol=1e-3)
    if can_be_disabled(settings):
        with as_it_came(model):
            assert torch.allclose(logprobs(model), before, atol=1e-6)
    merge_lora(model)
    assert torch.allclose(logprobs(model), after, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_setting_is_passed_on_and_recorded(name: str) -> None:
    config = VARIANTS[name]
    again = LoraConfig(**parse_peft_settings(config)).to_dict()
    assert {key: value for key, value in config.to_dict().items() if again[key] != value} == {}
    assert parse_peft_settings(parse_peft_settings(config)) == parse_peft_settings(config)


@pytest.mark.parametrize("name", ["rank-stabilised", "dora"])
def test_keep_writes_an_adapter_that_peft_reads(name: str, base: Path, train: Stage, tmp_path: Path) -> None:
    merged = train(peft_config=VARIANTS[name], out=tmp_path / "merged")
    run = train(peft_config=VARIANTS[name], adapter="keep")
    assert not (run.path / "model.safetensors").exists() and (run.path / "tokenizer.json").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft itself
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run.path)
    assert torch.allclose(logprobs(adapted), logprobs(run.model), atol=1e-5)
    assert torch.allclose(logprobs(merged.model), logprobs(run.model), atol=1e-4)
    assert not torch.allclose(logprobs(load_policy(base, device="cpu")[0]), logprobs(run.model), atol=1e-3)
    assert run.metrics == merged.metrics


def test_a_kept_adapter_is_a_model_for_the_next_stage_and_is_trained_on(train: Stage, tmp_path: Path) -> None:
    first = train(peft_config=VARIANTS["rank-stabilised"], adapter="keep")
    second = train(model=first, adapter="keep", out=tmp_path / "second")
    assert (second.path / "adapter_model.safetensors").exists()
    assert first.results["eval_loss"] == pytest.approx(second.results["eval_loss_before"], abs=1e-5)
    whole = train(model=second, out=tmp_path / "whole")
    assert whole.results["eval_loss_before"] == pytest.approx(second.results["eval_loss"], abs=1e-5)
    assert (whole.path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"peft_config": IA3Config()}, ConfigError, "adapters of the kind IA3 are not trained here"),
        ({"peft_config": LoraConfig(init_lora_weights="pissa")}, ConfigError, "with 'pissa' the model would not begin"),
        ({"peft_config": {"r": 2, "alpha": 3}}, ConfigError, "of which 'alpha' is not one"),
        ({"peft_config": "r: 2", "lora_rank": 2}, ConfigError, "peft_config has the rank as 'r'"),
        (
            {"peft_config": "{r: 2, target_modules: [nope]}"},
            ModelError,
            "does not fit LlamaForCausalLM: Target modules",
        ),
        ({"peft_config": {"r": 2, "modules_to_save": ["nope"]}}, ModelError, "has no module 'nope'"),
        ({"adapter": "keep", "lora_rank": 2, "save_dtype": "bfloat16"}, ConfigError, "leave 'save_dtype' out"),
        ({"adapter": "keep"}, ConfigError, "there is none; give lora_rank or peft_config"),
        ({"adapter": "continue", "peft_config": {"r": 2}}, ConfigError, "leave 'peft_config' out"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: dict[str, Any], error: type[KleashError], message: str, train: Stage
) -> None:
    with pytest.raises(error, match=message) as caught:
        train(**arguments)
    assert "\n" not in str(caught.value)


def test_a_live_model_has_no_base_that_others_find(base: Path, train: Stage, tiny_tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(ModelError, match="whose base others must find; save the model first"):
        train(model=(model, tiny_tokenizer), adapter="keep", lora_rank=2)

"""Adapters that another tool trained: a folder, or a live model, is the base with the adapter as it came."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from kleash.checks.artifact import kind_of
from kleash.cli import _run
from kleash.content import folder_hash
from kleash.data.batch import GroupBatch
from kleash.data.group import Group, Response
from kleash.errors import ConfigError, ModelError
from kleash.models.load import load_policy, load_reward_model, load_tokenizer, new_reward_model
from kleash.models.lora import adapted_experts, add_lora, as_it_came, keep_reference, merge_lora
from kleash.models.reference import reference_of
from kleash.rewards.build import build_reward
from kleash.stages import dpo, grpo, reward_model, sft
from kleash.testing import ConstantReward, tiny_tokenizer

from .conftest import logprobs

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
"""`peft` asks `transformers` by an old name."""

MOE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
    "max_position_embeddings": 256, "eos_token_id": 1,
}  # fmt: skip


def train_a_little(model: Any) -> Any:
    """An adapter whose effect is seen."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def adapted(base: Path, **changes: Any) -> PeftModel:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **changes)
    return train_a_little(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A LoRA folder as another tool writes it, without a tokenizer."""
    adapted(base).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def merged(base: Path, adapter: Path) -> Any:
    """What `peft` makes of it."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload().eval()


def settings(model: Any, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(model), "data": str(data), "out": out, "max_steps": 1, "batch_size": 4, "learning_rate": 0.0,
        **changes,
    }  # fmt: skip


def test_an_adapter_folder_is_its_base_with_the_adapter(adapter: Path, base: Path, batch: GroupBatch) -> None:
    model, tokenizer = load_policy(adapter)
    expected = logprobs(merged(base, adapter), batch)
    assert (logprobs(load_policy(base)[0], batch) - expected).abs().max() > 0.01
    torch.testing.assert_close(logprobs(model, batch), expected)
    assert model.state_dict().keys() == load_policy(base)[0].state_dict().keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer.get_vocab() == load_tokenizer(base).get_vocab() and kind_of(adapter) == "language model"


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}, {"adapter": "continue"}], ids=str)
@pytest.mark.parametrize("live", [False, True], ids=["folder", "live"])
def test_sft_starts_from_an_adapter_and_leaves_a_plain_model(
    changes: dict[str, Any], live: bool, adapter: Path, base: Path, demonstrations: Path, tmp_path: Path,
    batch: GroupBatch,
) -> None:  # fmt: skip
    config = sft.SFTConfig.make(settings(adapter, demonstrations, tmp_path / "out", gate_prompts=0, **changes))
    expected = logprobs(merged(base, adapter), batch)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    sft.run(config, policy=(peft, load_tokenizer(base)) if live else None)
    assert not list((tmp_path / "out").glob("adapter*"))
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert written.state_dict().keys() == AutoModelForCausalLM.from_pretrained(base).state_dict().keys()
    torch.testing.assert_close(logprobs(written, batch), expected, atol=1e-5, rtol=0)


def test_a_live_model_with_the_adapter_inside_is_merged_too(
    adapter: Path, base: Path, demonstrations: Path, tmp_path: Path, batch: GroupBatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(adapter)
    config = sft.SFTConfig.make(settings("live", demonstrations, tmp_path / "out", gate_prompts=0))
    sft.run(config, policy=(model, load_tokenizer(base)))
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logprobs(written, batch), logprobs(merged(base, adapter), batch), atol=1e-5, rtol=0)


def test_continue_trains_the_adapter_and_nothing_else(adapter: Path, base: Path, batch: GroupBatch) -> None:
    model, _ = load_policy(adapter, adapter="continue")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    torch.testing.assert_close(logprobs(model, batch), logprobs(merged(base, adapter), batch))


def test_the_reference_of_a_continued_adapter_is_the_adapter_as_it_came(
    adapter: Path, base: Path, batch: GroupBatch
) -> None:
    model, _ = load_policy(adapter, adapter="continue")
    before = logprobs(model, batch)
    reference = reference_of(model, None, device="cpu", adapters=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.05) if name in trained else None
    after = logprobs(model, batch)
    assert (after - before).abs().max() > 0.01
    with as_it_came(reference.model):
        torch.testing.assert_close(logprobs(model, batch), before)
    assert torch.equal(logprobs(model, batch), after)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    merge_lora(model)
    torch.testing.assert_close(logprobs(model, batch), after, atol=1e-5, rtol=0)
    assert model.state_dict().keys() == load_policy(base)[0].state_dict().keys()


@pytest.mark.parametrize("use", ["merge", "continue"])
def test_the_kl_of_a_policy_that_did_not_move_is_zero(
    use: str, adapter: Path, prompts: Path, comparisons: Path, tmp_path: Path
) -> None:
    changes = {"adapter": use, "max_new_tokens": 4}
    config = grpo.GRPOConfig.make(settings(adapter, prompts, tmp_path / "grpo", reward="c", group_size=2, **changes))
    run = grpo.run(config, reward=ConstantReward())
    assert run.metrics()[0]["kl"] == pytest.approx(0, abs=1e-5)
    direct = dpo.DPOConfig.make(settings(adapter, comparisons, tmp_path / "dpo", kl_samples=8, **changes))
    run = dpo.run(direct)
    assert run.metrics()[-1]["margin"] == pytest.approx(0, abs=1e-4)
    assert run.record["results"]["kl"]["mean"] == pytest.approx(0, abs=1e-4)


def test_a_continued_adapter_and_a_new_one_are_refused_together(adapter: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave 'lora_rank' out"):
        sft.SFTConfig.make(settings(adapter, prompts, tmp_path / "out", adapter="continue", lora_rank=2))


def test_continue_without_an_adapter_is_refused(base: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="is not an adapter"):
        load_policy(base, adapter="continue")
    with pytest.raises(ModelError, match="has no adapter"):
        load_policy((AutoModelForCausalLM.from_pretrained(base), tiny_tokenizer), adapter="continue")


def test_the_commands_take_an_adapter_like_a_model(
    adapter: Path, prompts: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["inspect", "--model", str(adapter), "--data", str(demonstrations), "--rows", "1"]) == 0
    assert "<end>" in capsys.readouterr().out
    _run(["check", str(adapter), "--data", str(demonstrations), "--rows", "4"])
    assert "language model" in capsys.readouterr().out
    words = ["--data", str(prompts), "--out", str(tmp_path / "samples.jsonl"), "--max-new-tokens", "4"]
    assert _run(["generate", "--model", str(adapter), *words]) == 0
    shutil.rmtree(tmp_path / "base")
    for command in (["check", str(adapter)], ["generate", "--model", str(adapter), *words, "-n", "2"]):
        assert _run(command) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert line.startswith("kleash: ") and "base" in line and "is not there" in line


# --- what an adapter may hold besides ---------------------------------------------------------------------------------


def test_modules_that_are_saved_whole_come_along(base: Path, tmp_path: Path, batch: GroupBatch) -> None:
    model = adapted(base, modules_to_save=["lm_head", "embed_tokens"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    expected = logprobs(merged(base, tmp_path / "adapter"), batch)
    torch.testing.assert_close(logprobs(load_policy(tmp_path / "adapter")[0], batch), expected)
    continued = load_policy(tmp_path / "adapter", adapter="continue")[0]
    keep_reference(continued)
    with as_it_came(continued):
        torch.testing.assert_close(logprobs(continued, batch), expected)


def test_an_embedding_that_grew_with_new_tokens_comes_along(base: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<new>"])
    model.resize_token_embeddings(len(tokenizer))
    rows = model.get_input_embeddings().weight[-1].clone()
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    loaded, same = load_policy(tmp_path / "adapter")
    assert same.convert_tokens_to_ids("<new>") == len(tokenizer) - 1
    assert torch.equal(loaded.get_input_embeddings().weight[-1], rows)


@pytest.fixture
def reward_adapter(base: Path, tmp_path: Path) -> tuple[Path, Any]:
    """A LoRA of a reward model, with its head, and the merged model."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS", modules_to_save=["score"])
    peft = train_a_little(get_peft_model(model, config))
    peft.save_pretrained(tmp_path / "reward-adapter")
    return tmp_path / "reward-adapter", peft.merge_and_unload()


def test_an_adapter_of_a_reward_model_is_a_reward(
    reward_adapter: tuple[Path, Any], base: Path, comparisons: Path, tmp_path: Path
) -> None:
    folder, expected = reward_adapter
    loaded, _ = load_reward_model(folder)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)
    assert kind_of(folder) == "reward model"
    with pytest.raises(ModelError, match="an adapter of a reward model and not a language model"):
        load_policy(folder)
    assert build_reward(folder)([Group("a b", (Response("c"),))]).isfinite().all()
    started = new_reward_model(folder, seed=0, adapter="continue")[0]
    assert torch.equal(started.score.weight, expected.score.weight) and started.score.weight.requires_grad
    run = reward_model.run(
        reward_model.RewardConfig.make(settings(folder, comparisons, tmp_path / "out", centre_samples=0))
    )
    torch.testing.assert_close(load_reward_model(run.path)[0].score.weight, expected.score.weight)


def test_an_adapter_of_a_language_model_starts_a_reward_model_and_is_not_one(adapter: Path, base: Path) -> None:
    started = new_reward_model(adapter, seed=0)[0]
    expected = merged(base, adapter).model.state_dict()
    for name, tensor in started.model.state_dict().items():
        if name != "embed_tokens.weight":  # which got a row for the pad
            torch.testing.assert_close(tensor, expected[name])
    with pytest.raises(ModelError, match="not a reward model"):
        load_reward_model(adapter)


# --- what is wrong with an adapter is one line ------------------------------------------------------------------------


def changed(adapter: Path, **values: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def take_away_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def damage_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"\xff" * 40)


def damage_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")


def drop_a_tensor(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors[next(name for name in tensors if "layers.1" in name)]
    save_file(tensors, adapter / "adapter_model.safetensors")


def rename_a_tensor(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name.replace("layers.1", "layers.9"): t for name, t in tensors.items()}, adapter / "adapter_model.safetensors"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda adapter: changed(adapter, base_model_name_or_path="/nowhere/base"), "base /nowhere/base is not there"),
        (lambda adapter: changed(adapter, base_model_name_or_path=None), "names no base"),
        (lambda adapter: changed(adapter, peft_type="NOTHING"), "cannot be used"),
        (take_away_weights, "weights cannot be read"),
        (damage_weights, "weights cannot be read"),
        (damage_config, "cannot be read"),
        (drop_a_tensor, "lacks model.layers.1"),
        (rename_a_tensor, "lacks model.layers.1"),
    ],
)
def test_what_is_wrong_with_an_adapter_is_one_line(damage: Callable[[Path], None], message: str, adapter: Path) -> None:
    damage(adapter)
    with pytest.raises(ModelError, match=message) as error:
        load_policy(adapter)
    assert "\n" not in str(error.value)


def test_a_base_of_another_shape_is_one_line(adapter: Path, tmp_path: Path, tiny_tokenizer: Any) -> None:
    from kleash.testing import tiny_model

    tiny_model(hidden_size=16, intermediate_size=32).save_pretrained(tmp_path / "narrow")
    tiny_tokenizer.save_pretrained(tmp_path / "narrow")
    changed(adapter, base_model_name_or_path=str(tmp_path / "narrow"))
    with pytest.raises(ModelError, match="does not fit its base") as error:
        load_policy(adapter)
    assert "\n" not in str(error.value)


def test_an_adapter_without_weights_to_merge_is_refused(base: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with pytest.raises(ModelError, match="prompt learning"):
        load_policy((peft, load_tokenizer(base)))
    peft.save_pretrained(tmp_path / "prompts")
    with pytest.raises(ModelError, match="no weights to merge"):
        load_policy(tmp_path / "prompts")


def test_the_base_is_found_beside_the_adapter_and_counts_in_its_identity(adapter: Path, base: Path) -> None:
    changed(adapter, base_model_name_or_path="base")  # relative to another place than this process
    before = folder_hash(adapter)
    load_policy(adapter)
    shutil.rmtree(base)
    from kleash.testing import tiny_model

    tiny_model(seed=5).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    assert folder_hash(adapter) != before


# --- a mixture of experts ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error:The following")
def test_adapters_on_experts_are_merged_and_written(
    tmp_path: Path, demonstrations: Path, batch: GroupBatch, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=len(tiny_tokenizer), **MOE))
    model.save_pretrained(tmp_path / "moe")
    tiny_tokenizer.save_pretrained(tmp_path / "moe")
    add_lora(model, {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}, seed=0)
    assert adapted_experts(model) == 2
    after = logprobs(train_a_little(model), batch)
    with as_it_came(model):
        assert (logprobs(model, batch) - after).abs().max() > 1e-3
    merge_lora(model)
    torch.testing.assert_close(logprobs(model, batch), after, atol=1e-5, rtol=0)
    changes = {"lora_rank": 2, "learning_rate": 1e-2, "gate_prompts": 0, "max_steps": 2}
    run = sft.run(sft.SFTConfig.make(settings(tmp_path / "moe", demonstrations, tmp_path / "out", **changes)))
    written, tokenizer = load_policy(run.path)
    config = sft.SFTConfig.make(run.record["config"])
    _, held_out = sft.read_demonstrations(config, written, tokenizer, run.note)
    loss = sft.held_out_loss(written, held_out, config.compute)
    assert loss == pytest.approx(run.record["results"]["eval_loss"], abs=1e-4)

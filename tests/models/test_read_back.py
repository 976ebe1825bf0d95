"""A folder holds the model that is in memory, bit for bit, or the run has not finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from kleash.errors import SavingError
from kleash.models import read_back
from kleash.models.load import load_policy, load_reward_model, load_tokenizer, new_reward_model, save_model
from kleash.models.read_back import compare_offset, compare_outputs
from kleash.run import read_record
from kleash.stages import dpo, ppo, reward_ensemble, reward_model, sft
from kleash.testing import ConstantReward, tiny_model


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """A disk that does not keep what it is given."""
    save = PreTrainedModel.save_pretrained

    def save_and_change(self: Any, path: Path, **settings: Any) -> None:
        save(self, path, **settings)
        tensors = change(load_file(Path(path) / "model.safetensors"))
        save_file(tensors, Path(path) / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_and_change)


def one_bit(tensors: dict[str, Any]) -> dict[str, Any]:
    tensors["model.norm.weight"].view(torch.int32)[3] ^= 1
    return tensors


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("model.norm", "model.norms"): tensor for name, tensor in tensors.items()}


def without_one(tensors: dict[str, Any]) -> dict[str, Any]:
    del tensors["model.norm.weight"]
    return tensors


def in_half(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def flattened(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.reshape(1, -1) if "norm" in name else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_bit, "model.norm.weight was not written as it is in memory: 1 of 32 numbers differ"),
        (renamed, "holds model.norms.weight, which the model has not"),
        (without_one, "model.norm.weight was not written"),
        (in_half, "its type is torch.bfloat16 for torch.float32"),
        (flattened, "its shape is torch.Size"),
    ],
)
def test_a_tensor_that_was_written_otherwise_ends_the_run_unfinished(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str, base: Path, demonstrations: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = sft.SFTConfig(model=base, data=demonstrations, out=tmp_path / "out", max_steps=1, gate_prompts=0)
    with monkeypatch.context() as patch:
        spoil(patch, change)
        with pytest.raises(SavingError) as error:
            sft.run(config)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert (read_record(tmp_path / "out") or {})["status"] != "finished"
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert sft.run(config).finished  # on a disk that keeps it


def test_a_config_that_lost_a_value_is_seen_in_what_the_model_computes(
    base: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(tmp_path / "out", tiny_model, tiny_tokenizer, "")
    compare_outputs(tmp_path / "out", tiny_model)
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.5}))
    with pytest.raises(SavingError, match="differs from that in memory"):
        compare_outputs(tmp_path / "out", tiny_model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.update({"chat_template.jinja": "other"}), "the chat template was not written"),
        (lambda files: files["tokenizer.json"]["model"]["vocab"].update(cat=41, dog=40), "encodes"),
        (lambda files: files.update({"tokenizer.json": "{"}), "cannot be read back"),
    ],
    ids=["template", "ids", "damaged"],
)
def test_a_tokenizer_that_was_written_otherwise_ends_the_run_unfinished(
    change: Callable[[dict[str, Any]], Any], message: str, tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    save = type(tiny_tokenizer).save_pretrained

    def save_and_change(self: Any, path: Path, **settings: Any) -> None:
        save(self, path, **settings)
        names = ("tokenizer.json", "tokenizer_config.json")
        files = {name: json.loads((Path(path) / name).read_text()) for name in names}
        change(files)
        for name in {*names, *files}:
            value = files.get(name)
            (Path(path) / name).write_text(value if isinstance(value, str) else json.dumps(value))

    monkeypatch.setattr(type(tiny_tokenizer), "save_pretrained", save_and_change)
    with pytest.raises(SavingError, match=message) as error:
        save_model(tmp_path / "out", tiny_model, tiny_tokenizer, "")
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "config.json").exists()


def test_an_offset_that_was_written_otherwise_is_seen(base: Path) -> None:
    model, _ = new_reward_model(base, seed=0)
    model.config.kleash_offset = 0.25
    (base / "config.json").write_text(model.config.to_json_string())
    compare_offset(base, model)
    model.config.kleash_offset = 0.5
    with pytest.raises(SavingError, match=r"has the offset 0.25, and the model in memory 0.5"):
        compare_offset(base, model)


def test_what_does_not_fit_twice_is_not_loaded_again(
    base: Path, tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_back, "available", lambda: 4 * tiny_model.num_parameters())
    monkeypatch.setattr(read_back, "read_weights", lambda *a, **k: pytest.fail("a second model in memory"))
    compare_outputs(base, tiny_model)


def test_tied_embeddings_are_written_once(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    for dtype in (torch.float32, torch.bfloat16):
        save_model(tmp_path / str(dtype), model, tiny_tokenizer, "", dtype=dtype)
        tensors = load_file(tmp_path / str(dtype) / "model.safetensors")
        assert "lm_head.weight" not in tensors and {tensor.dtype for tensor in tensors.values()} == {dtype}


# --- the type of the weights ------------------------------------------------------------------------------------------


def types(folder: Path) -> set[str]:
    """The types in the file and in the config."""
    found = {str(tensor.dtype).removeprefix("torch.") for tensor in load_file(folder / "model.safetensors").values()}
    return found | {json.loads((folder / "config.json").read_text())["dtype"]}


@pytest.fixture
def half(base: Path, tmp_path: Path) -> Path:
    """The base in bfloat16."""
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    load_tokenizer(base).save_pretrained(tmp_path / "half")
    return tmp_path / "half"


@pytest.mark.parametrize("live", [False, True], ids=["folder", "live"])
@pytest.mark.parametrize("save_dtype", [None, "float32"])
def test_weights_are_saved_in_the_type_that_the_base_came_in(
    live: bool, save_dtype: Any, half: Path, demonstrations: Path, tmp_path: Path
) -> None:
    config = sft.SFTConfig(
        model=half, data=demonstrations, out=tmp_path / "out", max_steps=2, learning_rate=1e-2, save_dtype=save_dtype
    )
    policy = (AutoModelForCausalLM.from_pretrained(half, dtype="auto"), load_tokenizer(half)) if live else None
    run = sft.run(config, policy=policy)
    assert types(run.path) == {save_dtype or "bfloat16"}
    model, _ = load_policy(run.path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    before = load_policy(half)[0].state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_every_stage_and_snapshot_saves_in_that_type(
    half: Path, prompts: Path, comparisons: Path, tmp_path: Path
) -> None:
    common = {"model": half, "max_steps": 1, "batch_size": 4}
    rollout = {"data": prompts, "max_new_tokens": 4, "snapshot_every": 1}
    run = ppo.run(ppo.PPOConfig(out=tmp_path / "ppo", reward="constant", **common, **rollout), reward=ConstantReward())
    assert types(run.path) == types(run.path / "snapshots" / "step-000001") == {"bfloat16"}
    pairs = {"data": comparisons, "snapshot_every": 1, "lora_rank": 2, "kl_samples": 4}
    run = dpo.run(dpo.DPOConfig(out=tmp_path / "dpo", **common, **pairs))
    assert types(run.path) == types(run.path / "snapshots" / "step-000001") == {"bfloat16"}
    several = {"data": comparisons, "members": 2, "average_weights": True, "centre_samples": 4}
    run = reward_ensemble.run(reward_ensemble.EnsembleConfig(out=tmp_path / "reward", **common, **several))
    assert types(run.path) == {"bfloat16"}
    loaded, _ = load_reward_model(run.path)
    assert loaded.config.kleash_offset != 0


def test_the_scores_of_a_reward_model_in_16_bits_are_those_that_were_measured(
    half: Path, comparisons: Path, tmp_path: Path
) -> None:
    config = reward_model.RewardConfig(
        model=half, data=comparisons, out=tmp_path / "out", max_steps=3, learning_rate=1e-2, centre_samples=0
    )
    run = reward_model.run(config)
    loaded, tokenizer = load_reward_model(run.path)
    _, held_out = reward_model.read_comparisons(config, loaded, tokenizer, run.note)
    rewards = reward_model.held_out_rewards(loaded, held_out, compute=config.compute)
    figures = reward_model.preference_figures(held_out, rewards, held_out)
    assert figures.log_loss == pytest.approx(run.record["results"]["report"]["log_loss"], abs=1e-5)

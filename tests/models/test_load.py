"""A model is loaded whole or refused in one line that names what is missing; nothing of it is lost on the way."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import kleash
from kleash.checks.artifact import check, kind_of
from kleash.data import chat_template
from kleash.data.chat import encode_all
from kleash.data.group import Group, Response
from kleash.errors import ConfigError, InputError, ModelError
from kleash.models.load import load_policy, load_reward_model, load_tokenizer, new_reward_model
from kleash.models.place import trust_remote_code
from kleash.rewards.build import build_reward
from kleash.sampling.sampler import build_sampler
from kleash.stages import generate, reward_model, sft

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def weights_of(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the file of weights."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refused(load: Callable[[], object], *words: str) -> None:
    with pytest.raises(ModelError) as error:
        load()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


# --- weights that are not all there -----------------------------------------------------------------------------------


def without(part: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def with_one_more(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {"v_head.weight": torch.ones(1, 32)}


def with_another_shape(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {"model.norm.weight": torch.ones(16)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("lm_head"), ["missing lm_head.weight"]),
        (without("layers.1"), ["missing model.layers.1", "and 6 more"]),
        (renamed("layers", "blocks"), ["missing model.layers.0", "unexpected model.blocks.0"]),
        (with_one_more, ["unexpected v_head.weight"]),
        (with_another_shape, ["mismatched model.norm.weight"]),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_named(
    change: Callable[[dict[str, Any]], dict[str, Any]], words: list[str], base: Path
) -> None:
    weights_of(base, change)
    refused(lambda: load_policy(base), *words)


def test_a_new_head_is_all_that_may_be_missing(base: Path) -> None:
    new_reward_model(base, seed=0)  # which has no score, and whose output head is left out
    weights_of(base, without("lm_head"))
    new_reward_model(base, seed=0)
    weights_of(base, without("layers.1.mlp"))
    refused(lambda: new_reward_model(base, seed=0), "missing model.layers.1.mlp")


def test_a_reward_model_is_no_language_model_even_where_embeddings_are_tied(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    from kleash.testing import tiny_model as another

    another(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    tiny_tokenizer.save_pretrained(tmp_path / "tied")
    load_policy(tmp_path / "tied")
    model, tokenizer = new_reward_model(tmp_path / "tied", seed=0)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    load_reward_model(tmp_path / "reward")
    refused(lambda: load_policy(tmp_path / "reward"), "unexpected score.weight", "LlamaForSequenceClassification")


def test_a_reward_model_without_its_head_is_refused(base: Path, tmp_path: Path) -> None:
    model, tokenizer = new_reward_model(base, seed=0)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    weights_of(tmp_path / "reward", without("score"))
    refused(lambda: load_reward_model(tmp_path / "reward"), "missing score.weight")
    refused(lambda: new_reward_model(tmp_path / "reward", seed=0), "missing score.weight")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_one_line(file: str, base: Path) -> None:
    (base / file).write_bytes(b"\xff\xfe" * 20)
    refused(lambda: load_policy(base))


# --- where the training of a reward model starts ----------------------------------------------------------------------


@pytest.fixture
def trained(base: Path, comparisons: Path, tmp_path: Path) -> Path:
    return reward_model.run(
        reward_model.RewardConfig.make(
            {
                "model": str(base), "data": str(comparisons), "out": tmp_path / "first", "max_steps": 3,
                "batch_size": 8, "learning_rate": 1e-2, "centre_samples": 0,
            }
        )
    ).path  # fmt: skip


def test_a_reward_model_as_the_start_keeps_its_head_and_offset(
    trained: Path, comparisons: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, _ = load_reward_model(trained)
    config = reward_model.RewardConfig.make(
        {
            "model": str(trained), "data": str(comparisons), "out": tmp_path / "second", "max_steps": 1,
            "learning_rate": 0.0, "force": True,
        }
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "kleash"):
        model, _ = new_reward_model(trained, seed=5)
        run = reward_model.run(config)
    assert torch.equal(model.score.weight, before.score.weight)
    assert model.config.kleash_offset == before.config.kleash_offset != 0
    assert "its head and its centring offset are kept" in caplog.text and "gives no samples" in caplog.text
    assert torch.equal(load_reward_model(run.path)[0].score.weight, before.score.weight)
    assert run.record["results"]["centred_on"] == "the training responses"


@pytest.mark.parametrize("outputs", [2, 3])
def test_a_classifier_with_several_outputs_starts_from_a_fresh_head(
    outputs: int, base: Path, comparisons: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "classifier"
    shutil.copytree(base, folder)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=outputs).save_pretrained(folder)
    config = reward_model.RewardConfig.make(
        {"model": folder, "data": comparisons, "out": tmp_path / "out", "max_steps": 1, "centre_samples": 0}
    )
    with caplog.at_level(logging.INFO, "kleash"):
        run = reward_model.run(config)
    assert f"{folder}: is a classifier with {outputs} outputs; training starts from 1 fresh one" in caplog.text
    assert load_reward_model(run.path)[0].score.weight.shape[0] == 1
    refused(lambda: load_reward_model(folder), f"{outputs} outputs")


# --- tokens, types, names ---------------------------------------------------------------------------------------------


def test_a_pad_token_without_a_row_is_one_line(base: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tiny_tokenizer.save_pretrained(base)
    words = ("42 rows", "'[PAD]' is number 42", "resize")
    refused(lambda: load_policy(base), *words)
    refused(lambda: new_reward_model(base, seed=0), *words)
    refused(lambda: load_policy((AutoModelForCausalLM.from_pretrained(base), tiny_tokenizer)), *words)


def test_another_token_without_a_row_is_one_line_where_it_occurs(
    base: Path, tiny_tokenizer: PreTrainedTokenizerFast, demonstrations: Path, tmp_path: Path
) -> None:
    tiny_tokenizer.add_tokens(["new"])
    tiny_tokenizer.save_pretrained(base)
    settings = {"model": base, "max_steps": 1, "gate_prompts": 0}
    sft.run(sft.SFTConfig.make({**settings, "data": demonstrations, "out": tmp_path / "out"}))
    rows = tmp_path / "new.jsonl"
    rows.write_text('{"prompt": "a", "response": "new"}\n' * 4)
    refused(
        lambda: sft.run(sft.SFTConfig.make({**settings, "data": rows, "out": tmp_path / "new"})), "'new' is number 42"
    )


def test_a_live_model_in_half_precision_is_trained_in_single(base: Path, demonstrations: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = sft.SFTConfig.make({"model": "live", "data": demonstrations, "out": tmp_path / "out", "max_steps": 2})
    sft.run(config, policy=(model, load_tokenizer(base)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_path_may_be_a_path(base: Path, demonstrations: Path, tmp_path: Path) -> None:
    config = sft.SFTConfig(model=base, data=demonstrations, out=tmp_path / "out", max_steps=1, gate_prompts=0)
    assert config == sft.SFTConfig(**{**config.model_dump(), "model": str(base), "data": str(demonstrations)})
    assert sft.run(config).finished
    with pytest.raises(ConfigError, match="'model' is 5"):
        sft.SFTConfig.make({"model": 5, "data": demonstrations, "out": tmp_path / "out"})


def test_every_file_can_be_read_under_the_umask(base: Path, comparisons: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        settings = {"model": base, "data": comparisons, "max_steps": 2, "batch_size": 8}
        reward_model.run(reward_model.RewardConfig.make({**settings, "out": tmp_path / "out", "keep_weights": "best"}))
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert "model.safetensors" in modes and set(modes.values()) == {0o644}, modes


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """Puts a folder into an offline hub's cache under a name."""
    for module in ("huggingface_hub.constants", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)

    def upload(name: str, folder: Path) -> None:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)

    return upload


def test_a_hub_name_stands_wherever_a_folder_does(hub: Callable[[str, Path], None], base: Path, trained: Path) -> None:
    hub("team/policy", base)
    hub("team/reward", trained)
    load_policy("team/policy")
    assert kind_of(Path("team/policy")) == "language model" and kind_of(Path("team/reward")) == "reward model"
    group = Group("a b", (Response("z z"), Response("c")))
    here, there = build_reward(trained), build_reward("team/reward")
    assert torch.equal(there([group]), here([group]))
    assert getattr(there, "range", None) is not None, "the range of its features comes along"
    assert check(Path("team/reward")).kind == "reward model"
    with pytest.raises(InputError, match="no such file or folder"):
        check(Path("team/nothing.jsonl"))


def test_a_missing_folder_beside_another_is_never_a_hub_name(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    config = generate.GenerateConfig(model="runs/nope", data=str(prompts), out=tmp_path / "out.jsonl")
    refused(lambda: load_policy("runs/nope"), "there is no such folder")
    refused(lambda: generate.run(config), "there is no such folder")  # and the network was not asked
    with pytest.raises(ConfigError, match="no such folder"):
        build_reward("runs/nope")


# --- code, templates, ends --------------------------------------------------------------------------------------------


@pytest.fixture
def with_code(base: Path) -> Path:
    """A model of a kind that `transformers` does not know, with the code for it."""
    config = json.loads((base / "config.json").read_text())
    config |= {
        "model_type": "own_llama", "architectures": ["OwnLlama"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnLlama"},
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    (base / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(base / 'ran')!r}).touch()\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n\n\n"
        "class OwnLlama(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    return base


def test_code_of_a_model_is_refused_unless_asked_for(
    with_code: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked on stdin"))
    refused(lambda: load_policy(with_code), "--trust-remote-code")
    refused(lambda: new_reward_model(with_code, seed=0), "--trust-remote-code")
    assert not (with_code / "ran").exists()
    with trust_remote_code():
        load_policy(with_code)
    assert (with_code / "ran").exists()
    refused(lambda: load_policy(with_code), "--trust-remote-code")
    assert kleash.trust_remote_code is trust_remote_code


@pytest.mark.parametrize("where", ["always", "last"])
def test_a_template_that_loops_for_ever_is_one_line(
    where: str, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    if where == "last":
        loop = "{% if messages[0].content == 'z' %}" + loop + "{% endif %}"
    tiny_tokenizer.chat_template = loop + str(tiny_tokenizer.chat_template)
    row = Group(({"role": "user", "content": "z"},), (Response("a"),))
    refused(lambda: encode_all([row], tiny_tokenizer), "did not end within 0.3 seconds")


def test_all_ends_of_the_generation_config_end_a_response(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, base: Path, prompts: Path, tmp_path: Path
) -> None:
    letters = list(range(6, 26))
    tiny_model.generation_config.eos_token_id = [1, *letters, 10_000]  # the last is beyond the model's vocabulary
    tiny_model.save_pretrained(base)
    model, tokenizer = load_policy(base)
    sampler = build_sampler(model, tokenizer, max_new_tokens=8)
    assert set(sampler.end_ids) == {1, *letters}
    batch = sampler([[30], [31]], group_size=8, seed=0)
    for ids, real in zip(batch.response_ids.flatten(0, 1), batch.response_attention.flatten(0, 1), strict=True):
        assert not set(ids[real][:-1].tolist()) & {1, *letters}
    out = tmp_path / "samples.jsonl"
    generate.run(generate.GenerateConfig(model=base, data=prompts, out=out, max_new_tokens=8))
    words = {word for line in out.read_text().splitlines() for word in json.loads(line)["response"].split()}
    assert not words & set("abcdefghijklmnopqrst")
    saved = sft.run(sft.SFTConfig(model=base, data=_rows(tmp_path), out=tmp_path / "sft", max_steps=1, gate_prompts=0))
    ends = json.loads((saved.path / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [1, *letters, 10_000]


def _rows(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 4)
    return folder / "rows.jsonl"

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kleash.config import CONSTITUTION, DATA, MODEL, REWARD, RUN, Kind
from kleash.content import constitution_file, content_hash, fingerprint, folder_hash, hub_commit, refuse_missing
from kleash.errors import ConfigError, DataError, InputError, ModelError


def test_a_model_is_its_weights_config_and_tokenizer(base: Path, tmp_path: Path) -> None:
    before = folder_hash(base)
    for name in ("run.json", "README.md", "metrics.jsonl", "report.html", "notes.txt", ".hidden"):
        (base / name).write_text("{}")
    (base / "checkpoints" / "step-1").mkdir(parents=True)
    os.utime(base / "model.safetensors", (0, 0))
    assert folder_hash(base) == before
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(base, moved)
    assert (
        content_hash(str(moved), MODEL) == content_hash(str(base), MODEL) == content_hash(str(base), REWARD) == before
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_another_byte_of_a_model_is_another_model(base: Path, name: str) -> None:
    before = folder_hash(base)
    (base / name).write_bytes((base / name).read_bytes() + b"\n")
    assert folder_hash(base) != before


def test_rows_are_their_content_in_a_file_and_in_a_folder_with_splits(tmp_path: Path) -> None:
    file, folder = tmp_path / "rows.jsonl", tmp_path / "saved"
    file.write_text('{"prompt": "a"}\n')
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "data.arrow").write_text("a")
    hashes = [content_hash(file, DATA), content_hash(folder, DATA)]
    shutil.move(file, tmp_path / "other.jsonl")
    shutil.move(folder, tmp_path / "other")
    assert [content_hash(tmp_path / name, DATA) for name in ("other.jsonl", "other")] == hashes
    (tmp_path / "other" / "train" / "data.arrow").write_text("b")
    assert content_hash(tmp_path / "other", DATA) != hashes[1]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds one model; the hub itself is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    main = tmp_path / "hub" / "models--team--tiny" / "refs" / "main"
    main.parent.mkdir(parents=True)
    main.write_text("c0ffee")
    return main


def test_a_hub_name_counts_as_its_commit_without_a_network(hub: Path) -> None:
    before = content_hash("team/tiny", MODEL)
    assert hub_commit("team/tiny") == "c0ffee" and content_hash("team/tiny", MODEL) == before
    hub.write_text("decade")
    assert content_hash("team/tiny", MODEL) != before
    assert hub_commit("team/other") is None and hub_commit("team/tiny", dataset=True) is None
    assert fingerprint("team/other", MODEL)["path"] == "team/other"


def test_data_of_the_hub_count_as_the_one_commit_in_the_cache(hub: Path) -> None:
    (hub.parents[2] / "datasets--team--rows" / "snapshots" / "abc").mkdir(parents=True)
    assert hub_commit("team/rows:main", dataset=True) == "abc"


def test_a_verifier_is_hashed_by_its_name_and_a_constitution_by_its_shipped_file() -> None:
    assert content_hash("math", REWARD) != content_hash("number", REWARD)
    assert constitution_file("assistant").exists()
    assert content_hash("assistant", CONSTITUTION) == content_hash(constitution_file("assistant"), CONSTITUTION)


@pytest.mark.parametrize(
    ("name", "kind", "error", "message"),
    [
        ("./model", MODEL, ModelError, "./model: there is no such folder; give a folder with config.json"),
        ("a/b/c", MODEL, ModelError, "there is no such folder"),
        ("runs/sft", MODEL, ModelError, "there is no such folder"),
        ("rows.jsonl", DATA, DataError, "there is no file or folder rows.jsonl; give a path that exists"),
        ("rows", DATA, DataError, "there is no file or folder rows"),
        ("runs/sft", RUN, InputError, "give the folder of a ppo, grpo or dpo run"),
        ("r.yaml", REWARD, ConfigError, "reward r.yaml: no such file; give a reward model's folder"),
        ("runs/reward", REWARD, ConfigError, "no such folder"),
        ("my.rewards:brief", REWARD, ConfigError, "No module named 'my'; give module:function, importable from"),
        ("kind", CONSTITUTION, ConfigError, "there is no such file; give a YAML file, or `assistant`"),
    ],
)
def test_a_name_that_can_only_be_a_path_and_does_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: Kind, error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(error, match=message):
        refuse_missing(name, kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("team/tiny", MODEL), ("gpt2", MODEL), ("team/rows", DATA), ("team/rows:main", DATA), ("math", REWARD),
        ("json:dumps", REWARD), ("assistant", CONSTITUTION),
    ],
)  # fmt: skip
def test_an_ambiguous_name_is_left_to_the_stage(name: str, kind: Kind) -> None:
    refuse_missing(name, kind)

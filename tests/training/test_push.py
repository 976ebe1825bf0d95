"""A finished model is pushed to a hub on loopback, with nothing but what belongs to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from transformers import AutoModelForCausalLM

from kleash.checks import open_run
from kleash.cli import _run
from kleash.run import RunFolder
from tests.training.hub_server import HubServer

TOKEN = "hf_" + "s3cret" * 5


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(TOKEN) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(open_run, "_OPEN", [RunFolder(Path("elsewhere"), {})])  # a run that another caller opened
        yield server


def words(stage: str, base: Path, out: Path, *more: object) -> list[str]:
    data = base.parent / ("demonstrations.jsonl" if stage == "sft" else "comparisons.jsonl")
    own = {"sft": ["--gate-prompts", 0], "reward": ["--centre-samples", 0]}[stage]
    settings = ["--model", base, "--data", data, "--out", out, "--max-steps", 2, "--batch-size", 4, *own, *more]
    return [stage, *map(str, settings)]


def record(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "run.json").read_text())
    return values


def test_a_model_is_pushed_with_its_card_and_figures_and_loads_from_what_arrived(
    base: Path, demonstrations: Path, tmp_path: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = words("sft", base, out, "--push-to-hub", "somebody/model", "--keep-states", 1)
    assert _run(command) == 0
    (files,) = hub.files.values()
    assert hub.private == {"somebody/model": True}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "run.json", "metrics.jsonl"} <= set(
        files
    )
    assert not any("/" in name or "lock" in name for name in files)  # states, snapshots, rows
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, content in files.items():
        (arrived / name).write_bytes(content)
    assert AutoModelForCausalLM.from_pretrained(arrived).num_parameters() > 0
    assert record(out)["hub"]["repository"] == "somebody/model" and record(out)["status"] == "finished"
    shown = "".join(capsys.readouterr()) + "".join(
        file.read_text(errors="replace") for file in out.rglob("*") if file.is_file()
    )
    assert TOKEN not in shown and TOKEN.encode() not in b"".join(files.values())
    before = len(hub.requests)
    assert _run(command) == 0 and len(hub.requests) == before  # it is there already


def test_an_ensemble_is_pushed_once_with_its_members_and_without_its_rows(
    base: Path, comparisons: Path, tmp_path: Path, hub: HubServer
) -> None:
    command = words("reward", base, tmp_path / "out", "--members", 2, "--push-to-hub", "somebody/reward")
    assert _run(command) == 0
    assert [request for request in hub.requests if "/commit/" in request] == [
        "POST /api/models/somebody/reward/commit/main"
    ]
    names = set(hub.files["somebody/reward"])
    assert {"ensemble.json", "members/0/model.safetensors", "members/1/config.json"} <= names
    assert not any(name.startswith("comparisons/") for name in names)


@pytest.mark.parametrize("fault", ["500", "403", "gone"])
def test_a_push_that_fails_costs_no_run_and_the_same_command_pushes_again(
    base: Path, demonstrations: Path, tmp_path: Path, hub: HubServer, fault: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if fault == "gone":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.status = int(fault)
    out = tmp_path / "out"
    command = words("sft", base, out, "--push-to-hub", "somebody/model")
    assert _run(command) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"kleash: {out} is finished, but was not pushed to somebody/model (")
    assert line.endswith(f"run the same command again, or `hf upload somebody/model {out} . --exclude 'checkpoints/*'`")
    assert TOKEN not in line and record(out)["status"] == "finished" and "hub" not in record(out)
    weights = (out / "model.safetensors").stat().st_mtime_ns
    hub.status = None
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    assert _run(command) == 0
    assert "model.safetensors" in hub.files["somebody/model"]
    assert (out / "model.safetensors").stat().st_mtime_ns == weights


def test_without_a_token_nothing_is_trained(
    base: Path, demonstrations: Path, tmp_path: Path, hub: HubServer,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert _run(words("sft", base, tmp_path / "out", "--push-to-hub", "somebody/model")) == 2
    assert "there is no token of the hub; run `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert _run(words("sft", base, tmp_path / "out", "--push-to-hub", "somebody/model")) == 2
    assert "switched off by HF_HUB_OFFLINE" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not hub.requests


@pytest.mark.slow
def test_the_command_takes_endpoint_and_token_from_the_environment(
    base: Path, demonstrations: Path, tmp_path: Path
) -> None:
    with HubServer(TOKEN) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "kleash", *words("sft", base, tmp_path / "out", "--push-to-hub", "model")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and TOKEN not in done.stdout + done.stderr, done.stderr
    assert "model.safetensors" in hub.files["somebody/model"]
    assert f"pushed to {hub.url}" in done.stderr

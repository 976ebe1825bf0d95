"""Stages on rows that are read while they are trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kleash.cli import main
from kleash.config import Config
from kleash.errors import ConfigError
from kleash.run import RunFolder
from kleash.stages import dpo, grpo, ppo, reward_model, sft
from kleash.stages.training_configs import (
    DPOConfig,
    EnsembleConfig,
    GRPOConfig,
    PPOConfig,
    RewardConfig,
    SFTConfig,
    TrainingConfig,
)
from kleash.training import checkpoint
from tests.stages.test_dpo import interrupt_after

Run = Callable[[Any], RunFolder]

REWARD = """
def z(prompts, completions, **columns):
    return [float(len(text)) for text in completions]
"""

SAMPLED = {"reward": "rows:z", "max_new_tokens": 3, "batch_size": 4}

STAGES: dict[str, tuple[Run, type[TrainingConfig], str, dict[str, Any]]] = {
    "sft": (sft.run, SFTConfig, "demonstrations", {"gate_prompts": 0, "keep_weights": "best", "eval_every": 2}),
    "reward": (reward_model.run, RewardConfig, "comparisons", {"heads": 2, "centre_samples": 0}),
    "dpo": (dpo.run, DPOConfig, "comparisons", {"kl_samples": 0}),
    "dpo, adapters": (dpo.run, DPOConfig, "comparisons", {"kl_samples": 0, "lora_rank": 2}),
    "ppo": (ppo.run, PPOConfig, "prompts", {**SAMPLED, "value_init": "policy", "inner_epochs": 1}),
    "grpo": (grpo.run, GRPOConfig, "prompts", {**SAMPLED, "group_size": 2}),
}


@pytest.mark.parametrize(
    "name",
    [
        "sft",
        "grpo",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("reward", "dpo", "dpo, adapters", "ppo")),
    ],
)
def test_F11_an_interrupted_run_goes_on_at_the_same_row(
    name: str,
    base: Path,
    demonstrations: Path,
    comparisons: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kleash.data.stream.BLOCK", 7)
    (tmp_path / "rows.py").write_text(
        "def z(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run, kind, data, settings = STAGES[name]

    def config(out: str) -> Config:
        common = {"model": str(base), "data": str(tmp_path / f"{data}.jsonl"), "out": tmp_path / out, "batch_size": 5}
        return kind.make(
            {**common, "max_steps": 6, "save_every": 2, "learning_rate": 3e-3, "streaming": True, **settings}
        )

    whole = run(config("whole"))
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", interrupt_after(2, save))
    with pytest.raises(KeyboardInterrupt):
        run(config("stopped"))
    monkeypatch.setattr(checkpoint, "save", save)
    stopped = run(config("stopped"))
    weights = [(folder.path / "model.safetensors").read_bytes() for folder in (whole, stopped)]
    assert weights[0] == weights[1]
    assert stopped.metrics() == whole.metrics()
    assert stopped.record["rows"] == whole.record["rows"]
    assert stopped.record["results"] == whole.record["results"]


def test_dpo_in_memory_and_streamed_take_the_same_loss_of_the_same_rows(
    base: Path, comparisons: Path, tmp_path: Path
) -> None:
    first = {}
    for streaming in (False, True):
        settings = {"model": str(base), "data": str(comparisons), "eval_data": str(comparisons), "kl_samples": 0}
        run = dpo.run(
            DPOConfig.make(
                {**settings, "out": tmp_path / str(streaming), "batch_size": 60, "max_steps": 2, "streaming": streaming}
            )
        )
        first[streaming] = run.metrics()
    for key in ("loss", "margin", "chosen_logprob"):  # a step of all rows, in whatever order
        assert first[True][1][key] == pytest.approx(first[False][1][key], abs=1e-5)


def test_streaming_without_a_number_of_steps_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sft", "--model", "m", "--data", "d.jsonl", "--out", "o", "--streaming"])
    assert stopped.value.code == 2
    assert "streaming does not count the rows, so epochs have no length; give 'max_steps'" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("learning_curve", True), ("members", 2), ("validation_share", 0.2)])
def test_what_needs_all_rows_is_not_streamed(option: str, value: float) -> None:
    common = {"model": "m", "data": "d.jsonl", "out": "o", "streaming": True, "max_steps": 1}
    with pytest.raises(ConfigError, match=option):
        EnsembleConfig.make(common | {option: value})


def test_the_command_refuses_what_one_model_refuses() -> None:
    with pytest.raises(ConfigError, match="give 'best_of' too"):
        EnsembleConfig.make({"model": "m", "data": "d.jsonl", "out": "o", "gold": "rows:z"})


def test_a_file_that_changed_is_another_input(base: Path, demonstrations: Path, tmp_path: Path) -> None:
    words = ["sft", "--model", base, "--data", demonstrations, "--out", tmp_path / "sft", "--streaming"]
    words += ["--max-steps", "1", "--gate-prompts", "0", "--batch-size", "4"]
    for code in (0, 0, 2):
        with pytest.raises(SystemExit) as stopped:
            main(list(map(str, words)))
        assert stopped.value.code == code
        if code == 0 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
        else:
            demonstrations.write_text(demonstrations.read_text() + json.dumps({"prompt": "a", "response": "b"}) + "\n")

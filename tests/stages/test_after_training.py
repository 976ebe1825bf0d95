"""What is measured after the last step never costs the run: it is skipped, with its reason in run.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from kleash.checks import artifact, finish, policy_checks
from kleash.errors import MachineError
from kleash.run import RunFolder, read_record
from kleash.stages import STAGES, dpo, ppo, reward_ensemble, reward_model, sft
from kleash.testing import tiny_model

Write = Callable[[str, list[dict[str, Any]]], Path]

FAULT = "the measurement broke"


def broken(*_: Any, **__: Any) -> Any:
    raise ValueError(FAULT)


@pytest.fixture
def rows(base: Path, demonstrations: Path, comparisons: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model and of rows of each kind, and a reward in letters.py."""
    (base.parent / "letters.py").write_text(
        "def z(prompts, completions, **columns):\n    return [float(text.count('z')) for text in completions]\n"
    )
    monkeypatch.chdir(base.parent)
    monkeypatch.syspath_prepend(str(base.parent))
    return base.parent


def train(stage: str, folder: Path, **changes: Any) -> RunFolder:
    data = {"sft": "demonstrations", "ppo": "prompts", "grpo": "prompts"}.get(stage, "comparisons")
    values: dict[str, Any] = {
        "model": str(folder / "base"), "data": str(folder / f"{data}.jsonl"), "out": folder / stage, "max_steps": 2,
        "batch_size": 4, "force": True,
    }  # fmt: skip
    values |= {"reward": "letters:z", "max_new_tokens": 4} if data == "prompts" else {}
    values |= {"centre_samples": 4, "centre_max_new_tokens": 4} if stage == "reward" else {}
    row = STAGES[stage]
    output = row.run(row.config.make(values | changes))
    assert isinstance(output, RunFolder)
    return output


MEASUREMENTS = {
    "sft, held-out rows": ("sft", {}, sft, "held_out_losses", "held-out rows after the last step"),
    "sft, checks": ("sft", {}, sft, "check", "checks"),
    "dpo, held-out rows": ("dpo", {}, dpo, "evaluate", "held-out rows after the last step"),
    "dpo, report": ("dpo", {}, dpo, "report", "report"),
    "ppo, held-out prompts": ("ppo", {}, ppo.HeldOutPrompts, "measure", "held-out rows after the last step"),
    "ppo, checks": ("ppo", {}, policy_checks, "policy", "checks"),
    "grpo, held-out prompts": ("grpo", {}, ppo.HeldOutPrompts, "measure", "held-out rows after the last step"),
    "grpo, checks": ("grpo", {}, finish, "record_checks", "checks"),
    "reward, held-out rows": ("reward", {}, reward_model, "held_out_rewards", "held-out rows after the last step"),
    "reward, samples": ("reward", {}, reward_model, "start_samples", "centring samples"),
    "reward, centring": ("reward", {}, reward_model, "centre", "centring"),
    "reward, report": ("reward", {}, reward_model, "whole_report", "report"),
    "reward, heads": ("reward", {"heads": 2}, reward_model, "whole_report", "report"),
    "reward, best of n": ("reward", {"best_of": 2}, reward_model, "best_of_curve", "best of n"),
    "reward, learning curve": ("reward", {"learning_curve": True}, reward_model, "more_labels", "learning curve"),
    "ensemble, report": ("reward", {"members": 2}, reward_ensemble, "preference_figures", "report"),
    "ensemble, checks": ("reward", {"members": 2}, reward_ensemble, "record_checks", "checks"),
    "average, report": (
        "reward", {"members": 2, "average_weights": True}, reward_ensemble, "held_out_rewards", "report",
    ),
}  # fmt: skip
"""Case → stage, settings, where the measurement lies, its name there, and its name under `skipped`."""


@pytest.mark.parametrize("case", MEASUREMENTS)
def test_a_measurement_that_breaks_is_skipped_with_its_reason(
    case: str, rows: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage, changes, place, function, name = MEASUREMENTS[case]
    if case == "sft, held-out rows":  # of this measurement, the one before training works
        calls: list[int] = []
        measure = sft.held_out_losses
        monkeypatch.setattr(
            sft, function, lambda *a: measure(*a) if not calls.append(1) and len(calls) < 2 else broken()
        )
    else:
        monkeypatch.setattr(place, function, broken)
    folder = train(stage, rows, **changes)
    assert folder.finished
    assert folder.record["skipped"][name] == FAULT
    assert FAULT in caplog.text
    kinds = {"reward": AutoModelForSequenceClassification}
    for path in [rows / stage / "members" / "0"] if case.startswith("ensemble") else [folder.path]:
        kinds.get(stage, AutoModelForCausalLM).from_pretrained(path)
    monkeypatch.undo()
    if not case.startswith("ensemble"):
        report = artifact.check(folder.path)
        assert any(name in note and FAULT in note for note in report.notes)


def test_a_full_disk_is_not_skipped(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MachineError("no space left")

    monkeypatch.setattr(sft, "check", full)
    with pytest.raises(MachineError):
        train("sft", rows)
    monkeypatch.undo()
    assert train("sft", rows).finished


def test_a_failing_measurement_during_training_ends_the_run(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpo, "evaluate", broken)
    with pytest.raises(ValueError, match=FAULT):
        train("dpo", rows, eval_every=1)


@pytest.mark.parametrize(
    "changes",
    [{}, {"members": 2}, {"members": 2, "average_weights": True}, {"heads": 2}, {"best_of": 2},
     {"learning_curve": True}],
)  # fmt: skip
@pytest.mark.parametrize("length", [28, 31])
def test_a_reward_model_whose_prompts_fill_its_context_is_trained_and_measured(
    changes: dict[str, Any], length: int, rows: Path, write: Write, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_model(max_position_embeddings=32).save_pretrained(rows / "base")
    letters = "abcdefghij"
    write(
        "comparisons.jsonl",
        [
            {"prompt": " ".join(letters[(i * 7 + place) % 10] for place in range(length)), "chosen": "z", "rejected": w}
            for i, w in enumerate("abcdefghij" * 6)
        ],
    )
    folder = train("reward", rows, centre_max_new_tokens=64, **changes)
    assert folder.finished
    assert "out" in folder.record["gates"] and folder.record["results"]["report"]["pairs"] > 0
    if length == 31:  # there is room for the end of a response, and for no sample
        record = folder.record if "members" not in changes else read_record(folder.path / "members" / "0") or {}
        assert "no training prompt leaves room" in record["skipped"]["centring samples"]

"""What a stage began to write and did not finish is named so by the stage that is given it, in every role."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kleash.cli import _run
from kleash.errors import ModelError
from kleash.lock import lock
from kleash.rewards.build import build_reward

AGAIN = "; run its command again to finish it"


def kleash(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The last line of a command that has to end with 2."""
    assert _run([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1].removeprefix("kleash: ")


def cut(tmp_path: Path, name: str = "run", *, step: int = 4, **record: Any) -> Path:
    """The folder of a run of ten steps that was killed after some."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    whole = {"schema": 1, "stage": "sft", "status": "running", "training": {"steps": 10}} | record
    (folder / "run.json").write_text(json.dumps(whole))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i + 1}) + "\n" for i in range(step)))
    return folder


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (("sft", "--data", "{demonstrations}"), "--model"),
        (("reward", "--data", "{comparisons}"), "--model"),
        (("dpo", "--data", "{comparisons}", "--model", "{base}"), "--reference"),
        (("grpo", "--data", "{prompts}", "--model", "{base}"), "--reward"),
        (("ppo", "--data", "{prompts}", "--model", "{base}", "--reward", "math"), "--reference"),
        (("ppo", "--data", "{prompts}", "--model", "{base}", "--reward", "math"), "--gold"),
        (("ppo", "--data", "{prompts}", "--model", "{base}", "--reward", "math"), "--hold-out"),
        (("generate", "--data", "{prompts}"), "--model"),
        (("score", "--data", "{demonstrations}"), "--reward"),
        (("best-of-n", "--data", "{prompts}", "--model", "{base}"), "--reward"),
        (("judge", "--data", "{comparisons}"), "--model"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_an_interrupted_parent_is_named_in_every_role(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], role: str
) -> None:
    names = {name: base.parent / f"{name}.jsonl" for name in ("demonstrations", "comparisons", "prompts")}
    for file in names.values():
        file.touch()
    parent = cut(tmp_path, "parent")
    words = [word.format(**names, base=base) for word in command]
    line = kleash(capsys, *words, role, parent, "--out", tmp_path / "out")
    assert line == f"{parent} was interrupted at step 4 of 10{AGAIN}"
    assert not (tmp_path / "out").exists()


def test_a_part_of_a_composition_and_the_model_of_a_judge_are_looked_at(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = cut(tmp_path, "parent")
    (tmp_path / "prompts.jsonl").touch()
    for text in (f"parts:\n- {{reward: math}}\n- {{reward: {parent}}}\n", f"judge: {parent}\n"):
        (tmp_path / "reward.yaml").write_text(text)
        words = ("grpo", "--model", base, "--data", tmp_path / "prompts.jsonl", "--out", tmp_path / "out")
        line = kleash(capsys, *words, "--reward", tmp_path / "reward.yaml")
        assert line == f"{parent} was interrupted at step 4 of 10{AGAIN}"
    with pytest.raises(ModelError, match="was interrupted at step 4 of 10"):
        build_reward(parent)


def test_the_member_that_is_missing_of_an_ensemble_is_named(tmp_path: Path) -> None:
    ensemble = cut(tmp_path, "ensemble", step=0, training=None)
    cut(ensemble, "members/0", step=10, status="finished")
    cut(ensemble, "members/1", step=7)
    with pytest.raises(ModelError, match=rf"ensemble was interrupted in members/1 at step 7 of 10{AGAIN}$"):
        build_reward(ensemble)


@pytest.mark.parametrize(
    ("step", "record", "message"),
    [
        (10, {}, f"was interrupted after step 10 of 10, while it was measured{AGAIN}"),
        (0, {"training": None}, f"was interrupted before its first step{AGAIN}"),
        (3, {"training": 7}, f"was interrupted at step 3{AGAIN}"),
        (2, {"status": "stopped", "stopped": {"error": "KeyboardInterrupt", "reason": "interrupted"}},
         f"was interrupted at step 2 of 10{AGAIN}"),
        (2, {"status": "stopped", "stopped": {"error": "RewardError", "reason": "reward f: KeyError: 'a'"}},
         "was stopped at step 2 of 10: reward f: KeyError: 'a'; mend that and run its command again to finish it"),
    ],
)  # fmt: skip
def test_the_message_says_how_far_it_came_and_why_it_ended(
    tmp_path: Path, step: int, record: dict[str, Any], message: str
) -> None:
    parent = cut(tmp_path, step=step, **record)
    with pytest.raises(ModelError) as caught:
        build_reward(parent)
    assert str(caught.value) == f"{parent} {message}"


def test_a_run_that_still_goes_on_is_to_be_waited_for(tmp_path: Path) -> None:
    parent = cut(tmp_path)
    writer = lock(parent / ".lock", parent)
    with pytest.raises(ModelError, match=r"run still goes on at step 4 of 10; wait until its command has finished$"):
        build_reward(parent)
    writer.release()


@pytest.mark.parametrize("trace", [".labels.jsonl.blocks", ".labels.jsonl.lock", "labels.calls.db"])
def test_rows_that_an_interrupted_command_would_have_written_are_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trace: str
) -> None:
    words = ("reward", "--model", base, "--data", tmp_path / "labels.jsonl", "--out", tmp_path / "out")
    assert kleash(capsys, *words).startswith(f"there is no file or folder {tmp_path / 'labels.jsonl'}")
    (tmp_path / trace).touch()
    line = kleash(capsys, *words)
    assert line == f"{tmp_path / 'labels.jsonl'} is not there: its command was interrupted{AGAIN}"


def test_labels_that_were_refused_are_not_called_missing(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.refused.jsonl").touch()
    words = ("reward", "--model", base, "--data", tmp_path / "labels.jsonl", "--out", tmp_path / "out")
    line = kleash(capsys, *words)
    assert "the labels of this judge failed their checks and are in" in line and "--force" in line


@pytest.mark.slow
def test_a_run_that_was_killed_for_real_is_named_with_its_step(
    base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sft"
    command = [sys.executable, "-m", "kleash", "sft", "--model", base, "--data", demonstrations, "--out", out]
    steps = ["--max-steps", "100000", "--batch-size", "2", "--save-every", "100000", "--gate-prompts", "0"]
    with subprocess.Popen([*map(str, command), *steps], stderr=subprocess.DEVNULL) as process:
        while not (out / "metrics.jsonl").exists() and process.poll() is None:
            pass
        words = ("generate", "--model", out, "--data", demonstrations, "--out", tmp_path / "samples.jsonl")
        assert "sft still goes on" in kleash(capsys, *words)
        process.kill()
    line = kleash(capsys, *words)
    assert line.startswith(f"{out} was interrupted at step ") and line.endswith(f" of 100000{AGAIN}")
    assert _run(["check", str(out)]) == 1
    assert "the run was interrupted at step" in capsys.readouterr().err

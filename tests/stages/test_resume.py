"""Killed at any instant, the same command continues and ends with the same weights, figures and order (F11)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kleash.errors import InputError
from kleash.io import read_jsonl
from kleash.stages import sft

REWARD = """
def reward(prompts, completions, number, **columns):
    return [text.split().count("z") + 0.001 * n for text, n in zip(completions, number)]
"""


def command(stage: str, folder: Path, out: Path) -> list[str]:
    data = {"sft": "demonstrations", "reward": "comparisons", "dpo": "comparisons"}.get(stage, "prompts")
    options = {
        "sft": "--epochs 9 --batch-size 8 --eval-every 10 --keep-weights best",
        "reward": "--epochs 4.4 --batch-size 8 --centre-samples 8 --centre-max-new-tokens 4",
        "ppo": "--reward count_z:reward --max-steps 12 --batch-size 8 --max-new-tokens 5 --eval-every 3 --ema-decay 0.9"
        " --target-kl 0.1 --kl-horizon 100 --value-init policy",
        "grpo": "--reward count_z:reward --max-steps 12 --batch-size 4 --group-size 4 --max-new-tokens 5 --eval-every 3"
        " --preset dapo --warmup-steps 0 --minibatches 2 --stop j",
        "dpo": "--epochs 4.4 --batch-size 8 --eval-every 10 --keep-weights best --kl-every 7 --kl-samples 8"
        " --max-new-tokens 4",
    }[stage]
    start = [
        sys.executable,
        "-m",
        "kleash",
        stage,
        "--model",
        str(folder / "base"),
        "--data",
        str(folder / f"{data}.jsonl"),
    ]
    return [*start, "--out", str(out), "--learning-rate", "3e-3", "--save-every", "3", *options.split()]


def run(words: list[str], cwd: Path, *, kill_after_rows: int | None = None, out: Path | None = None) -> int:
    """Run a command to its end, or kill it with SIGKILL once metrics.jsonl has so many rows."""
    process = subprocess.Popen(
        words, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    if kill_after_rows is None:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        return 0
    assert out is not None
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= kill_after_rows:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.parametrize(
    ("stage", "kills"),
    [
        ("sft", [5]),
        pytest.param("sft", [1, 9, 20, 39], marks=pytest.mark.slow),
        pytest.param("reward", [4, 17, 30], marks=pytest.mark.slow),
        pytest.param("ppo", [2, 6, 11], marks=pytest.mark.slow),
        pytest.param("grpo", [2, 6, 11], marks=pytest.mark.slow),
        pytest.param("dpo", [4, 17, 30], marks=pytest.mark.slow),
    ],
)
def test_F11_killed_and_run_again_it_ends_with_the_same_weights(
    stage: str, kills: list[int], base: Path, demonstrations: Path, comparisons: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "count_z.py").write_text(REWARD)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(command(stage, tmp_path, whole), tmp_path)
    for rows in kills:
        code = run(command(stage, tmp_path, killed), tmp_path, kill_after_rows=rows, out=killed)
        assert code == -signal.SIGKILL, "it ended before it was killed: this test says nothing"
    run(command(stage, tmp_path, killed), tmp_path)

    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert read_jsonl(killed / "metrics.jsonl") == read_jsonl(whole / "metrics.jsonl")
    if stage in ("ppo", "grpo"):
        assert read_jsonl(killed / "samples.jsonl") == read_jsonl(whole / "samples.jsonl")
    results = [json.loads((path / "run.json").read_text())["results"] for path in (killed, whole)]
    assert results[0] == results[1]


def test_F11_generate_resumes_with_the_next_block(base: Path, prompts: Path, tmp_path: Path) -> None:
    words = [
        sys.executable, "-m", "kleash", "generate", "--model", str(base), "--data", str(prompts), "-n", "2",
        "--rows-at-once", "2", "--max-new-tokens", "6",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    run([*words, "--out", str(whole)], tmp_path)
    process = subprocess.Popen([*words, "--out", str(killed)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    blocks = tmp_path / ".killed.jsonl.blocks"
    while process.poll() is None and len(list(blocks.glob("*.jsonl"))) < 2:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not killed.exists()
    first = {path: path.stat().st_mtime_ns for path in blocks.glob("*.jsonl")}
    assert first, "it was killed before it had done anything: this test says nothing"
    run([*words, "--out", str(killed)], tmp_path)
    assert killed.read_bytes() == whole.read_bytes()
    assert not blocks.exists()


def test_F11_other_data_in_the_same_folder_is_refused_and_named(
    base: Path, demonstrations: Path, tmp_path: Path
) -> None:
    settings = {"model": str(base), "data": str(demonstrations), "out": tmp_path / "sft", "max_steps": 2}
    sft.run(sft.SFTConfig.make(settings))
    with pytest.raises(InputError, match=r"was written with other settings \(max_steps 2, now 3\); delete it or"):
        sft.run(sft.SFTConfig.make(settings | {"max_steps": 3}))
    demonstrations.write_text(demonstrations.read_text().replace("a", "b", 1))
    with pytest.raises(InputError, match=r"the content of data in .*demonstrations.jsonl differs"):
        sft.run(sft.SFTConfig.make(settings))


def test_F11_another_parent_is_refused_and_named(base: Path, demonstrations: Path, tmp_path: Path) -> None:
    settings = {"model": str(base), "data": str(demonstrations), "out": tmp_path / "sft", "max_steps": 2}
    sft.run(sft.SFTConfig.make(settings))
    other = sft.run(sft.SFTConfig.make(settings | {"out": tmp_path / "other", "learning_rate": 1e-2}))
    shutil.copy(other.path / "model.safetensors", base / "model.safetensors")
    with pytest.raises(InputError, match=r"the content of model in .* differs"):
        sft.run(sft.SFTConfig.make(settings))


def test_a_folder_with_other_files_is_not_written_into(base: Path, demonstrations: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds files that are not a kleash run"):
        sft.run(sft.SFTConfig.make({"model": str(base), "data": str(demonstrations), "out": tmp_path / "mine"}))

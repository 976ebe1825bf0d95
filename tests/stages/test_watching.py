"""What PPO and GRPO watch beside the reward, and when they end by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kleash.errors import ConfigError
from kleash.io import read_jsonl
from kleash.progress import Progress
from kleash.report.html import write_report
from kleash.rollout.rollout_log import logged_steps, read_rollout
from kleash.run import RunFolder
from kleash.stages import grpo, ppo
from kleash.stages.reward_ensemble import EnsembleConfig
from kleash.stages.reward_ensemble import run as learn_reward

Write = Callable[[str, list[dict[str, Any]]], Path]
STAGES = ("ppo", "grpo")
FUNCTIONS = """
def z(prompts, completions, **columns):
    return [float(text.count("z")) for text in completions]

def no_z(prompts, completions, **columns):
    return [-float(text.count("z")) for text in completions]

def level(prompts, completions, **columns):
    return [1.0] * len(completions)

calls = []

def best_third(prompts, completions, **columns):  # called once a measurement; the first is before step 1
    calls.append(1)
    return [-abs(len(calls) - 4.0)] * len(completions)
"""


@pytest.fixture
def prompts(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "letters.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return write("prompts.jsonl", [{"prompt": f"{a} {b}"} for a in "abcde" for b in "fghij"])


def train(stage: str, base: Path, prompts: Path, **changes: object) -> RunFolder:
    values: dict[str, object] = {
        "model": str(base), "data": str(prompts), "reward": "letters:z", "out": base.parent / stage, "max_steps": 4,
        "batch_size": 8, "max_new_tokens": 8, "learning_rate": 3e-3, "beta": 0.0, "eval_every": 1, "force": True,
    }  # fmt: skip
    if stage == "ppo":
        return ppo.run(ppo.PPOConfig.make(values | changes))
    return grpo.run(grpo.GRPOConfig.make(values | {"group_size": 4} | changes))


@pytest.mark.parametrize("stage", STAGES)
def test_every_step_is_watched_and_some_of_its_responses_are_kept(stage: str, base: Path, prompts: Path) -> None:
    folder = train(stage, base, prompts, hold_out="letters:no_z", max_steps=3)
    rows = [row for row in folder.metrics() if row["step"] > 0]
    for row in rows:
        assert {
            "distinct_1",
            "distinct_2",
            "truncated",
            "validation_reward",
            "advantage_mean",
            "advantage_sd",
        } <= row.keys()
        assert row["validation_reward"] == pytest.approx(-row["reward"], abs=1e-6)
        assert row["truncated"] == pytest.approx(1 - row["end_rate"], abs=1e-6)
    kls = [row["kl"] for row in rows]
    assert rows[2]["kl_acceleration"] == pytest.approx(kls[2] - 2 * kls[1] + kls[0], abs=1e-6)
    assert logged_steps(folder.path) == [1, 2, 3]
    for step in (1, 2, 3):
        samples = read_rollout(folder.path, step)
        assert len(samples) == 8
        for row in samples:
            assert row["score"] == row["text"].count("z") and row["version"] == step - 1
            tokens = [len(row[name]) for name in ("ids", "mask", "turn", "policy_logprobs", "advantages")]
            assert len(set(tokens)) == 1
            shift = sum(row["policy_logprobs"]) - sum(row["reference_logprobs"])
            assert row["kl"] == pytest.approx(shift, abs=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_as_many_responses_are_kept_as_are_asked_for_and_pandas_reads_them(
    stage: str, base: Path, prompts: Path
) -> None:
    folder = train(stage, base, prompts, log_rollouts=3, max_steps=2)
    files = sorted((folder.path / "rollouts").glob("*.parquet"))
    rows = [row for file in files for _, row in pq.read_table(file).to_pandas().iterrows()]
    assert [row["step"] for row in rows] == [1, 1, 1, 2, 2, 2]
    assert [row["response"] for row in rows] == ([0, 0, 0] if stage == "ppo" else [0, 1, 2]) * 2
    tokenizer = AutoTokenizer.from_pretrained(base)
    for row in rows:
        assert tokenizer.decode(row["ids"], skip_special_tokens=True) == row["text"]
        assert tokenizer.decode(row["prompt_ids"]) == json.loads(row["prompt"])
        assert row["finished"] == (row["ids"][-1] == tokenizer.eos_token_id)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_was_interrupted_keeps_the_same_responses(
    stage: str, base: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"max_steps": 5, "save_every": 2, "eval_every": None, "log_rollouts": 3}
    whole = train(stage, base, prompts, out=base.parent / "whole", **settings)
    update = Progress.update

    def stop(self: Progress, done: int, **figures: Any) -> None:
        update(self, done, **figures)
        if done == 3 and self.total == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        train(stage, base, prompts, **settings)
    monkeypatch.undo()
    monkeypatch.chdir(base.parent)
    rollouts = base.parent / stage / "rollouts"
    (rollouts / "step-00000003.parquet").write_bytes(b"of a step that is done again")
    (rollouts / "step-00000009.parquet").write_bytes(b"of a step that never comes")
    folder = train(stage, base, prompts, **settings)
    assert logged_steps(folder.path) == [1, 2, 3, 4, 5]
    assert [read_rollout(folder.path, step) for step in range(1, 6)] == [
        read_rollout(whole.path, step) for step in range(1, 6)
    ]


def test_the_report_shows_the_responses_that_were_kept(base: Path, prompts: Path, tmp_path: Path) -> None:
    folder = train("ppo", base, prompts, out=tmp_path / "demo" / "ppo", log_rollouts=2, max_steps=3)
    (tmp_path / "demo" / "summary.json").write_text("{}")
    page = write_report(tmp_path / "demo").read_text()
    for step in (1, 2, 3):
        assert f"step {step}: proxy" in page
        for row in read_rollout(folder.path, step):
            assert f"<td>{row['prompt']}</td><td>{row['text'] or '(nothing)'}" in page


@pytest.mark.parametrize("stage", STAGES)
def test_no_responses_are_kept_where_none_are_asked_for(stage: str, base: Path, prompts: Path) -> None:
    folder = train(stage, base, prompts, log_rollouts=0)
    assert logged_steps(folder.path) == []


@pytest.mark.parametrize("stage", STAGES)
def test_gold_is_measured_on_held_out_prompts_and_changes_no_weight(stage: str, base: Path, prompts: Path) -> None:
    plain = train(stage, base, prompts, out=base.parent / "plain")
    folder = train(stage, base, prompts, gold="letters:no_z", hold_out="letters:no_z")
    assert [row["eval_gold"] for row in folder.metrics()] == [-row["eval_reward"] for row in folder.metrics()]
    assert all(row["gold"] == -row["score"] for row in read_jsonl(folder.path / "samples.jsonl"))
    ends = [AutoModelForCausalLM.from_pretrained(run.path).state_dict() for run in (plain, folder)]
    assert all(torch.equal(ends[0][name], tensor) for name, tensor in ends[1].items()), (
        "what is watched is not optimised"
    )


@pytest.mark.parametrize("stage", STAGES)
def test_the_checkpoint_that_is_best_by_gold_is_kept(stage: str, base: Path, prompts: Path) -> None:
    folder = train(stage, base, prompts, gold="letters:best_third", criterion="gold", keep_weights="best", max_steps=6)
    measured = {row["step"]: row["eval_gold"] for row in folder.metrics() if row["step"] > 0}
    assert max(measured, key=lambda step: measured[step]) == 3, "neither the first nor the last"
    assert folder.record["results"]["step"] == 3
    again = train(stage, base, prompts, out=base.parent / "again", snapshot_every=3, max_steps=6)
    weights, at_step_3 = (
        AutoModelForCausalLM.from_pretrained(path).state_dict()
        for path in (folder.path, again.path / "snapshots" / "step-000003")
    )
    assert all(torch.equal(weights[name], tensor) for name, tensor in at_step_3.items())


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_beyond_its_kl_budget_ends_there_and_is_measured(stage: str, base: Path, prompts: Path) -> None:
    fast = {"max_steps": 6, "learning_rate": 2e-2}
    free = train(stage, base, prompts, out=base.parent / "free", **fast)
    kls = {row["step"]: row["kl"] for row in free.metrics() if row["step"] > 0}
    budget = max(kls[step] for step in range(2, 6)) / 2
    assert budget > 0.1 and kls[1] < budget, "the KL grows by far, or this test says nothing"
    first = next(step for step, kl in kls.items() if kl > budget)
    folder = train(stage, base, prompts, kl_budget=budget, **fast)
    rows = folder.metrics()
    assert rows[-1]["step"] == first < 6
    assert "eval_reward" in rows[-1]
    assert "beyond the budget" in folder.record["results"]["ended"]


def test_a_run_that_was_stopped_is_not_gone_on_with_after_a_kill(base: Path, prompts: Path) -> None:
    settings: dict[str, Any] = {"gold": "letters:level", "criterion": "gold", "patience": 1, "max_steps": 6}
    folder = train("ppo", base, prompts, **settings)
    rows = folder.metrics()
    assert rows[-1]["step"] < 6
    assert "gold on held-out prompts has not risen" in folder.record["results"]["ended"]
    folder.record["status"] = "running"  # killed after the last state was written and before the end was
    folder.save()
    again = train("ppo", base, prompts, **settings)
    assert again.metrics() == rows
    assert again.record["results"]["ended"] == folder.record["results"]["ended"]


def test_the_validation_reward_of_a_reward_folder_is_taken_without_being_named(
    base: Path, prompts: Path, write: Write
) -> None:
    pairs = [{"prompt": f"{a} {b}", "chosen": "z", "rejected": "d"} for a in "abcdef" for b in "ghijkl"]
    reward = learn_reward(
        EnsembleConfig.make(
            {"model": str(base), "data": str(write("pairs.jsonl", pairs)), "out": base.parent / "reward",
             "max_steps": 3, "validation_share": 0.3, "centre_samples": 8, "centre_max_new_tokens": 4}
        )
    )  # fmt: skip
    folder = train("ppo", base, prompts, reward=str(reward.path), max_steps=2, criterion="validation",
                   keep_weights="best")  # fmt: skip
    assert all("validation_reward" in row and "distance" in row for row in folder.metrics() if row["step"] > 0)
    assert "validation_reward" in folder.record["models"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"criterion": "gold"}, "needs 'gold'"),
        ({"patience": 2, "eval_every": None}, "give 'eval_every'"),
        ({"criterion": "validation"}, "needs a validation reward"),
    ],
)
def test_what_cannot_be_measured_cannot_be_gone_by(
    base: Path, prompts: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train("ppo", base, prompts, **changes)

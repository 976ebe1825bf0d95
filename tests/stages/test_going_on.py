"""A stopped run goes on once its fault is mended; what changed is accepted in so many words and recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kleash.errors import ConfigError, DataError, InputError, RewardError, TrainingError
from kleash.run import RunFolder
from kleash.stages import STAGES, best_of_n, grpo
from kleash.stages.data_configs import BestOfNConfig

REWARD = """
calls = 0

def f(prompts, completions, **columns):
    global calls
    calls += 1
    if calls == 4:
        FAULT
    return [float(len(text) % 5) for text in completions]
"""


def settings(stage: str, base: Path, **changes: Any) -> dict[str, Any]:
    data = {"sft": "demonstrations", "reward": "comparisons", "dpo": "comparisons"}.get(stage, "prompts")
    own: dict[str, Any] = {
        "sft": {"gate_prompts": 0},
        "reward": {"centre_samples": 0, "members": 2},
        "dpo": {"kl_samples": 0},
        "ppo": {"reward": "rewards:f", "max_new_tokens": 4, "value_init": "policy"},
        "grpo": {"reward": "rewards:f", "max_new_tokens": 4, "group_size": 4},
    }[stage]
    shared = {"model": str(base), "data": str(base.parent / f"{data}.jsonl"), "out": base.parent / stage}
    return shared | {"max_steps": 6, "batch_size": 4, "save_every": 2, "schedule": "constant"} | own | changes


def run(stage: str, values: dict[str, Any]) -> RunFolder:
    folder = STAGES[stage].run(STAGES[stage].config.make(values))
    assert isinstance(folder, RunFolder)
    return folder


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@contextmanager
def interrupted(after: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run under which Ctrl-C is pressed after some steps."""
    log = RunFolder.log

    def log_and_stop(self: RunFolder, step: int, metrics: Any) -> Any:
        row = log(self, step, metrics)
        if step == after:
            raise KeyboardInterrupt
        return row

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "log", log_and_stop)
        yield


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_run_stopped_by_its_reward_goes_on_with_the_repaired_one(
    stage: str, base: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    file = base.parent / "rewards.py"
    file.write_text(REWARD.replace("FAULT", "raise KeyError('score')"))
    values = settings(stage, base)
    with pytest.raises(RewardError, match=r"reward rewards:f raised KeyError: 'score' in .*rewards.py, line 8"):
        run(stage, values)
    stopped = record(base.parent / stage)
    assert stopped["status"] == "stopped" and stopped["stopped"]["error"] == "RewardError"
    assert "KeyError: 'score'" in stopped["stopped"]["reason"]

    file.write_text(REWARD.replace("FAULT", "pass"))
    forget(monkeypatch)
    with pytest.raises(DataError, match=r"reward in rewards:f differs\).* add --accept-changed reward$"):
        run(stage, values)
    folder = run(stage, values | {"accept_changed": ["reward"]})
    (change,) = record(folder.path)["changes"]
    assert (change["step"], change["what"]) == (2, "reward") and change["from"] != change["to"] and change["when"]
    assert folder.record["status"] == "finished" and "stopped" not in folder.record
    assert run(stage, values).record["changes"] == [change], "without the option it is the same run now"

    forget(monkeypatch)
    whole = run(stage, values | {"out": base.parent / "whole"})
    assert weights(folder.path) == weights(whole.path)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run is another process, which imports the module afresh."""
    import importlib
    import sys

    sys.modules.pop("rewards", None)
    importlib.invalidate_caches()


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_repaired_row_and_another_learning_rate_are_taken_where_accepted(
    stage: str, base: Path, demonstrations: Path, comparisons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = settings(stage, base)
    with interrupted(5, monkeypatch):
        run(stage, values)
    assert record(base.parent / stage)["stopped"] == {"error": "KeyboardInterrupt", "reason": "interrupted"}
    data = Path(values["data"])
    data.write_text(data.read_text().replace("a", "b", 1))
    slower = values | {"learning_rate": 1e-6}
    with pytest.raises(InputError, match=r"add --accept-changed learning_rate data$"):
        run(stage, slower)
    with pytest.raises(InputError, match=r"the content of data in .* differs"):
        run(stage, slower | {"accept_changed": ["learning-rate"]})
    folder = run(stage, slower | {"accept_changed": ["learning-rate", "data"]})
    changes = {change["what"]: change for change in folder.record["changes"]}
    assert set(changes) == {"learning_rate", "data"} and {c["step"] for c in changes.values()} == {4}
    assert changes["learning_rate"]["to"] == 1e-6


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_other_micro_batches_and_more_steps_need_no_leave_and_are_recorded(
    stage: str, base: Path, demonstrations: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    (base.parent / "rewards.py").write_text(REWARD.replace("FAULT", "pass"))
    values = settings(stage, base)
    with interrupted(3, monkeypatch):
        run(stage, values)
    folder = run(stage, values | {"micro_batch_tokens": 64, "max_steps": 8})
    changes = [(change["step"], change["what"], change["from"], change["to"]) for change in folder.record["changes"]]
    assert changes == [(2, "max_steps", 6, 8), (2, "micro_batch_tokens", 8192, 64)]
    assert folder.metrics()[-1]["step"] == 8
    with interrupted(7, monkeypatch):
        run(stage, values | {"out": base.parent / "other"})
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="max_steps 6, now 2"):
        run(stage, values | {"out": base.parent / "other", "max_steps": 2})


def test_a_finished_run_is_lengthened_from_the_state_that_it_kept(base: Path, demonstrations: Path) -> None:
    values = settings("sft", base, keep_weights="best", eval_every=2)
    folder = run("sft", values | {"keep_states": 1})
    assert [path.name for path in folder.checkpoints.glob("step-*")] == ["step-00000006"]
    longer = run("sft", values | {"keep_states": 1, "max_steps": 10})
    (change,) = longer.record["changes"]
    assert (change["step"], change["what"], change["from"], change["to"]) == (6, "max_steps", 6, 10)
    whole = run("sft", values | {"out": base.parent / "whole", "max_steps": 10})
    assert weights(longer.path) == weights(whole.path)
    losses = [[row["loss"] for row in each.metrics()] for each in (longer, whole)]
    assert losses[0] == losses[1] and longer.record["status"] == "finished"


def test_a_finished_run_without_a_state_says_how_to_start_from_it(base: Path, demonstrations: Path) -> None:
    values = settings("sft", base)
    folder = run("sft", values)
    assert not folder.checkpoints.exists()
    with pytest.raises(InputError, match=r"kept no training state \(--keep-states 1 keeps one\).* --model .*sft and "):
        run("sft", values | {"max_steps": 10})
    assert record(folder.path)["status"] == "finished"
    with pytest.raises(InputError, match=r"learning_rate 1e-05, now 1.0\); delete it or choose another --out"):
        run("sft", values | {"learning_rate": 1.0, "accept_changed": ["learning_rate"]})


@pytest.mark.slow
@pytest.mark.parametrize("averaged", [False, True])
def test_a_finished_ensemble_is_lengthened_member_by_member(
    averaged: bool, base: Path, comparisons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = settings("reward", base, average_weights=averaged, validation_share=0 if averaged else 0.3, max_steps=4)
    folder = run("reward", values | {"keep_states": 1})
    longer = values | {"keep_states": 1, "max_steps": 8}
    log, steps = RunFolder.log, []

    def log_and_stop(self: RunFolder, step: int, metrics: Any) -> Any:
        steps.append(step)
        if steps == [5, 6, 7, 8, 5, 6]:  # the second of them
            raise KeyboardInterrupt
        return log(self, step, metrics)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "log", log_and_stop)
        run("reward", longer)
    folder = run("reward", longer)
    (change,) = folder.record["changes"]
    assert (change["step"], change["what"], change["from"], change["to"]) == (4, "max_steps", 4, 8)
    whole = run("reward", values | {"out": base.parent / "whole", "max_steps": 8})
    models = ["."] if averaged else ["members/0", "members/1", "validation"]
    for name in models:
        assert weights(folder.path / name) == weights(whole.path / name)
    assert folder.record["status"] == "finished" and folder.record["results"] == whole.record["results"]


def test_an_ensemble_without_a_state_says_how_to_start_from_a_member(base: Path, comparisons: Path) -> None:
    values = settings("reward", base, max_steps=2)
    run("reward", values)
    with pytest.raises(InputError, match=r"start from a member, --model \S+reward/members/0, and another --out"):
        run("reward", values | {"max_steps": 4})


def test_another_model_is_never_accepted(base: Path, demonstrations: Path) -> None:
    with pytest.raises(ConfigError, match="a run cannot go on with another 'model'"):
        run("sft", settings("sft", base, accept_changed=["model"]))


def test_a_learning_rate_that_was_too_high_is_lowered_and_the_run_goes_on(base: Path, demonstrations: Path) -> None:
    values = settings("sft", base, max_steps=12, save_every=1, weight_decay=0.1, learning_rate=1e4, warmup_steps=4)
    with pytest.raises(TrainingError, match="--accept-changed learning_rate"):
        run("sft", values)
    lower = values | {"learning_rate": 1e-4, "max_grad_norm": 0.1}
    folder = run("sft", lower | {"accept_changed": ["learning_rate", "max_grad_norm"]})
    assert folder.finished and [change["what"] for change in folder.record["changes"]][:1] == ["learning_rate"]


def test_an_ensemble_goes_on_with_another_learning_rate(
    base: Path, comparisons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = settings("reward", base)
    seen: list[int] = []
    log = RunFolder.log

    def log_and_stop(self: RunFolder, step: int, metrics: Any) -> Any:
        seen.append(step)
        if len(seen) == 10:  # within the second member
            raise KeyboardInterrupt
        return log(self, step, metrics)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "log", log_and_stop)
        run("reward", values)
    first = weights(base.parent / "reward" / "members" / "0")
    assert record(base.parent / "reward")["status"] == "stopped"
    folder = run("reward", values | {"learning_rate": 1e-6, "accept_changed": ["learning_rate"]})
    assert weights(folder.path / "members" / "0") == first
    assert record(folder.path / "members" / "1")["changes"][0]["what"] == "learning_rate"


@pytest.mark.parametrize(
    ("reward", "column", "good", "bad", "message"),
    [
        ("math", "answer", "5", "???", "cannot be parsed as mathematics"),
        ("number", "answer", "5", "five", "does not end in a number"),
        ("exact", "answer", "5", None, "reads the column 'answer'"),
        ("regex", "pattern", "a.*", "a(", "invalid regular expression"),
        ("json-schema", "schema", '{"type": "object"}', '{"type": "nothing"}', "invalid JSON Schema"),
        ("json-schema", "schema", True, '{"properties": {"a": {"$ref": "#/$defs/b"}}}', "refers to '#/\\$defs/b'"),
        ("both.yaml", "answer", "5", "five", "does not end in a number"),
    ],
)
@pytest.mark.parametrize("stage", ["grpo", "best-of-n"])
def test_what_a_verifier_reads_is_checked_on_all_rows_before_anything_is_sampled(
    stage: str, reward: str, column: str, good: Any, bad: Any, message: str, base: Path, write: Any,
) -> None:  # fmt: skip
    (base.parent / "both.yaml").write_text("parts:\n- reward: ended\n- reward: number\n")
    rows = [{"prompt": f"a {letter}", column: good} for letter in "abcdefghijklmnopqrst"]
    rows[17][column] = bad
    data = str(write("rows.jsonl", rows))
    name = str(base.parent / reward) if reward.endswith("yaml") else reward
    shared = {"model": str(base), "data": data, "reward": name, "max_new_tokens": 4}
    with pytest.raises(DataError, match=rf"'a r'.*{message}|{message}.*'a r'"):
        if stage == "grpo":
            grpo.run(grpo.GRPOConfig.make(shared | {"out": base.parent / "out", "max_steps": 1, "batch_size": 2}))
        else:
            best_of_n.run(BestOfNConfig.make(shared | {"out": base.parent / "out.jsonl", "n": 2}))
    assert not (base.parent / "out" / "metrics.jsonl").exists()
    assert not list(base.parent.glob("*pool*"))

"""What is measured after training: limited by the training's work, named, and not lost by an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaModel

from kleash.io import read_jsonl
from kleash.rollout import HeldOutPrompts
from kleash.run import RunFolder
from kleash.stages import STAGES, grpo, ppo, reward_model, sft
from kleash.testing import ConstantReward
from kleash.training import measurements
from kleash.training.measurements import FEWEST, SAMPLED, TRAINED, Measurements
from tests.conftest import letters

MEASURED = {
    "sft": {"samples", "held-out rows", "effect of the prompt"},
    "reward": {"samples to centre on", "feature range", "held-out pairs", "probes", "excess negative log-likelihood"},
    "dpo": {"KL from the reference"},
}


class Work:
    """Tokens that models read before and after the final weights were written, in the units of `Measurements`."""

    def __init__(self, *, samples: bool = False) -> None:
        self.samples = samples
        """Whether the training samples, too."""
        self.training, self.after, self.written = 0, 0, False

    def count(self, ids: torch.Tensor) -> None:
        work = TRAINED if torch.is_grad_enabled() else SAMPLED if ids.shape[1] == 1 else 1
        if self.written:
            self.after += work * ids.numel()
        elif torch.is_grad_enabled() or self.samples:
            self.training += work * ids.numel()


@contextmanager
def counted(work: Work, stage: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    write = stage.write_model

    def writes(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        work.written = True

    monkeypatch.setattr(stage, "write_model", writes)
    with counted_forwards(work, monkeypatch):
        yield


@contextmanager
def counted_forwards(work: Work, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    call = LlamaModel.forward

    @wraps(call)
    def forward(self: LlamaModel, *arguments: Any, **options: Any) -> Any:
        work.count(options["input_ids"] if "input_ids" in options else arguments[0])
        return call(self, *arguments, **options)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    yield


def pair(number: int) -> dict[str, str]:
    return {"chosen": "z " + letters(number, 4), "rejected": letters(number, 5)}


def settings(stage: str, base: Path, **changes: Any) -> dict[str, Any]:
    data = base.parent / "rows.jsonl"
    if not data.exists():
        row = (lambda n: {"response": letters(n + 1, 5)}) if stage == "sft" else pair
        rows = [{"prompt": letters(n % 997, 6 + n % 3), **row(n)} for n in range(400)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"model": str(base), "data": str(data), "out": base.parent / stage}
    return values | {"max_steps": 60, "batch_size": 32, "force": True} | changes


def run(stage: str, values: dict[str, Any]) -> RunFolder:
    config = STAGES[stage].config if stage != "reward" else reward_model.RewardConfig
    folder = (reward_model.run if stage == "reward" else STAGES[stage].run)(config.make(values))
    assert isinstance(folder, RunFolder)
    return folder


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_they_take_at_most_a_fifth_of_the_work_of_training(
    stage: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work()
    monkeypatch.setattr(measurements, "FREE", 0.0)
    with counted(work, sft if stage == "sft" else reward_model, monkeypatch):
        folder = run(stage, settings(stage, base))
    assert 0 < work.after <= 0.2 * work.training, work.after / work.training
    whole = run(stage, settings(stage, base, out=base.parent / "whole", measure_share=1e6))
    assert "measured" not in whole.record and whole.record["gates"]["out"]["checks"]
    limited = run(stage, settings(stage, base, out=base.parent / "limited", measure_share=0.02))
    assert all(entry["rows"] < entry["of"] for entry in limited.record["measured"].values())
    assert set(limited.record["measured"]) <= MEASURED[stage] and limited.record["measured"]
    assert folder.finished


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_one_measurement_of_held_out_prompts_takes_at_most_a_fifth_of_the_work_of_training(
    stage: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": letters(n, 6 + n % 3)} for n in range(300)]
    for name, some in (("prompts", rows[:20]), ("held-out", rows)):
        (base.parent / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    values = {
        "model": str(base), "data": base.parent / "prompts.jsonl", "eval_data": base.parent / "held-out.jsonl",
        "reward": "constant", "max_steps": 4, "batch_size": 8, "max_new_tokens": 8,
    }  # fmt: skip
    config, work = STAGES[stage].config, Work(samples=True)
    monkeypatch.setattr(measurements, "FREE", 0.0)
    measure = HeldOutPrompts.measure

    def measures(self: HeldOutPrompts, *arguments: Any, **options: Any) -> dict[str, float]:
        work.written = True
        try:
            return measure(self, *arguments, **options)
        finally:
            work.written = False

    def run_with(out: str, **changes: Any) -> RunFolder:
        stage_run = {"grpo": grpo.run, "ppo": ppo.run}[stage]
        folder = stage_run(config.make(values | {"out": base.parent / out} | changes), reward=ConstantReward())
        assert isinstance(folder, RunFolder)
        return folder

    monkeypatch.setattr(HeldOutPrompts, "measure", measures)
    with counted_forwards(work, monkeypatch):
        folder = run_with("limited", eval_every=2)
    limited = folder.record["measured"]["held-out prompts"]
    assert FEWEST < limited["rows"] < limited["of"] == 300
    assert 0.05 * work.training < work.after / 2 <= 0.2 * work.training, "two measurements"
    prompts = [[row["prompt"] for row in read_jsonl(folder.path / "samples.jsonl") if row["step"] == s] for s in (2, 4)]
    assert prompts[0] == prompts[1] and len(prompts[0]) == limited["rows"]
    assert "measured" not in run_with("whole", measure_share=1e3).record


@given(
    most=st.integers(0, 2000),
    part=st.floats(0, 1),
    work=st.floats(0.1, 1e6),
    trained=st.integers(1, 10**7),
    share=st.floats(1e-3, 2),
)
def test_a_measurement_takes_no_more_rows_than_its_part_pays_for(
    most: int, part: float, work: float, trained: int, share: float
) -> None:
    limits = Measurements(Silent(Path("run"), {}), nn.Linear(2, 1), [], rows=trained, share=share, seed=0)
    limits.work = share * trained
    rows = limits.count("rows", most, part=part, work=work)
    assert rows <= most
    assert rows == min(most, FEWEST) or rows * max(work, 1) <= part * share * trained * (1 + 1e-9)
    assert rows == most or (rows + 1) * max(work, 1) > part * share * trained * (1 - 1e-9)


class Silent(RunFolder):
    """A run without a folder."""

    def note(self, section: str, **values: Any) -> None:
        """Write nothing."""


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_each_is_a_bar_with_its_name_and_an_interrupted_run_goes_on_with_the_next(
    stage: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    real = measurements.Progress

    class Bar(real):  # type: ignore[misc,valid-type]
        def __init__(self, total: int, title: str, **options: Any) -> None:
            titles.append(title)
            super().__init__(total, title, **options)

    monkeypatch.setattr(measurements, "Progress", Bar)
    values = settings(stage, base, max_steps=4)
    whole = run(stage, values | {"out": base.parent / "whole"})
    assert set(titles) == MEASURED[stage]

    titles.clear()
    keep = Measurements.keep

    def keep_one(self: Measurements, name: str, kind: Any, measure: Any) -> Any:
        result = keep(self, name, kind, measure)
        if len(titles) == len(MEASURED[stage]):
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Measurements, "keep", keep_one)
        run(stage, values)
    assert len(list((base.parent / stage / "measured").glob("*.json"))) == len(MEASURED[stage])
    folder = run(stage, values)
    assert len(titles) == len(MEASURED[stage]), "none was measured twice"
    records = [json.loads((each.path / "run.json").read_text()) for each in (folder, whole)]
    assert records[0]["results"] == records[1]["results"]
    assert records[0]["gates"]["out"]["checks"] == records[1]["gates"]["out"]["checks"]
    assert not (folder.path / "measured").exists()


@pytest.mark.parametrize(
    "content", ["", "[1.0, ", '{"a": 1}', "null", "[" * 5000], ids=["empty", "cut", "other", "null", "deep"]
)
def test_a_damaged_measurement_is_made_again(content: str, tmp_path: Path) -> None:
    kept = Measurements(Silent(tmp_path, {}), None, [], rows=1, share=0.2, seed=0)
    assert kept.keep("scores", list[float], lambda: [1.0, 2.0]) == [1.0, 2.0]
    assert kept.keep("scores", list[float], lambda: [9.0]) == [1.0, 2.0]
    (file,) = (tmp_path / "measured").iterdir()
    file.write_text(content)
    assert kept.keep("scores", list[float], lambda: [3.0]) == [3.0]
    assert kept.keep("scores", list[float], lambda: [9.0]) == [3.0]

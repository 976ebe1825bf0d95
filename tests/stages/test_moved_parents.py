"""Identity is content: a parent that is moved, between two stages or in the middle of one, stays the same parent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kleash.errors import DataError
from kleash.progress import Progress
from kleash.run import RunFolder, parent_of, read_record
from kleash.stages import reward_ensemble, sft


def train(model: Path, data: Path, out: Path, **changes: Any) -> RunFolder:
    values = {"model": str(model), "data": str(data), "out": out, "max_steps": 6, "batch_size": 4, "save_every": 1}
    return sft.run(sft.SFTConfig.make(values | {"gate_prompts": 0} | changes))


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Interrupt a run after so many steps; None lets it run again."""
    update = Progress.update

    def at(step: int | None) -> None:
        def stop(self: Progress, done: int, **figures: Any) -> None:
            update(self, done, **figures)
            if done == step:
                raise KeyboardInterrupt

        monkeypatch.setattr(Progress, "update", stop)

    return at


def test_a_parent_moves_in_the_middle_of_a_run_and_the_same_run_goes_on(
    base: Path, demonstrations: Path, tmp_path: Path, stop_at: Callable[[int | None], None]
) -> None:
    whole = train(base, demonstrations, tmp_path / "whole")
    stop_at(3)
    with pytest.raises(KeyboardInterrupt):
        train(base, demonstrations, tmp_path / "out")
    stop_at(None)
    first = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0]
    moved, rows = base.rename(tmp_path / "moved"), demonstrations.rename(tmp_path / "rows.jsonl")
    folder = train(moved, rows, tmp_path / "out")
    assert folder.finished and (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0] == first
    weights = "model.safetensors"
    assert (folder.path / weights).read_bytes() == (whole.path / weights).read_bytes()
    assert {role: value["path"] for role, value in folder.record["inputs"].items()} == {
        "model": str(moved),
        "data": str(rows),
    }


def test_a_run_goes_on_where_its_parent_is_the_same_and_not_where_it_changed(
    base: Path, demonstrations: Path, tmp_path: Path
) -> None:
    out = train(base, demonstrations, tmp_path / "out").path
    (base / "README.md").write_text("what people write beside a model does not count")
    stamp = (out / "run.json").stat().st_mtime_ns
    assert train(base, demonstrations, out).finished
    assert (out / "run.json").stat().st_mtime_ns == stamp, "nothing was done again"
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(DataError, match=r"other settings \(the content of model in .*base differs\)"):
        train(base, demonstrations, out)


def test_parents_and_their_parents_are_still_known_after_all_moved(
    base: Path, demonstrations: Path, comparisons: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    trained = train(base.rename(runs / "base"), demonstrations, runs / "sft").path
    assert parent_of(trained, "model") == runs / "base"
    moved = runs.rename(tmp_path / "moved")
    assert parent_of(moved / "sft", "model") == moved / "sft" / ".." / "base"
    values = {"model": str(moved / "sft"), "data": str(comparisons), "out": moved / "reward", "max_steps": 2}
    settings = reward_ensemble.EnsembleConfig.make(values | {"force": True, "centre_samples": 4})
    record = read_record(reward_ensemble.run(settings).path) or {}
    verdict = (read_record(moved / "sft") or {})["gates"]["out"]["finding"]
    assert record["gates"]["in (model)"]["finding"] == verdict, "trusted, not measured again"
    assert parent_of(moved / "sft", "reward") is None and parent_of(moved / "base", "model") is None
    (moved / "base" / "config.json").write_text("{}")
    assert parent_of(moved / "sft", "model") is None, "another model stands there now"

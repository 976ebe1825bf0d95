"""States to resume from: written once, never replaced, passed over where they are not whole."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kleash.errors import DataError
from kleash.io import clear_leftovers
from kleash.run import RunFolder
from kleash.stages.training_configs import SFTConfig
from kleash.training import checkpoint
from tests.test_io import killed_at


class Cursor:
    """A part with a state that is no tensor."""

    def __init__(self) -> None:
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: Any) -> None:
        self.place = state["place"]


def parts(value: float = 0.0) -> checkpoint.State:
    model, cursor = nn.Linear(2, 1), Cursor()
    nn.init.constant_(model.weight, value)
    cursor.place = int(value)
    return {"model": model, "cursor": cursor}


@pytest.fixture
def folder(base: Path, demonstrations: Path, tmp_path: Path) -> RunFolder:
    config = SFTConfig.make({"model": str(base), "data": str(demonstrations), "out": tmp_path / "run"})
    folder = RunFolder.open(config.out, stage="sft", config=config)
    for step in (3, 6):
        checkpoint.save(folder, step, parts(step), keep=2)
    return folder


def restored(folder: RunFolder) -> int:
    """The step that a run goes on from; its parts agree."""
    state = parts()
    step: int = checkpoint.restore(folder, state)["step"]
    assert state["model"].weight.eq(step).all() and state["cursor"].place == step  # type: ignore[attr-defined, union-attr]
    return step


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "nothing in it": lambda path: (shutil.rmtree(path), path.mkdir()),
    "no tensors": lambda path: (path / "model.safetensors").unlink(),
    "cut tensors": lambda path: cut(path / "model.safetensors"),
    "rubbish in place of tensors": lambda path: (path / "model.safetensors").write_bytes(
        b"x" * (path / "model.safetensors").stat().st_size
    ),
    "no numbers": lambda path: (path / "state.json").unlink(),
    "cut numbers": lambda path: cut(path / "state.json"),
    "other numbers": lambda path: (path / "state.json").write_text('{"step": "six", "values": [], "bytes": {}}'),
    "a name that no file can have": lambda path: (path / "state.json").write_text(
        json.dumps({"step": 6, "values": {}, "bytes": {"x" * 300: 1}})
    ),
    "a list": lambda path: (path / "state.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_state_that_is_not_whole_is_passed_over_and_named(
    damage: Callable[[Path], Any], folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.append("samples.jsonl", [{"step": step} for step in (3, 4, 6)])
    damage(folder.checkpoints / "step-00000006")
    with caplog.at_level(logging.WARNING, "kleash"):
        assert restored(folder) == 3
    assert "step-00000006 is not whole, so the run continues before it" in caplog.text
    checkpoint.save(folder, 6, parts(6), keep=1)
    assert restored(folder) == 6
    damage(folder.checkpoints / "step-00000006")
    assert checkpoint.restore(folder, parts())["step"] == 0, "no state is left: from the beginning"


def test_a_state_that_is_there_is_not_written_again(folder: RunFolder) -> None:
    file = folder.checkpoints / "step-00000006" / "model.safetensors"
    before = file.stat()
    checkpoint.save(folder, 6, parts(6), keep=1)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_killed_anywhere_while_saving_there_is_a_state_to_go_on_from(folder: RunFolder) -> None:
    steps = []
    for call in range(1, 100):
        came_so_far = killed_at(call, lambda: checkpoint.save(folder, 9, parts(9), keep=1))
        clear_leftovers(folder.path)
        steps.append(restored(folder))
        shutil.rmtree(folder.checkpoints / "step-00000009", ignore_errors=True)
        for step in (3, 6):
            checkpoint.save(folder, step, parts(step), keep=2)
        if not came_so_far:
            break
    assert {6, 9} == set(steps) and len(steps) > 10


def test_a_state_of_another_model_is_one_line(folder: RunFolder) -> None:
    with pytest.raises(DataError, match=r"step-00000006 is not a state of this run .*; delete it") as caught:
        checkpoint.restore(folder, {"model": nn.Linear(3, 1), "cursor": Cursor()})
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="is not a state of this run"):
        checkpoint.restore(folder, {"model": nn.Linear(2, 1), "another": Cursor()})


def test_tensors_keep_their_values(folder: RunFolder) -> None:
    state = parts()
    checkpoint.restore(folder, state)
    assert torch.equal(state["model"].weight, torch.full((1, 2), 6.0))  # type: ignore[union-attr]

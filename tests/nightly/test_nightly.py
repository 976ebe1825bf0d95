"""A small sample of what `make nightly` does at length, and whether it would see a fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.nightly import fuzz, kills

pytestmark = pytest.mark.slow


def silent(line: str) -> None:
    """Instead of a line on the terminal."""


def test_killed_runs_end_as_those_that_were_left_alone() -> None:
    tally = kills.run_kills(16, seed=5, say=silent)
    assert tally.faults == [] and tally.kills == 16 and tally.aimed > 3


def test_a_writer_that_a_kill_harms_is_seen() -> None:
    """It appends to its file, whatever is there already."""

    def append(config: Any) -> None:
        for row in range(3):
            with config.out.open("a") as file:
                file.write(json.dumps({"row": row}) + "\n")

    case = kills.Case("append", kills.CASES[-3].config, append, "out.jsonl")
    assert "other than undisturbed: out.jsonl" in kills.run_kills(6, cases=(case,), say=silent).faults[0]


def test_damaged_inputs_are_read_or_refused_in_one_line() -> None:
    report = fuzz.fuzz(range(1000, 2000), say=silent)
    assert report.faults == {} and report.inputs == 1000
    assert set(report.refused) > {"read_lines", "read_a_run", "read_config"} and sum(report.read.values()) > 100


def test_a_reader_that_fails_or_dies_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(world: fuzz.World, draw: Any, place: Path) -> None:
        if draw.random() < 0.5:
            raise KeyError("x")
        fuzz.os._exit(3) if draw.random() < 0.1 else None

    def die(world: fuzz.World, draw: Any, place: Path) -> None:
        fuzz.os.kill(fuzz.os.getpid(), fuzz.signal.SIGSEGV)

    monkeypatch.setattr(fuzz, "READERS", {die: 1})
    assert fuzz.fuzz(range(3), say=silent).fault_count == 3
    monkeypatch.setattr(fuzz, "READERS", {fail: 1})
    assert fuzz.fuzz(range(20), say=silent).fault_count >= 5

"""A run's folder under fire: one writer, damaged records, rows with any character, time before an interruption."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kleash.checks.artifact import check
from kleash.checks.gates import check_parents
from kleash.cli import _run as command
from kleash.errors import DataError, InputError, MachineError
from kleash.io import read_jsonl
from kleash.run import RunFolder, parent_of, read_record
from kleash.stages.training_configs import SFTConfig
from tests.test_io import BREAKS

WRITER = """
import os, signal, sys
from pathlib import Path
from kleash.run import RunFolder
from kleash.stages.training_configs import SFTConfig
config = SFTConfig.make({"model": sys.argv[1], "data": sys.argv[2], "out": sys.argv[3]})
folder = RunFolder.open(config.out, stage="sft", config=config)
folder._started -= 100  # as if it had begun so long ago
folder.log(1, {"loss": 1.0})
print("writing", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def config(base: Path, demonstrations: Path, tmp_path: Path) -> SFTConfig:
    return SFTConfig.make({"model": str(base), "data": str(demonstrations), "out": tmp_path / "run"})


def opened(config: SFTConfig) -> RunFolder:
    return RunFolder.open(config.out, stage="sft", config=config)


def writer(config: SFTConfig) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, config.model, config.data, str(config.out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def test_a_second_process_on_the_same_out_is_told_and_changes_nothing(config: SFTConfig) -> None:
    process = writer(config)
    before = {path.name: path.read_bytes() for path in config.out.iterdir()}
    with pytest.raises(InputError, match=rf"run is being written by process {process.pid} on .*; wait for it"):
        opened(config)
    assert {path.name: path.read_bytes() for path in config.out.iterdir()} == before
    process.communicate()


def test_a_second_command_on_the_same_out_leaves_with_2(config: SFTConfig, capsys: pytest.CaptureFixture[str]) -> None:
    process = writer(config)
    assert command(["sft", "--model", config.model, "--data", config.data, "--out", str(config.out)]) == 2
    assert re.fullmatch(
        rf"kleash: \S+/run is being written by process {process.pid} on \S+; wait for it, or choose another --out\n",
        capsys.readouterr().err,
    )
    process.communicate()


def test_a_run_killed_after_its_last_word_leaves_nothing(config: SFTConfig) -> None:
    opened(config).finish()
    (config.out / ".lock").write_text("1 nowhere 000000000000.000\n")
    (config.out / "checkpoints" / "step-00000001").mkdir(parents=True)
    (config.out / ".run.json.1.tmp").touch()
    assert opened(config).finished
    assert os.listdir(config.out) == ["run.json"]


def test_the_seconds_before_a_kill_count_too(config: SFTConfig) -> None:
    process = writer(config)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = opened(config)
    folder.finish()
    assert 100 <= folder.record["seconds"] < 200
    again = opened(config)
    assert again.record["seconds"] == folder.record["seconds"] and not (config.out / ".lock").exists()


def test_the_seconds_before_an_error_count_once(config: SFTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for _ in range(3):
        folder = opened(config)
        clock[0] += 10
        folder.log(1, {})
        clock[0] += 10
        folder.save()
        clock[0] += 1000  # until somebody starts it again
    folder = opened(config)
    clock[0] += 5
    folder.finish()
    assert folder.record["seconds"] == 65


def test_a_folder_killed_before_it_held_anything_is_no_obstacle(config: SFTConfig) -> None:
    config.out.mkdir()
    (config.out / ".lock").write_text("1 nowhere 000000000000.000\n")
    (config.out / ".run.json.1.tmp").write_text("{")
    opened(config)
    assert sorted(os.listdir(config.out)) == [".lock", "run.json"]


def test_rows_with_any_line_break_survive_a_resume(config: SFTConfig) -> None:
    folder = opened(config)
    rows = [{"step": step, "text": f"a{mark}b"} for step, mark in enumerate(BREAKS)]
    folder.append("samples.jsonl", rows)
    folder.log(1, {"text": f"a{BREAKS}b"})
    folder.rewind(len(rows))
    assert read_jsonl(config.out / "samples.jsonl") == rows
    assert folder.metrics() == [{"step": 1, "text": f"a{BREAKS}b"}]
    folder.rewind(3)
    assert read_jsonl(config.out / "samples.jsonl") == rows[:4]


def test_a_row_that_a_kill_cut_is_not_continued_by_the_next_one(config: SFTConfig) -> None:
    folder = opened(config)
    folder.append("samples.jsonl", [{"step": 1}])
    with (config.out / "samples.jsonl").open("a") as file:
        file.write('{"step": 2, "te')
    opened(config).append("samples.jsonl", [{"step": 2}])
    assert read_jsonl(config.out / "samples.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_folder_that_is_taken_away_is_one_line(config: SFTConfig, tmp_path: Path) -> None:
    folder = opened(config)
    config.out.rename(tmp_path / "elsewhere")
    for write in (lambda: folder.log(1, {}), lambda: folder.append("samples.jsonl", [{"step": 1}]), folder.save):
        with pytest.raises(
            MachineError, match="No such file or directory; restore what was moved or deleted"
        ) as caught:
            write()
        assert "\n" not in str(caught.value)


def test_a_file_in_place_of_the_folder_is_named(config: SFTConfig) -> None:
    config.out.touch()
    with pytest.raises(InputError, match="run is a file; choose another --out"):
        opened(config)


RUBBISH: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "null": b"null",
    "deep": b'{"schema": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "digits by the thousand": b'{"schema": ' + b"1" * 9000 + b"}",
    "no keys": {"only": ["schema"]},
    "an unknown schema": {"schema": [1]},
    "no stage": {"stage": None},
    "a status that is a number": {"status": 1},
    "seconds that are not a number": {"seconds": float("nan")},
    "seconds that are text": {"seconds": "long"},
    "a config that is a list": {"config": []},
    "an identity that is null": {"identity": None},
    "inputs that are text": {"inputs": "base"},
    "an input without a hash": {"inputs": {"model": {"path": "base"}}},
    "an input whose path is null": {"inputs": {"model": {"path": None, "sha256": "x"}}},
    "gates that are a list": {"gates": [1]},
    "a gate without a result": {"gates": {"out": {"finding": "fine"}}},
    "a gate that is null": {"gates": {"out": None}},
    "a gate whose result is a number": {"gates": {"out": {"passed": 2, "finding": "fine"}}},
    "a gate whose hash is a list": {"gates": {"out": {"passed": True, "finding": "fine", "sha256": []}}},
    "results that are null": {"results": None},
    "reasons that are numbers": {"skipped": {"checks": 1}},
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
def test_a_damaged_run_json_is_one_line_wherever_it_is_read(rubbish: Any, config: SFTConfig, tmp_path: Path) -> None:
    folder = opened(config)
    folder.log(1, {})
    file = config.out / "run.json"
    record = json.loads(file.read_text())
    if isinstance(rubbish, dict):
        kept = {key: record[key] for key in rubbish.pop("only", record)}
        file.write_text(json.dumps(kept | rubbish))
    else:
        file.write_bytes(rubbish)
    child = RunFolder(tmp_path / "child", dict(record))
    child.path.mkdir()
    for read in (
        lambda: read_record(config.out),
        lambda: opened(config),
        lambda: parent_of(config.out, "model"),
        lambda: check(config.out),
        lambda: check_parents(child, role="model", parent=config.out, force=False),
    ):
        with pytest.raises(DataError, match=r"run/run\.json") as caught:
            read()
        assert "\n" not in str(caught.value) and "delete" in str(caught.value)

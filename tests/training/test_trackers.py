from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from kleash.errors import ConfigError
from kleash.run import RunFolder
from kleash.training import trackers
from kleash.training.trackers import Trackers
from tests.programs import needs


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "ppo").mkdir()
    return RunFolder(tmp_path / "ppo", {"stage": "ppo", "config": {"beta": 0.05, "out": "ppo"}})


def scalars(folder: RunFolder, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_gets_every_number_of_every_step(folder) -> None:
    with Trackers(["tensorboard"], folder) as opened:
        opened.log(1, {"step": 1, "reward": 0.5, "tokens": 64, "kl": None, "note": "text"})
        opened.log(2, {"step": 2, "reward": -0.25, "tokens": 128, "kl": 1.5, "note": "text"})
    assert scalars(folder, "reward") == [(1, 0.5), (2, -0.25)]
    assert scalars(folder, "tokens") == [(1, 64.0), (2, 128.0)]
    assert scalars(folder, "kl") == [(2, 1.5)]
    with pytest.raises(KeyError):
        scalars(folder, "step")


def test_an_interrupted_run_goes_on_in_tensorboard_from_its_checkpoint(folder) -> None:
    with Trackers(["tensorboard"], folder) as opened:
        for step in (1, 2, 3):
            opened.log(step, {"kl": float(step)})
    with Trackers(["tensorboard"], folder) as opened:  # the checkpoint was at step 1
        for step in (2, 3, 4):
            opened.log(step, {"kl": 10.0 * step})
    assert scalars(folder, "kl") == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]


def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(folder, monkeypatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        Trackers(["wandb"], folder)
    assert str(error.value) == "trackers: wandb is not installed; pip install 'kleash[wandb]'"
    assert not any(folder.path.iterdir())


def test_an_unknown_tracker_is_answered_with_those_there_are(folder) -> None:
    with pytest.raises(ConfigError, match="no tracker 'tensorbord'; choose from tensorboard, wandb, trackio"):
        Trackers(["tensorbord"], folder)


def test_a_tracker_that_was_not_requested_is_not_imported() -> None:
    code = "import sys, kleash.training.trackers; print({'tensorboard', 'wandb', 'trackio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


def test_no_trackers_write_nothing(folder) -> None:
    with Trackers((), folder) as opened:
        opened.log(1, {"kl": 1.0})
    assert not any(folder.path.iterdir())


SCRIPT = """
import json, sys
from pathlib import Path
from kleash.run import RunFolder
from kleash.training.trackers import Trackers
name, path, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
record = {"stage": "ppo", "config": {"beta": 0.05} | json.loads(sys.argv[4])}
if step > 1:
    record = json.loads((path / "run.json").read_text())
with Trackers([name], RunFolder(path, record)) as trackers:
    trackers.log(step, {"kl": 1.5 * step})
print("a result")
"""


def start_and_go_on(name: str, folder: RunFolder, python: Path = Path(sys.executable), **names: object) -> str:
    for step in ("1", "2"):
        command = [str(python), "-c", SCRIPT, name, str(folder.path), step, json.dumps(names)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, "a result\n"), done.stderr
    return json.loads((folder.path / "run.json").read_text())["trackers"]["id"]


@pytest.mark.slow  # starts Python twice, and torch with it
def test_an_interrupted_run_goes_on_under_its_id_in_wandb(folder, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    names = {"tracker_project": "a-project", "run_name": "the name", "tracker_tags": ["first-tag", "second"]}
    identity = start_and_go_on("wandb", folder, **names)
    runs = list((folder.path / "wandb").glob("offline-run-*"))
    assert {run.name.rpartition("-")[2] for run in runs} == {identity}
    content = b"".join(log.read_bytes() for run in runs for log in run.glob("run-*.wandb"))
    assert all(text in content for text in (b"0.05", b"a-project", b"the name", b"first-tag"))


@pytest.mark.slow  # starts Python twice, and torch with it
def test_an_interrupted_run_goes_on_under_its_name_in_trackio(folder, monkeypatch) -> None:
    python = needs("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(folder.path / "trackio"))
    identity = start_and_go_on("trackio", folder, python, tracker_project="a-project", run_name="name")
    with closing(sqlite3.connect(folder.path / "trackio" / "a-project.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step, json.loads(metrics)) for name, step, metrics in rows] == [
        (f"name-{identity}", 1, {"kl": 1.5}),
        (f"name-{identity}", 2, {"kl": 3.0}),
    ]

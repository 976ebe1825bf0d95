"""A run folder: a stage's settings, inputs and results, and the state from which it resumes.

    out/
      run.json          schema version, config, seed, versions, hashes of data and parents, gates, results, status
      metrics.jsonl     one object a step
      .lock             while a process writes: which one (see `lock.py`)
      checkpoints/      the state to resume from
        …                 the artifact itself, in the ecosystem's formats

Every write is atomic (see `io.py`), so that a kill at any instant leaves either the state before or the state after.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, StrictBool, StrictStr

import kleash
from kleash.changes import changes_of
from kleash.config import Config
from kleash.content import Fingerprints, fingerprints, folder_hash
from kleash.errors import InputError, MachineError, NotFiniteError
from kleash.io import (
    Json,
    clear_leftovers,
    machine_errors,
    read_json,
    read_jsonl,
    refuse_damaged,
    remove,
    replacing,
    write_json,
)
from kleash.lock import Lock, lock
from kleash.memory import peak_memory, reset_peak
from kleash.outputs import SCHEMA, identity_of, refuse_other_schema
from kleash.parse import UnreadableError, parse_json

StepMetrics = dict[str, Any]
"""Figures of a step by name: numbers, or tensors of one number until they are logged."""


class RunFolder:
    """The folder of one run of one stage: new, to be resumed, or finished."""

    def __init__(self, path: Path, record: Json) -> None:
        self.path = path
        self.record = record
        self.changes: list[Json] = []
        self._lock: Lock | None = None
        self._started = time.monotonic()

    @classmethod
    def open(cls, path: Path, *, stage: str, config: Config, inputs: Fingerprints | None = None) -> RunFolder:
        """Open the folder of a new run or of one to resume; until it is finished no other process can open it.

        Args:
            path: the folder; made if missing.
            stage: name of the stage.
            config: the run's config; the fields that its result depends on must agree with an earlier run's in the
                same folder, but for changes that are accepted (`changes.py`), which are recorded.
            inputs: fingerprints of objects passed in place of what the config names (a live model, say) or in addition,
                by role. The content of all inputs must agree with the earlier run's; their paths need not, since a
                parent may have been moved.

        Raises:
            DataError: the folder holds another run, or one of another version; the message names what differs (F11).
            InputError: another process writes the folder.
            MachineError: the folder cannot be written.
        """
        inputs = fingerprints(config, instead=inputs or {})
        identity = identity_of(stage, config, inputs)
        settings = config.model_dump(mode="json")
        record = read_record(path)
        if record is not None and record["status"] != "finished":
            with machine_errors(path):
                writer = lock(path / ".lock", path)  # noqa: F841  (held: what follows is about what nobody writes)
            record = read_record(path)
        if record is not None and record["identity"] != identity and not _has_work(path, record):
            record = None  # an earlier attempt ended before it had done anything: there is nothing to protect
        elif record is not None:
            changes = changes_of(path, record, config, identity, inputs)
            folder = cls(path, record | {"config": settings, "inputs": inputs, "identity": identity})
            folder._continue(changes)
            if not folder.finished:
                folder._take_over()
            else:
                folder._clear_after_kill()
            if folder.record != record:
                folder.save()
            return folder
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; choose another --out, for a folder")
        if _holds_other_files(path):
            raise InputError(f"{path} holds files that are not a kleash run; choose another --out or empty it")
        record = {
            "kleash": kleash.__version__,
            "schema": SCHEMA,
            "stage": stage,
            "status": "running",
            "seed": settings.get("seed"),
            "config": settings,
            "inputs": inputs,
            "identity": identity,
            "versions": versions(),
            "gates": {},
            "results": {},
            "seconds": 0.0,
        }
        folder = cls(path, record)
        with machine_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            folder._take_over()
            folder.save()
        return folder

    @classmethod
    def finished_in(cls, path: Path) -> RunFolder | None:
        """The finished run of a folder, whatever its settings; None where there is none."""
        record = read_record(path)
        if record is None or record["status"] != "finished":
            return None
        folder = cls(path, record)
        folder._clear_after_kill()
        return folder

    def _clear_after_kill(self) -> None:
        """Clear what a run has left that was killed after its last word."""
        if (self.path / ".lock").exists():
            with suppress(InputError, OSError):
                self._lock = lock(self.path / ".lock", self.path)
                self._clear()

    def _take_over(self) -> None:
        """Become the only writer, and put in order what a killed one has left."""
        reset_peak()
        with machine_errors(self.path):
            self._lock = lock(self.path / ".lock", self.path)
        self.record["seconds"] = round(self.record["seconds"] + self._lock.seconds, 3)
        self._lock.note(0.0)
        clear_leftovers(self.path)
        for file in self.path.glob("*.jsonl"):
            _cut_incomplete_line(file)

    def _let_go(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _continue(self, changes: list[Json]) -> None:
        """Record the changes with which the run goes on; with some, a finished run begins to run again."""
        self.changes = changes
        if changes:
            self.record["changes"] = [*self.record.get("changes", []), *changes]
        if self.record["status"] == "stopped" or (self.finished and changes):
            self.record["status"] = "running"
            self.record["gates"] = {name: gate for name, gate in self.record["gates"].items() if name != "out"}
            for section in ("stopped", "skipped", "measured"):
                self.record.pop(section, None)

    def stop(self, error: BaseException) -> None:
        """Note in run.json that the run stopped, and why; the same command continues it."""
        reason = " ".join(str(error).split()) or ("interrupted" if isinstance(error, KeyboardInterrupt) else "")
        self.record |= {"status": "stopped", "stopped": {"error": type(error).__name__, "reason": reason}}
        self._count_seconds()
        with suppress(MachineError):  # the error itself is what is to be told
            self.save()
        states = sorted(self.checkpoints.glob("step-*"))
        if isinstance(error, NotFiniteError) and len(states) > 1:
            remove(states[-1])  # its outputs are finite, but no step can be taken from it
        self._let_go()

    @property
    def finished(self) -> bool:
        """Whether the stage is complete."""
        return bool(self.record["status"] == "finished")

    def _clear(self) -> None:
        """Keep the newest training states of a finished run and nothing else; without any the best weights go, too."""
        clear_leftovers(self.path)
        remove(self.path / "measured")
        count = self.record["config"].get("keep_states", 1)
        states = sorted(self.checkpoints.glob("step-*"))
        for path in states[: len(states) - count] if count else [self.checkpoints]:
            remove(path)
        self._let_go()

    @property
    def checkpoints(self) -> Path:
        """The folder of the states to resume from."""
        return self.path / "checkpoints"

    def save(self) -> None:
        """Write run.json."""
        write_json(self.path / "run.json", self.record)
        self._note_seconds()

    def _count_seconds(self) -> None:
        """Add this process's time so far to the run's."""
        self.record["seconds"] = round(self.record["seconds"] + time.monotonic() - self._started, 3)
        self._started = time.monotonic()

    def _note_seconds(self) -> None:
        """Note for how long this process has been at it, for the one that continues the run if it is interrupted."""
        if self._lock is not None:
            with machine_errors(self.path):
                self._lock.note(time.monotonic() - self._started)

    def note(self, section: str, **values: Any) -> None:
        """Add values to a section of run.json (`results`, `gates`, `formulas`, …) and write it."""
        self.record.setdefault(section, {}).update(values)
        self.save()

    def log(self, step: int, metrics: Mapping[str, Any]) -> Json:
        """Append one object to metrics.jsonl and return it."""
        row = {"step": step, **_plain(metrics)}
        with machine_errors(self.path), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._note_seconds()
        return row

    def append(self, name: str, rows: list[Json]) -> None:
        """Append rows, each with its `step`, to a JSONL file of the folder."""
        with machine_errors(self.path), (self.path / name).open("a") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def rewind(self, step: int) -> None:
        """Delete the rows of JSONL files after `step`: those steps are about to be repeated."""
        for file in self.path.glob("*.jsonl"):
            with machine_errors(file), file.open("rb") as lines, replacing(file) as rest:
                rest.write_bytes(b"".join(line for line in lines if _step_of(line) <= step))

    def metrics(self) -> list[Json]:
        """All of metrics.jsonl."""
        return read_jsonl(self.path / "metrics.jsonl")

    def finish(self, **results: Any) -> RunFolder:
        """Mark the run as finished and write its results, and its peak memory in bytes since the folder was last
        opened.
        """
        self.record["status"] = "finished"
        self.record["peak_memory"] = peak_memory()
        self._count_seconds()
        if "out" in self.record["gates"]:  # the content that was checked, see checks/gates.py
            self.record["gates"]["out"]["sha256"] = folder_hash(self.path)
        self.note("results", **results)
        self._clear()
        return self


class _Input(BaseModel):
    """A fingerprint in run.json."""

    path: StrictStr
    sha256: StrictStr


class _Gate(BaseModel):
    """A summary of checks in run.json."""

    passed: StrictBool | None
    finding: StrictStr
    advice: StrictStr = ""
    sha256: StrictStr | None = None


class _Record(BaseModel):
    """What every reader of run.json relies on."""

    model_config = ConfigDict(extra="allow")

    stage: StrictStr
    status: StrictStr
    config: Json
    inputs: dict[str, _Input]
    identity: Json
    gates: dict[str, _Gate]
    results: Json
    skipped: dict[str, StrictStr] = {}
    seconds: FiniteFloat


def read_record(path: Path) -> Json | None:
    """The run.json of a folder, or None where there is none.

    Raises:
        DataError: it is damaged, or another version of kleash wrote it.
    """
    file = path / "run.json"
    if not file.is_file():
        return None
    remedy = "delete the folder or restore the file"
    record = read_json(file, remedy)
    refuse_other_schema(file, record)
    refuse_damaged(file, record, _Record, remedy)
    return record


def parent_of(path: Path, role: str) -> Path | None:
    """The folder of a parent of the run in `path`, identified by its content hash; None where no folder has it.

    A parent that was moved is found if it moved together with the run or into the folder next to the run's.

    Args:
        path: the run's folder.
        role: the parent's role: `model`, `reward`, ….
    """
    record = read_record(path) if path.is_dir() else None
    parent = ((record or {}).get("inputs") or {}).get(role)
    if record is None or parent is None:
        return None
    recorded, out = Path(parent["path"]), Path(str(record["config"].get("out", path)))
    relative = os.path.relpath(recorded.absolute(), out.absolute())
    for candidate in (recorded, path / relative, path.parent / recorded.name):
        if os.path.isdir(candidate) and folder_hash(candidate) == parent["sha256"]:
            return candidate
    return None


def derive_seed(*parts: object) -> int:
    """A seed for a named purpose, e.g. `derive_seed(config.seed, "rollout", step)`."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1


@cache
def versions() -> dict[str, str]:
    """Versions of the libraries that a run's numbers depend on."""
    names = ("torch", "transformers", "tokenizers", "datasets", "numpy")
    return {
        "python": platform.python_version(),
        "kleash": kleash.__version__,
        **{n: metadata.version(n) for n in names},
    }


def _has_work(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether starting over would lose finished work of the run."""
    return (
        record["status"] == "finished"
        or any(path.glob("checkpoints/step-*"))
        or bool(read_jsonl(path / "metrics.jsonl"))
    )


def _plain(metrics: Mapping[str, Any]) -> Json:
    """Values for JSON; NaN and infinities, which JSON lacks, become None. All tensors come from a device at once."""
    values = dict(metrics)
    devices: dict[Any, list[str]] = {}
    for name, value in metrics.items():
        if hasattr(value, "detach"):
            devices.setdefault(value.device, []).append(name)
    for names in devices.values():
        import torch

        numbers = torch.stack([metrics[name].detach().reshape(()).double() for name in names]).tolist()
        values |= {
            name: number if metrics[name].is_floating_point() else int(number)
            for name, number in zip(names, numbers, strict=True)
        }
    return {name: _finite(value.item() if hasattr(value, "item") else value) for name, value in values.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value


def _step_of(line: bytes) -> float:
    try:
        return float(parse_json(line)["step"])
    except (UnreadableError, LookupError, TypeError, ValueError, OverflowError):
        return float("inf")


def _holds_other_files(path: Path) -> bool:
    """Whether a folder that no run has begun in holds something of the user's."""
    if not path.is_dir() or (path / "run.json").exists():
        return False
    with machine_errors(path):
        return any(not (file.name == ".lock" or file.name.endswith(".tmp")) for file in path.iterdir())


def _cut_incomplete_line(file: Path) -> None:
    """Cut a last line that a kill has left incomplete, so that the next row does not continue it."""
    with machine_errors(file), file.open("rb+") as rows:
        content = rows.read()
        if content and not content.endswith(b"\n"):
            rows.truncate(content.rfind(b"\n") + 1)

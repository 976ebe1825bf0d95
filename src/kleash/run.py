"""A run folder: what a stage was asked, what it was made from, what it measured, and the state to go on from.

    out/
      run.json          config, seed, versions, hashes of data and parents, gates, results, status
      metrics.jsonl     one object a step
      checkpoints/      the state to go on from
      …                 the artifact itself, in the ecosystem's formats

Every write is atomic (a new file beside the old one, synced, then renamed), so that a kill at any instant leaves either
the state before or the state after.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError

import kleash
from kleash.errors import InputError, MachineError
from kleash.memory import peak_memory, reset_peak

Fingerprints = Mapping[str, Mapping[str, str]]
"""What a run was made from: role → {"path", "sha256"}."""

# Where and how often things are written changes nothing about the result, so a run may go on with other values.
NOT_IDENTITY = frozenset({"out", "force", "trackers", "save_every", "keep_states", "log_rollouts", "device", "config"})


class RunFolder:
    """The folder of one run of one stage; new, to be gone on with, or finished."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self._started = time.monotonic()
        reset_peak()

    @classmethod
    def open(cls, path: Path, *, stage: str, config: BaseModel, inputs: Fingerprints) -> RunFolder:
        """Open a folder for a run, new or to be gone on with.

        Args:
            path: the folder; made if missing.
            stage: name of the stage.
            config: the run's config; its fields must agree with an earlier run's in the same folder.
            inputs: data and parents by role, with their hashes; they must agree too.

        Raises:
            InputError: the folder holds another run; the message names what differs (F11).
            MachineError: the folder cannot be written.
        """
        settings = config.model_dump(mode="json")
        identity = {"stage": stage, **{k: v for k, v in settings.items() if k not in NOT_IDENTITY}}
        identity |= {f"sha256 of {role}": value["sha256"] for role, value in inputs.items()}
        record = read_record(path)
        if record is not None and record["identity"] != identity and not _has_work(path, record):
            record = None  # an earlier attempt ended before it had done anything: there is nothing to protect
        elif record is not None:
            _refuse_other(path, record["identity"], identity, inputs)
            record["config"] = settings
            return cls(path, record)
        if path.is_dir() and any(path.iterdir()) and not (path / "run.json").exists():
            raise InputError(f"{path} holds files that are not a kleash run; choose another --out or empty it")
        record = {
            "kleash": kleash.__version__,
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
            folder.save()
        return folder

    @property
    def finished(self) -> bool:
        """Whether the stage has done all it was asked."""
        return bool(self.record["status"] == "finished")

    @property
    def checkpoints(self) -> Path:
        """Where the states to go on from lie."""
        return self.path / "checkpoints"

    def save(self) -> None:
        """Write run.json."""
        write_json(self.path / "run.json", self.record)

    def note(self, section: str, **values: Any) -> None:
        """Add values to a section of run.json (`results`, `gates`, `formulas`, …) and write it."""
        self.record.setdefault(section, {}).update(values)
        self.save()

    def once(self, name: str, measure: Callable[[], float]) -> float:
        """A figure that is measured once, before training, and found again under `results` when the run goes on."""
        if name not in self.record["results"]:
            self.note("results", **{name: measure()})
        value: float = self.record["results"][name]
        return value

    def log(self, step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Append one object to metrics.jsonl and return it."""
        row = {"step": step, **{key: _plain(value) for key, value in metrics.items()}}
        with machine_errors(self.path), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Append rows, each with its `step`, to a JSONL file of the folder."""
        with machine_errors(self.path), (self.path / name).open("a") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def rewind(self, step: int) -> None:
        """Forget what JSONL files say of steps after `step`: they are about to be done again."""
        for file in self.path.glob("*.jsonl"):
            rows = [line for line in file.read_text().splitlines() if _step_of(line) <= step]
            write_text(file, "".join(line + "\n" for line in rows))

    def metrics(self) -> list[dict[str, Any]]:
        """All of metrics.jsonl."""
        return read_jsonl(self.path / "metrics.jsonl")

    def finish(self, **results: Any) -> RunFolder:
        """Mark the run as finished and write its results, and the memory it took since it was opened last, in bytes."""
        self.record["status"] = "finished"
        self.record["peak_memory"] = peak_memory()
        self.record["seconds"] += round(time.monotonic() - self._started, 3)
        if "out" in self.record["gates"]:  # what the verdict speaks of: a gate in trusts it while this hash agrees
            self.record["gates"]["out"]["sha256"] = sha256_of(self.path)
        self.note("results", **results)
        return self


def read_record(path: Path) -> dict[str, Any] | None:
    """The run.json of a folder, or None where there is none."""
    try:
        record: dict[str, Any] = json.loads((path / "run.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError as error:
        raise InputError(f"{path / 'run.json'} is not JSON ({error}); remove the folder or restore the file") from None
    return record


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def write_text(path: Path, text: str) -> None:
    """Replace a file by text, atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with machine_errors(path):
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Replace a file by JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make or replace a folder: `fill` writes into a new one, which then takes the old one's place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with machine_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)


def sha256_of(path: Path) -> str:
    """Hash of a file, or of a folder's own files, without what a run leaves beside a model."""
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    aside = {"run.json", "metrics.jsonl", "samples.jsonl", "rollouts.jsonl", "README.md"}
    for file in sorted(path.iterdir()):
        if file.is_file() and file.name not in aside and not file.name.startswith("."):
            digest.update(file.name.encode())
            digest.update(sha256_of(file).encode())
    return digest.hexdigest()


def fingerprint(path: str | Path) -> dict[str, str]:
    """Path and hash of a file or folder; a name that is no path here (a hub name) stands for itself."""
    found = Path(path)
    if not found.exists():
        return {"path": str(path), "sha256": hashlib.sha256(str(path).encode()).hexdigest()}
    return {"path": str(path), "sha256": sha256_of(found)}


def derive_seed(*parts: object) -> int:
    """A seed for a named purpose, e.g. `derive_seed(config.seed, "rollout", step)`."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1


@cache
def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    names = ("torch", "transformers", "tokenizers", "datasets", "numpy")
    return {
        "python": platform.python_version(),
        "kleash": kleash.__version__,
        **{n: metadata.version(n) for n in names},
    }


@contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into one line."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MachineError(f"{path}: {reason}; free space or choose another place, then run again") from None


def _has_work(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether a run has got so far that starting anew would lose something."""
    return (
        record["status"] == "finished"
        or any(path.glob("checkpoints/step-*"))
        or bool(read_jsonl(path / "metrics.jsonl"))
    )


def _refuse_other(path: Path, old: Mapping[str, Any], new: Mapping[str, Any], inputs: Fingerprints) -> None:
    for key in [*new, *(key for key in old if key not in new)]:
        if old.get(key) == new.get(key):
            continue
        role = key.removeprefix("sha256 of ")
        if role != key and role in inputs:
            what = f"with another {role} (now {inputs[role]['path']}, whose content differs)"
        else:
            what = f"with {key} = {old.get(key)!r}, and now it is {new.get(key)!r}"
        raise InputError(f"{path} was made {what}; choose another --out, or remove the folder to start anew")


def _plain(value: Any) -> Any:
    """A number as JSON has it; NaN and infinities, which JSON has not, as None."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float) and (number != number or abs(number) == float("inf")):
        return None
    return number


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")

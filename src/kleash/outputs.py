"""Is an output done already with these settings? One answer for run folders and for files of rows.

An output is identified by the stage, the settings that change the result, and the hash of everything that it
was made from. Paths are not part of it. The identity of a folder is in its run.json, that of a file in the
`….summary.json` next to it. An output with another identity is never overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from kleash.config import Config, shorten
from kleash.content import UNKNOWN, Fingerprints, fingerprints
from kleash.errors import ChangedError, DataError, listed
from kleash.io import Json, beside, clear_copies, machine_errors, read_json, write_json
from kleash.lock import lock

SCHEMA = 1
"""Schema version of run.json and of summary files. It rises with every change that makes older ones misleading."""

Identity = Json
"""Stage and settings by name, and `sha256 of ROLE` for each input of the output."""

HASH = "sha256 of "


def identity_of(stage: str, config: Config, inputs: Fingerprints | None = None) -> Identity:
    """What the output of a stage depends on.

    Args:
        stage: its name.
        config: the settings.
        inputs: its inputs by role; None: those that the config names.
    """
    inputs = fingerprints(config) if inputs is None else inputs
    hashes = {f"{HASH}{role}": value["sha256"] for role, value in inputs.items()}
    return {"stage": stage, **config.identity(), **hashes}


def refuse_other(
    out: Path, old: Mapping[str, Any], new: Mapping[str, Any], paths: Mapping[str, str], *, hint: str = ""
) -> None:
    """Refuse to continue an output of another identity (F11).

    Args:
        out: the output.
        old: its identity.
        new: the requested identity.
        paths: where the inputs are now, by role, for the message.
        hint: what else can be done, for the message.

    Raises:
        ChangedError: naming what differs.
    """
    differences = [
        _difference(key, old.get(key), new.get(key), paths)
        for key in [*new, *(key for key in old if key not in new)]
        if old.get(key) != new.get(key)
    ]
    if not differences:
        return
    raise ChangedError(
        f"{out} exists and was written with other settings ({listed(differences)}); delete it or choose "
        f"another --out{hint}",
        out,
    )


def refuse_other_schema(file: Path, record: Mapping[str, Any]) -> None:
    """Refuse a record written by another schema version of kleash.

    Raises:
        DataError: one line with the remedy.
    """
    schema = record.get("schema")
    if schema != SCHEMA:
        version = "has no schema version (kleash 0.1)" if schema is None else f"has schema version {schema}"
        raise DataError(
            f"{file} {version}, and this kleash reads version {SCHEMA}; delete it and run its stage again, or use the "
            "version that wrote it"
        )


C = TypeVar("C", bound=Config)
P = ParamSpec("P")
T = TypeVar("T")


def only_writer(run: Callable[Concatenate[C, P], T]) -> Callable[Concatenate[C, P], T]:
    """Make a stage without a run folder the only writer of `config.out` while it goes on.

    Raises:
        InputError: another process does.
    """

    @wraps(run)
    def run_alone(config: C, /, *arguments: P.args, **live: P.kwargs) -> T:
        out: Path = getattr(config, "out")  # noqa: B009
        with machine_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer = lock(out.with_name(f".{out.name}.lock"), out)
        except OSError:  # nothing can be written there, which does not matter where all is done
            return run(config, *arguments, **live)
        try:
            clear_copies(out)
            return run(config, *arguments, **live)
        finally:
            writer.release()

    return run_alone


def is_done(out: Path, identity: Identity, *, paths: Mapping[str, str] | None = None) -> bool:
    """Whether a file exists and was written with these settings and inputs.

    Args:
        out: the file.
        identity: of `identity_of`.
        paths: where the inputs are, by role, for the message.

    Raises:
        ChangedError: it exists with another identity; it is not overwritten.
        DataError: no stage finished it.
    """
    if not out.exists():
        return False
    record = _summary(out)
    if record is None:
        raise DataError(f"{out} exists and no stage of kleash finished it; delete it or choose another --out")
    refuse_other(out, record["identity"], identity, paths or {})
    return True


def finish(out: Path, identity: Identity, results: Mapping[str, Any] | None) -> None:
    """Write the identity and the figures of a file next to it, which marks the file as done.

    Args:
        out: the file.
        identity: of `identity_of`.
        results: figures; None where the stage has none; the record is then a hidden file.

    It is written before the file itself, so that a kill between the two leaves nothing that cannot be continued.
    """
    file = _hidden(out) if results is None else summary_of(out)
    write_json(file, {"schema": SCHEMA, "identity": identity, "results": results})


def results_of(out: Path) -> Json | None:
    """The figures written next to a file, or in a folder of exported labels; None where its stage writes none."""
    if (out / "labels.json").is_file():
        return read_json(out / "labels.json")
    summary = summary_of(out)
    return _read(summary)["results"] if summary.exists() else None


def set_aside(out: Path) -> Path:
    """Rename an output and its record, `ppo` to `ppo.old-1`, to make place for a new one; returns the new name.

    A cache of replies beside it stays: it is of use to the new one.
    """
    number = 1
    while _aside(out, number).exists():
        number += 1
    aside = _aside(out, number)
    if summary_of(out).exists():
        summary_of(out).replace(summary_of(aside))
    if _hidden(out).exists():
        _hidden(out).replace(_hidden(aside))
    return out.replace(aside)


def _aside(out: Path, number: int) -> Path:
    return out.with_name(f"{out.name}.old-{number}") if out.is_dir() else beside(out, f"old-{number}")


def summary_of(out: Path) -> Path:
    """The path of the summary of a file."""
    return beside(out, "summary", ending=".json")


def _summary(out: Path) -> Json | None:
    for file in (summary_of(out), _hidden(out)):
        if file.exists():
            return _read(file)
    return None


def _read(file: Path) -> Json:
    remedy = "delete it and its output, or restore it"
    record = read_json(file, remedy)
    refuse_other_schema(file, record)
    if not isinstance(record.get("identity"), dict) or not isinstance(record.get("results", 0), dict | None):
        raise DataError(f"{file} is damaged: it should hold 'identity' and 'results'; {remedy}")
    return record


def _hidden(out: Path) -> Path:
    return out.with_name(f".{out.name}.json")


def _difference(key: str, old: Any, new: Any, paths: Mapping[str, str]) -> str:
    role = key.removeprefix(HASH)
    if role == key:
        return f"{key} {_shown(old)}, now {_shown(new)}"
    if new is None:
        return f"{role} was given, now it is not"
    where = f" in {paths[role]}" if role in paths else ""
    if old is None:
        return f"{role} was not given, now it is{where}"
    return f"the content of {role}{where} {'cannot be compared' if str(new).endswith(UNKNOWN) else 'differs'}"


def _shown(value: Any) -> str:
    return "null" if value is None else shorten(str(value))

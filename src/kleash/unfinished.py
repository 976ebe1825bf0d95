"""Outputs that no stage has finished: named as such, with how far it came, when a later stage is given them."""

from __future__ import annotations

from pathlib import Path

from kleash.errors import DataError, InputError, ModelError
from kleash.io import Json, beside, read_json, read_jsonl
from kleash.lock import is_locked


def refuse_unfinished_run(path: Path) -> None:
    """Refuse the folder of a run that was interrupted, was stopped by a fault, or still goes on.

    Args:
        path: a folder, of any origin; one without run.json is not looked into.

    Raises:
        ModelError: names the run, the step and what to do.
    """
    if (path / "run.json").is_file():
        record = read_json(path / "run.json", "delete the folder or restore the file")
        if record.get("status") not in (None, "finished"):
            raise ModelError(f"{path} {'; '.join(state_of(path, record))}")


def refuse_unfinished_rows(path: Path) -> None:
    """Explain why a file of rows is missing, where the stage that writes it left a trace.

    Args:
        path: a file that does not exist.

    Raises:
        DataError: the stage was interrupted, or still goes on, or a judge's labels were refused.
    """
    refused = beside(path, "refused")
    if refused.exists():
        raise DataError(
            f"{path}: the labels of this judge failed their checks and are in {refused}; mend what they found, or run "
            "`kleash judge` again with --force"
        )
    lock = path.with_name(f".{path.name}.lock")
    if is_locked(lock):
        raise DataError(f"{path} is still being written; wait until its command has finished")
    pool = beside(path, "pool")
    hidden = (path.with_name(f".{name}.blocks") for name in (path.name, pool.name))
    if any(trace.exists() for trace in (lock, pool, beside(path, "calls", ending=".db"), *hidden)):
        raise DataError(f"{path} is not there: its command was interrupted; run its command again to finish it")


def state_of(path: Path, record: Json) -> tuple[str, str]:
    """What became of a run that is not finished, and what to do.

    Args:
        path: its folder.
        record: its run.json.
    """
    part, step = _progress(path, record)
    again = "run its command again to finish it"
    if is_locked(path / ".lock"):
        return f"still goes on{part}{step}", "wait until its command has finished"
    stopped = record.get("stopped")
    if isinstance(stopped, dict) and stopped.get("error") != "KeyboardInterrupt" and stopped.get("reason"):
        return f"was stopped{part}{step}: {str(stopped['reason'])[:300]}", f"mend that and {again}"
    return f"was interrupted{part}{step}", again


def _progress(path: Path, record: Json) -> tuple[str, str]:
    """The part of a run of several models that is not finished, and the step: ` in members/2`, ` at step 4 of 20`."""
    for part in (*sorted(path.glob("members/*")), path / "validation"):
        if (part / "run.json").is_file():
            of_part = read_json(part / "run.json")
            if of_part.get("status") != "finished":
                return f" in {part.relative_to(path)}", _progress(part, of_part)[1]
    try:
        steps = [row["step"] for row in read_jsonl(path / "metrics.jsonl") if isinstance(row.get("step"), int)]
    except (InputError, KeyError):
        steps = []
    training = record.get("training")
    total = training.get("steps") if isinstance(training, dict) else None
    step = max(steps, default=0)
    if total is None:
        return "", f" at step {step}" if step else " before its first step"
    return (
        "",
        f" at step {step} of {total}" if step < total else f" after step {step} of {total}, while it was measured",
    )

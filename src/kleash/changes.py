"""What may differ between how a run began and how it goes on, and the record of it.

A run that a fault has stopped goes on from its last state once that is mended: with the repaired reward or row
(`--accept-changed reward`), with another size of micro-batches, or for more steps. Each difference is recorded in
run.json under `changes`; any other is refused (F11).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kleash.config import Config
from kleash.content import UNKNOWN, Fingerprints
from kleash.io import Json
from kleash.outputs import HASH, Identity, refuse_other

STEPS = ("max_steps", "epochs")

WITHOUT_ASKING = ("micro_batch_tokens",)
"""Settings that move a result by rounding only: recorded, and not part of the identity."""


def changes_of(path: Path, record: Json, config: Config, identity: Identity, inputs: Fingerprints) -> list[Json]:
    """The changes with which a run goes on, for run.json: `step`, `what`, `from`, `to`, `when`.

    Args:
        path: the run's folder.
        record: its run.json.
        config: the settings with which it is to go on.
        identity: of these settings and of `inputs`.
        inputs: fingerprints by role.

    Raises:
        DataError: a difference that was not accepted, or that a finished run cannot take; names the option for it.
    """
    old: Identity = record["identity"]
    differing = [key for key in {**old, **identity} if old.get(key) != identity.get(key)]
    accepted = config.accepted
    if record["status"] == "finished":  # an object without an identity, and a user who says that it is the same
        same = [key for key in differing if _is_unknown(identity.get(key)) and key.removeprefix(HASH) in accepted]
        differing = [key for key in differing if key not in same]
    names = [key.removeprefix(HASH) for key in differing]
    longer = _is_longer(old, identity)
    refused = [name for name in names if name not in accepted and not (longer and name in STEPS)]
    finished, step = record["status"] == "finished", newest_step(path)
    if refused or (finished and names and not (longer and step is not None)):
        unknown = [name for name in refused if _is_unknown(identity.get(f"{HASH}{name}"))]
        hint = _hint(path, refused, config, finished=finished, longer=longer, has_state=step is not None)
        if unknown:
            hint = (
                f"; kleash cannot see whether this {unknown[0]} is the earlier one: if it is, add --accept-changed "
                f"{' '.join(refused)} (in Python: accept_changed)"
            )
        refuse_other(path, old, identity, {role: value["path"] for role, value in inputs.items()}, hint=hint)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    values = [(name, old.get(key), identity.get(key)) for name, key in zip(names, differing, strict=True)]
    if not finished or names:
        settings = config.model_dump(mode="json")
        values += [(name, record["config"].get(name), settings.get(name)) for name in WITHOUT_ASKING]
    return [
        {"step": step or 0, "what": name, "from": before, "to": now, "when": when}
        for name, before, now in values
        if before != now
    ]


def newest_step(path: Path) -> int | None:
    """The step of the newest training state in a run's folder; None where there is none.

    Of an ensemble it is the least of its members', and None where one of them has none.
    """
    members = [*path.glob("members/*"), *path.glob("validation")] if (path / "members").is_dir() else []
    if members:
        of_members = [newest_step(member) for member in members]
        return None if None in of_members else min(step for step in of_members if step is not None)
    steps = [
        int(state.name.removeprefix("step-")) for state in path.glob("checkpoints/step-*") if state.name[5:].isdigit()
    ]
    return max(steps, default=None)


def _is_unknown(value: object) -> bool:
    return str(value).endswith(UNKNOWN)


def _is_longer(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the new settings have more steps; unknown, and so no, where one counts steps and the other epochs."""
    before, now = old.get("max_steps"), new.get("max_steps")
    if before is None or now is None:
        before, now = (old.get("epochs"), new.get("epochs")) if before is now else (None, None)
    return isinstance(before, int | float) and isinstance(now, int | float) and now > before


def _hint(path: Path, refused: list[str], config: Config, *, finished: bool, longer: bool, has_state: bool) -> str:
    """How to go on all the same."""
    if not finished:
        if refused and set(refused) <= config.MAY_CHANGE:
            return f"; to go on from its last state with the change, add --accept-changed {' '.join(refused)}"
        return ""
    if not longer:
        return "; it is finished: to go on with the change, raise --max-steps too" if has_state and not refused else ""
    if not has_state:
        start = f"a member, --model {path}/members/0," if (path / "members").is_dir() else f"it with --model {path}"
        return (
            f"; it is finished and kept no training state (--keep-states 1 keeps one): to train on, start from {start} "
            f"and another --out"
        )
    return f"; to train on with the change, add --accept-changed {' '.join(refused)}" if refused else ""

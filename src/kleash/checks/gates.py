"""Gates: a stage's verdict on its own work, and the next stage's look at it.

A verdict is a list of named checks, and passes if none of them failed. The gate out of a stage measures its own failure
mode and writes the verdict to run.json, with the hash of what it speaks of; a failed one is said and the folder is
kept. The gate in of the next stage trusts it while the hash agrees, measures where it does not, and refuses to build on
a failed one, unless forced.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kleash.content import folder_hash
from kleash.errors import GateError
from kleash.run import RunFolder, read_record

logger = logging.getLogger("kleash")

CheckReport = dict[str, Any]
"""{"passed", "finding", "advice", "figures", "checks"} of run.json, with "sha256" once the artifact is written."""

MARKS: Mapping[bool | None, str] = {True: "ok", False: "FAILED", None: "unknown"}
"""How a verdict is told in one word."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question to an artifact, and what was found."""

    name: str
    """What is asked for, as it should be: "responses end"."""
    passed: bool | None
    """None: it could not be measured, or the figure alone cannot tell a healthy artifact from a broken one."""
    finding: str
    """What was found, with the figure."""
    advice: str = ""
    """What to try; empty where there is nothing to try."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The figures the finding rests on."""


def check_report(checks: Sequence[Check]) -> CheckReport:
    """Many checks as one: passed if none failed, told by the first that failed, else by the first of all."""
    failed = [check for check in checks if check.passed is False]
    told = (failed or list(checks))[0]
    counts = {mark: sum(check.passed is passed for check in checks) for passed, mark in MARKS.items()}
    finding = told.finding
    if len(checks) > 1:
        finding += f" ({', '.join(f'{count} {mark.lower()}' for mark, count in counts.items() if count)})"
    return {
        "passed": not failed,
        "finding": finding,
        "advice": told.advice,
        "figures": dict(told.figures),
        "checks": [asdict(check) for check in checks],
    }


def record_checks(folder: RunFolder, *, checks: Sequence[Check]) -> None:
    """Write a stage's verdict on itself to run.json, and say what failed or stayed open.

    Args:
        folder: the run.
        checks: at least one.
    """
    folder.note("gates", out=check_report(checks))
    for check in checks:
        if check.passed is False:
            logger.warning(
                "gate out of %s failed: %s: %s; %s", folder.record["stage"], check.name, check.finding, check.advice
            )
        elif check.passed is None and check.advice:
            logger.info("gate out of %s: %s? %s; %s", folder.record["stage"], check.name, check.finding, check.advice)


def check_parents(folder: RunFolder, *, role: str, parent: str | Path, force: bool) -> None:
    """Look at the verdict a parent left on itself.

    A parent that is no kleash run (a hub model, a plain folder) has no verdict: that is noted and passes. One whose
    content is no longer what its verdict speaks of is measured afresh.

    Args:
        folder: the run that is about to build on the parent.
        role: what the parent is to it: `model`, `reward`, ….
        parent: the parent's folder or name.
        force: go on all the same.

    Raises:
        GateError: the parent failed its own gate.
    """
    record = read_record(Path(parent)) if Path(parent).is_dir() else None
    found = (record or {}).get("gates", {}).get("out")
    if found is None:
        folder.note("gates", **{f"in ({role})": {"passed": None, "finding": f"{parent} carries no verdict"}})
        return
    fault = "failed its own gate"
    if changed(Path(parent), found):
        from kleash.checks.artifact import measure  # which is made of checks, and so imports this module

        found = check_report(measure(Path(parent)))
        found["finding"] = f"changed since its own verdict, measured afresh: {found['finding']}"
        fault = "fails its gate"
    folder.note("gates", **{f"in ({role})": {"passed": found["passed"], "finding": found["finding"], "forced": force}})
    if found["passed"] is False and not force:
        raise GateError(f"{role} {parent} {fault}: {found['finding']}; {found['advice']}, or --force to go on")


def changed(path: Path, found: CheckReport) -> bool:
    """Whether a folder is no longer what its verdict speaks of; a verdict without a hash is taken at its word."""
    return found.get("sha256") not in (None, folder_hash(path))

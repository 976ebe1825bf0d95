"""Gates: a stage's verdict on its own work, and the next stage's look at it.

A verdict is a list of named checks, and passes if none of them failed. The gate out of a stage measures its own failure
mode and writes the verdict to run.json, with the hash of what it speaks of; a failed one is said and the folder is
kept. The gate in of the next stage trusts it while the hash agrees, measures where it does not, and refuses to build on
a failed one, unless forced.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from kleash.checks.artifact import measure
from kleash.checks.check import Check, changed, verdict
from kleash.errors import GateError
from kleash.run import RunFolder, read_record

logger = logging.getLogger("kleash")


def record_checks(folder: RunFolder, *, checks: Sequence[Check]) -> None:
    """Write a stage's verdict on itself to run.json, and say what failed or stayed open.

    Args:
        folder: the run.
        checks: at least one.
    """
    folder.note("gates", out=verdict(checks))
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
        found = verdict(measure(Path(parent)))
        found["finding"] = f"changed since its own verdict, measured afresh: {found['finding']}"
        fault = "fails its gate"
    folder.note("gates", **{f"in ({role})": {"passed": found["passed"], "finding": found["finding"], "forced": force}})
    if found["passed"] is False and not force:
        raise GateError(f"{role} {parent} {fault}: {found['finding']}; {found['advice']}, or --force to go on")

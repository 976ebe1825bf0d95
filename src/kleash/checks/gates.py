"""Gates: a stage checks its own result, and the next stage reads those checks.

A stage ends by checking for its own failure mode (`record_checks`): the checks go to run.json with the hash of the
artifact, and a failed check is a warning that says what the next stage will do; the folder stays. The next stage starts
with its parents (`check_parents`): it trusts their checks while the hash agrees, runs them again where it does not, and
refuses to build on a parent that failed, unless forced.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from kleash.checks.artifact import measure
from kleash.checks.check import Check, Verdict, changed, verdict
from kleash.errors import GateError
from kleash.run import RunFolder, read_record

logger = logging.getLogger("kleash")


def record_checks(folder: RunFolder, *, checks: Sequence[Check]) -> None:
    """Write a stage's checks to run.json, and log those that failed or are unknown.

    Args:
        folder: the run.
        checks: at least one.
    """
    folder.note("gates", out=verdict(checks))
    for check in checks:
        text = f"check of {folder.record['stage']}: {check.name}: {check.finding}"
        if check.passed is False:
            logger.warning("failed %s; %s", text, check.advice)
        elif check.passed is None and check.advice:
            logger.info("undecided %s; %s", text, check.advice)
    if any(check.passed is False for check in checks):
        logger.warning("a stage that starts from %s will refuse it (exit code 1) unless given --force", folder.path)


def check_parents(folder: RunFolder, *, role: str, parent: str | Path, force: bool) -> None:
    """Refuse a parent that failed its own checks.

    A parent without run.json (a hub model, a plain folder) passes with a note. If its files changed since it was
    checked, the checks run again.

    Args:
        folder: the run that is about to build on the parent.
        role: the parent's role: `model`, `reward`, ….
        parent: the parent's folder or name.
        force: continue anyway.

    Raises:
        GateError: the parent failed its own checks.
    """
    record = read_record(Path(parent)) if Path(parent).is_dir() else None
    earlier: Verdict | None = (record or {}).get("gates", {}).get("out")
    if earlier is None:
        folder.note("gates", **{f"in ({role})": {"passed": None, "finding": f"{parent} carries no verdict"}})
        return
    current, fault = earlier, "failed its own checks"
    if changed(Path(parent), earlier):
        current, fault = verdict(measure(Path(parent))), "fails its checks"
        current["finding"] = f"changed since its own checks, which ran again: {current['finding']}"
    summary = {"passed": current["passed"], "finding": current["finding"], "forced": force}
    folder.note("gates", **{f"in ({role})": summary})
    if current["passed"] is False and not force:
        raise GateError(
            f"{role} {parent} {fault}: {current['finding']}; {current['advice']}, or add --force to continue anyway"
        )

"""Gates: a stage's verdict on its own work, and the next stage's look at it.

The gate out of a stage measures its own failure mode and writes the verdict to run.json; a failed one is said and the
folder is kept. The gate in of the next stage reads that verdict and refuses to build on a failed one, unless forced.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from kleash.errors import GateError
from kleash.run import RunFolder, read_record

logger = logging.getLogger("kleash")


def gate_out(folder: RunFolder, *, passed: bool, finding: str, advice: str, **figures: Any) -> None:
    """Write a stage's verdict on itself to run.json, and say it where it failed.

    Args:
        folder: the run.
        passed: the verdict.
        finding: what was found, with the figure.
        advice: what to try where it failed.
        figures: the figures the verdict rests on.
    """
    verdict = {"passed": bool(passed), "finding": finding, "advice": advice, "figures": figures}
    folder.note("gates", out=verdict)
    if not passed:
        logger.warning("gate out of %s failed: %s; %s", folder.record["stage"], finding, advice)


def gate_in(folder: RunFolder, *, role: str, parent: str | Path, force: bool) -> None:
    """Look at the verdict a parent left on itself.

    A parent that is no kleash run (a hub model, a plain folder) has no verdict: that is noted and passes.

    Args:
        folder: the run that is about to build on the parent.
        role: what the parent is to it: `model`, `reward`, ….
        parent: the parent's folder or name.
        force: go on all the same.

    Raises:
        GateError: the parent failed its own gate.
    """
    record = read_record(Path(parent)) if Path(parent).is_dir() else None
    verdict = (record or {}).get("gates", {}).get("out")
    if verdict is None:
        folder.note("gates", **{f"in ({role})": {"passed": None, "finding": f"{parent} carries no verdict"}})
        return
    folder.note(
        "gates", **{f"in ({role})": {"passed": verdict["passed"], "finding": verdict["finding"], "forced": force}}
    )
    if not verdict["passed"] and not force:
        raise GateError(
            f"{role} {parent} failed its own gate: {verdict['finding']}; {verdict['advice']}, or --force to go on"
        )

"""A check: one question to an artifact and what was found; many of them make a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kleash.run import sha256_of

LOOK = "look at the rows with `kleash inspect`"

Verdict = dict[str, Any]
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


def verdict(checks: Sequence[Check]) -> Verdict:
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


def changed(path: Path, found: Verdict) -> bool:
    """Whether a folder is no longer what its verdict speaks of; a verdict without a hash is taken at its word."""
    return found.get("sha256") not in (None, sha256_of(path))

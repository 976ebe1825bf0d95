"""A check: one question to an artifact, and the answer; many of them make the verdict that run.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from kleash.content import folder_hash
from kleash.io import Json

LOOK = "look at the rows with `kleash inspect`"

MARKS: Mapping[bool | None, str] = {True: "ok", False: "FAILED", None: "unknown"}
"""The result of a check in one word."""


class Verdict(TypedDict, total=False):
    """What run.json holds of many checks."""

    passed: bool | None
    """Whether none of them failed; None: there was nothing to measure."""
    finding: str
    """The first check that failed, else the first of all, and how many are ok, failed, unknown."""
    advice: str
    """What to try; empty where there is nothing to try."""
    figures: Json
    """The figures behind the finding."""
    checks: list[Json]
    """All of them."""
    sha256: str
    """Hash of the artifact that the verdict is about, once it is written."""
    forced: bool
    """Whether --force was given, in the verdict on a parent."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question to an artifact, and the answer."""

    name: str
    """What is asked for, as it should be: "responses end"."""
    passed: bool | None
    """None: it could not be measured, or the figure by itself cannot tell a healthy artifact from a broken one."""
    finding: str
    """The answer, with the figure."""
    advice: str = ""
    """What to try; empty where there is nothing to try."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The figures behind the finding."""


def answer(name: str, passed: bool | None, finding: str, advice: str = "", **figures: Any) -> Check:
    """A check with advice only where it did not pass.

    Args:
        name, passed, finding: see `Check`.
        advice: what to try if it failed or stayed open.
        figures: behind the finding.
    """
    return Check(name=name, passed=passed, finding=finding, advice="" if passed else advice, figures=figures)


def verdict(checks: Sequence[Check]) -> Verdict:
    """Many checks as one: passed if none failed, summed up by the first that failed, else by the first of all."""
    failed = [check for check in checks if check.passed is False]
    first = (failed or list(checks))[0]
    counts = {mark: sum(check.passed is passed for check in checks) for passed, mark in MARKS.items()}
    finding = first.finding
    if len(checks) > 1:
        finding += f" ({', '.join(f'{count} {mark.lower()}' for mark, count in counts.items() if count)})"
    return {
        "passed": not failed,
        "finding": finding,
        "advice": first.advice,
        "figures": dict(first.figures),
        "checks": [asdict(check) for check in checks],
    }


def changed(path: Path, earlier: Verdict) -> bool:
    """Whether a folder is no longer the one that a verdict is about; a verdict without a hash is taken at its word."""
    return earlier.get("sha256") not in (None, folder_hash(path))

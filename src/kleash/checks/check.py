"""A check: one question about an artifact and its answer. run.json holds a summary of many checks (a `Verdict`)."""

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
    """The summary of many checks in run.json."""

    passed: bool | None
    """False: a check failed. None: none failed, and the first one, whose finding is quoted, is unknown."""
    finding: str
    """The finding of the first failed check, else of the first check, and the numbers of ok, failed and unknown
    ones."""
    advice: str
    """What to try; empty where there is nothing to try."""
    figures: Json
    """The figures behind the finding."""
    checks: list[Json]
    """All checks."""
    sha256: str
    """Hash of the checked artifact, once it is written."""
    forced: bool
    """In the summary of a parent: whether --force was given."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question about an artifact, and its answer."""

    name: str
    """The desired property: "responses end"."""
    passed: bool | None
    """None: the figure could not be measured, its interval holds the threshold, or by itself it does not tell a healthy
    artifact from a broken one."""
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
        advice: what to try if the check failed or is unknown.
        figures: the figures behind the finding.
    """
    return Check(name=name, passed=passed, finding=finding, advice="" if passed else advice, figures=figures)


def verdict(checks: Sequence[Check]) -> Verdict:
    """Summarise checks, with the finding of the first failed one, else of the first."""
    failed = [check for check in checks if check.passed is False]
    first = (failed or list(checks))[0]
    counts = {mark: sum(check.passed is passed for check in checks) for passed, mark in MARKS.items()}
    finding = first.finding
    if len(checks) > 1:
        finding += f" ({', '.join(f'{count} {mark.lower()}' for mark, count in counts.items() if count)})"
    return {
        "passed": first.passed,
        "finding": finding,
        "advice": first.advice,
        "figures": dict(first.figures),
        "checks": [asdict(check) for check in checks],
    }


def changed(path: Path, earlier: Verdict) -> bool:
    """Whether a folder changed since it was checked; a summary without a hash counts as unchanged."""
    return earlier.get("sha256") not in (None, folder_hash(path))

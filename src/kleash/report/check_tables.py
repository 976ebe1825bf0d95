"""Verdicts in the terminal: one line a gate, and a table of its checks."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kleash.checks.artifact import Findings
from kleash.checks.check import MARKS

COLOURS = {True: "green", False: "bold red", None: "yellow"}


def show_findings(findings: Findings, console: Console) -> None:
    """Print what was found out about an artifact."""
    console.print(Text(f"{findings.path}: {findings.kind}"), soft_wrap=True)
    for note in findings.notes:
        console.print(Text(note, "yellow"), soft_wrap=True)
    for name, found in findings.gates.items():
        console.print(_line(name, found), soft_wrap=True)
        if found.get("checks"):
            console.print(_table(found["checks"]))


def _line(name: str, found: dict[str, Any]) -> Text:
    passed = found["passed"]
    return Text.assemble(f"{name}: ", (MARKS[passed], COLOURS[passed]), f": {found['finding']}")


def _table(checks: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        finding = Text(check["finding"])
        if check["advice"]:
            finding.append(f"\n→ {check['advice']}", "dim")
        table.add_row(Text(MARKS[check["passed"]], COLOURS[check["passed"]]), Text(check["name"]), finding)
    return table

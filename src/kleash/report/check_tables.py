"""The checks of an artifact in the terminal: one line per summary, and a table of its checks."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kleash.checks.artifact import CheckReport
from kleash.checks.check import MARKS, Verdict
from kleash.io import Json

COLOURS = {True: "green", False: "bold red", None: "yellow"}


def show_checks(report: CheckReport, console: Console) -> None:
    """Print the checks of an artifact."""
    console.print(Text(f"{report.path}: {report.kind}"), soft_wrap=True)
    for note in report.notes:
        console.print(Text(note, "yellow"), soft_wrap=True)
    for name, entry in report.gates.items():
        console.print(_line(name, entry), soft_wrap=True)
        if entry.get("checks"):
            console.print(_table(entry["checks"]))


def _line(name: str, entry: Verdict) -> Text:
    passed = entry["passed"]
    return Text.assemble(f"{name}: ", (MARKS[passed], COLOURS[passed]), f": {entry['finding']}")


def _table(checks: list[Json]) -> Table:
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

"""What `kleash judge` and `kleash revise` measured, as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kleash.checks.gates import MARKS
from kleash.report.verdicts import COLOURS
from kleash.stages.files import results_of

Line = tuple[str, str | Text]


def show(out: Path, console: Console | None = None) -> None:
    """Print the figures beside a file of labels or demonstrations, if there are any.

    Args:
        out: the file.
        console: where to; None: stderr, since stdout is for results.
    """
    results = results_of(out)
    if results is None:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, found in judged(results) if "judge" in results else revised(results):
        table.add_row(Text(name), found if isinstance(found, Text) else Text(found))
    (console or Console(stderr=True)).print(table)


def judged(results: Mapping[str, Any]) -> list[Line]:
    """The report of a judge."""
    failures = results["failures"]
    lines: list[Line] = [
        ("judge", f"{results['judge']}, by {results['answers']}"),
        ("pairs", f"{results['pairs']}, {results['labels']} labelled, {results['cut']} with a text cut"),
        ("failures", f"{failures['unparsable']} unparsable, {failures['error']} errors"),
    ]
    if results["labels"]:
        people = results["people"]
        lines += [
            ("shown first wins, one order", _span(results["first_before"])),
            ("shown first wins, both orders", _span(results["first_after"])),
            ("verdict turns with the order", _span(results["flips"])),
            ("same answer again", f"{results['self_consistency']['mean']:.3f}"),
            ("length slope", _plus_minus(results["length_slope"])),
        ]
        if people:
            lines += [
                ("agrees with people, one order", _span(people["agreement_one_order"])),
                ("agrees with people, both orders", _span(people["agreement"])),
                ("calibration error", f"{people['ece']:.3f}"),
            ]
        injections = results["injections"]
        if injections and injections["injected"]:
            shift = f", its probability {injections['shift']['mean']:+.3f}"
            lines.append(("obeys a prompt injection", _span(injections["flipped"]) + shift))
        lines += [(f"principle {name}", _principle(found)) for name, found in results["principles"].items()]
    lines += _asked(results)
    lines += [
        (f"gate: {check['name']}",
         Text.assemble((MARKS[check["passed"]], COLOURS[check["passed"]]), f": {check['finding']}"))
        for check in results["gate"]["checks"]
    ]  # fmt: skip
    return lines


def revised(results: Mapping[str, Any]) -> list[Line]:
    """The report of critiques and revisions."""
    lines: list[Line] = [
        ("demonstrations", f"{results['demonstrations']} of {results['rows']} rows, {results['cut']} cut at the limit"),
        ("unchanged at the end", _span(results["unchanged"])),
    ]
    for kind in ("refusals", "harmful", "harmless"):
        title = "refusals" if kind == "refusals" else f"refusals of {kind} prompts"
        for when in ("before", "after"):
            lines.append((f"{title}, {when}", _span(results[f"refusals_{when}"][kind])))
    lines += [
        (f"principle {name}", f"{found['pairs']} revisions, {found['share']:.0%} changed nothing")
        for name, found in results["principles"].items()
        if found["pairs"]
    ]
    return [*lines, *_asked(results)]


def _principle(found: Mapping[str, Any]) -> str:
    against = (
        "unknown" if found[f"against_{whom}"]["share"] is None else f"{found[f'against_{whom}']['share']:.0%}"
        for whom in ("people", "others")
    )  # fmt: skip
    people, others = against
    return f"decided {found['decided']} of {found['asked']}, against people {people}, against the others {others}"


def _asked(results: Mapping[str, Any]) -> list[Line]:
    usage = results["usage"]
    mixed: list[Line] = [("mixed in", f"{results['mixed_in']} rows")] if results["mixed_in"] else []
    told = (
        f"{usage['questions']} questions, {usage['kept']} answered before; {usage['prompt_tokens']} + "
        f"{usage['completion_tokens']} tokens, cost {usage['cost']:.4g}, {usage['spent']:.4g} of it now"
    )
    return [*mixed, ("asked", told)]


def _span(found: Mapping[str, Any]) -> str:
    if found["share"] is None:
        return "unknown"
    return f"{found['share']:.1%}  [{found['low']:.1%}, {found['high']:.1%}] of {found['pairs']}"


def _plus_minus(found: Mapping[str, Any]) -> str:
    return "unknown" if found["value"] is None else f"{found['value']:+.3f} ± {found['se']:.3f}"

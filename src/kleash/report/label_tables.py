"""The results of `kleash judge` and `kleash revise` as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kleash.checks.check import MARKS
from kleash.outputs import results_of
from kleash.report.check_tables import COLOURS

Line = tuple[str, str | Text]


def show(out: Path, console: Console | None = None) -> None:
    """Print the results of a file of labels or demonstrations, if there are any.

    Args:
        out: the file.
        console: None: stderr, since stdout is for results.
    """
    results = results_of(out)
    if results is None:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in judge_lines(results) if "judge" in results else revise_lines(results):
        table.add_row(Text(name), value if isinstance(value, Text) else Text(value))
    (console or Console(stderr=True)).print(table)


def judge_lines(results: Mapping[str, Any]) -> list[Line]:
    """Lines of the results of a judge."""
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
            ("label turns with the order", _span(results["flips"])),
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
        if injections and injections["planted"]:
            shift = f", its probability {injections['shift']['mean']:+.3f}"
            lines.append(("obeys an injected instruction", _span(injections["flipped"]) + shift))
        lines += [(f"principle {name}", _principle(report)) for name, report in results["principles"].items()]
    lines += _usage(results)
    lines += [
        (f"check: {check['name']}",
         Text.assemble((MARKS[check["passed"]], COLOURS[check["passed"]]), f": {check['finding']}"))
        for check in results["gate"]["checks"]
    ]  # fmt: skip
    return lines


def revise_lines(results: Mapping[str, Any]) -> list[Line]:
    """Lines of the results of critiques and revisions."""
    lines: list[Line] = [
        ("demonstrations", f"{results['demonstrations']} of {results['rows']} rows, {results['cut']} cut at the limit"),
        ("unchanged at the end", _span(results["unchanged"])),
    ]
    critiques, taken_off = results["critiques"], results["taken_off"]
    if any(critiques.values()):
        lines.append(
            ("critiques", f"{critiques['without_words']} without words (their rows are left out), {critiques['cut']} "
                          f"cut at the limit, {critiques['refusals']} refuse")
        )  # fmt: skip
    if any(taken_off.values()):
        lines.append(
            ("taken off", f"thoughts of {taken_off['thoughts']} replies, the announcement of "
                          f"{taken_off['announcements']} revisions")
        )  # fmt: skip
    for kind in ("refusals", "harmful", "harmless"):
        title = "refusals" if kind == "refusals" else f"refusals of {kind} prompts"
        for when in ("before", "after"):
            lines.append((f"{title}, {when}", _span(results[f"refusals_{when}"][kind])))
    lines += [
        (f"principle {name}", f"{share['pairs']} revisions, {share['share']:.0%} changed nothing")
        for name, share in results["principles"].items()
        if share["pairs"]
    ]
    return [*lines, *_usage(results)]


def _principle(report: Mapping[str, Any]) -> str:
    people, others = (_percent(report[key]["share"]) for key in ("against_people", "against_others"))
    return f"decided {report['decided']} of {report['asked']}, against people {people}, against the others {others}"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.0%}"


def _usage(results: Mapping[str, Any]) -> list[Line]:
    usage = results["usage"]
    mixed_in: list[Line] = [("mixed in", f"{results['mixed_in']} rows")] if results["mixed_in"] else []
    line = (
        f"{usage['questions']}, {usage['kept']} of them cached; {usage['prompt_tokens']} + "
        f"{usage['completion_tokens']} tokens, cost {usage['cost']:.4g}, {usage['spent']:.4g} of it in this run"
    )
    return [*mixed_in, ("requests", line)]


def _span(share: Mapping[str, Any]) -> str:
    if share["share"] is None:
        return "unknown"
    return f"{share['share']:.1%}  [{share['low']:.1%}, {share['high']:.1%}] of {share['pairs']}"


def _plus_minus(slope: Mapping[str, Any]) -> str:
    return "unknown" if slope["value"] is None else f"{slope['value']:+.3f} ± {slope['se']:.3f}"

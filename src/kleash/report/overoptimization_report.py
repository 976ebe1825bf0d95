"""The Goodhart page: where gold turned while the proxy climbed, for someone who was not there. Reads only files.

Like the demo's report the page is self-contained, and texts by models are escaped, never markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kleash.errors import InputError
from kleash.evals.overoptimization import point_name
from kleash.io import Json, read_json, write_text
from kleash.report import figures
from kleash.report.html import environment
from kleash.run import read_record

LABELS = {"checkpoints": "the run", "best-of-n": "best of n"}


def write_page(folder: Path) -> Path:
    """Write report.html and curve.svg into the folder of an `overopt` run.

    Returns:
        Path of the page; both files were replaced atomically.

    Raises:
        InputError: the folder is not a finished `overopt` run.
    """
    record = read_record(folder)
    if record is None or record["stage"] != "overopt" or record["status"] != "finished":
        raise InputError(f"{folder} is not a finished run of `kleash overopt`; run it to its end first")
    svg = figures.kl_curves(record["results"]["roads"], LABELS)
    samples = read_json(folder / "shown.json")
    write_text(folder / "curve.svg", standalone(svg))
    page = folder / "report.html"
    write_text(page, environment().get_template("overoptimization.html.jinja").render(_context(record, samples, svg)))
    return page


def story(results: Mapping[str, Any]) -> str:
    """The findings in words and a table of the points, for a terminal.

    Args:
        results: of run.json.
    """
    blocks = []
    for name, analysis in results["roads"].items():
        lines = [*results["words"][name].values(), ""]
        lines.append(f"{LABELS[name]:12}  {'√KL':>6}  {'gold':>14}  {'proxy':>14}  {'chosen as best':>14}")
        for row in analysis["points"]:
            gold, proxy = (f"{row[key]['mean']:.2f} ± {row[key]['se']:.2f}" for key in ("gold", "proxy"))
            lines.append(
                f"{point_name(analysis['source'], row['point']):12}  {row['distance']['value']:6.2f}  {gold:>14}  "
                f"{proxy:>14}  {row['best_share']:14.0%}  {', '.join(_marks(analysis, row['point']))}".rstrip()
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _context(record: Mapping[str, Any], samples: Mapping[str, Any], svg: str) -> Json:
    results = record["results"]
    curves = {
        name: {
            **analysis,
            "words": results["words"][name],
            "label": LABELS[name],
            "marks": [_marks(analysis, row["point"]) for row in analysis["points"]],
            "names": [point_name(analysis["source"], row["point"]) for row in analysis["points"]],
        }
        for name, analysis in results["roads"].items()
    }
    main = next(iter(curves.values()))
    return {
        "headline": _headline(main),
        "curves": curves,
        "main": main,
        "svg": Markup(svg),  # not escaped: its texts are ours
        "samples": _samples(samples),
        "before": point_name(samples["source"], samples["before"]),
        "after": point_name(samples["source"], samples["after"]),
        "config": record["config"],
        "gates": {name: gate for name, gate in record["gates"].items() if gate["passed"] is False},
        "versions": record["versions"],
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


def _headline(curve: Mapping[str, Any]) -> str:
    best = curve["names"][curve["peak"]["index"]]
    return {
        "turned": f"Past {best}, it pleases the proxy and gets worse",
        "not yet": "Gold has not turned yet",
        "cannot tell": "The data cannot tell whether gold has turned",
    }[curve["peak_test"]["outcome"]]


def _marks(analysis: Mapping[str, Any], point: int) -> list[str]:
    """The marks of a point in the table."""
    words = {"peak": "gold is best", "recommended": "recommended"}
    return [word for name, word in words.items() if analysis[name]["point"] == point]


def _samples(samples: Mapping[str, Any]) -> list[Json]:
    """The samples with a tint for each piece: its drop as a share of the largest drop on the page, −1 to 1."""
    answers = [entry[side] for entry in samples["prompts"] for side in ("before", "after")]
    largest = max((abs(piece["drop"]) for answer in answers for piece in answer["pieces"]), default=0.0) or 1.0

    def tinted(pieces: Sequence[Mapping[str, Any]]) -> list[Json]:
        return [{**piece, "tint": round(45 * abs(piece["drop"]) / largest)} for piece in pieces]

    return [
        entry | {side: entry[side] | {"pieces": tinted(entry[side]["pieces"])} for side in ("before", "after")}
        for entry in samples["prompts"]
    ]


def standalone(svg: str) -> str:
    """The picture as a separate file: with a name space, and the page's colours, light and dark."""
    css = environment().get_template("style.css.jinja").render()
    colours = css[: css.index("* {")]  # the variables stand first
    style = f"<style>{colours}svg {{ background: var(--card); }}</style>"
    root = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"', 1)
    end = root.index(">") + 1
    return root[:end] + style + root[end:] + "\n"

"""A ranking as a table for the terminal, and as ranking.txt and ranking.svg in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, tanh
from pathlib import Path
from typing import Any

from kleash.evals.ranking import ELO
from kleash.io import write_text
from kleash.report import figures
from kleash.report.overoptimization_report import standalone
from kleash.run import read_record

Row = Mapping[str, Any]

PLACES = {"above": "never lost: no finite strength", "below": "never won: no finite strength"}
APART = "not comparable: no comparisons lead there and back"


def write_page(folder: Path) -> Path:
    """Write ranking.txt and ranking.svg into the folder of a finished `rank` run; returns the first."""
    record = read_record(folder)
    assert record is not None
    results, page = record["results"], folder / "ranking.txt"
    write_text(page, story(results, elo=record["config"]["elo"]) + "\n")
    write_text(folder / "ranking.svg", standalone(figures.strengths(results["models"])))
    return page


def story(results: Mapping[str, Any], *, elo: bool = False) -> str:
    """The ranking as text.

    Args:
        results: of run.json.
        elo: strengths on Elo's scale.
    """
    unit = "Elo" if elo else "strength"
    lines = [
        f"{_size(results)}, {results['ties']} ties",
        f"95 % intervals from {results['resamples']} resamples of the prompts, seed {results['seed']}",
        "",
        *_table(results["models"], unit, elo),
        "",
        _length(results["length_effect"]),
        "",
        *_matrix(results["models"], results["pairs"]),
    ]
    for value, stratum in results["strata"].items():
        lines += ["", f"{results['by']} = {value}: {_size(stratum)}"]
        lines += _table(stratum["models"], unit, elo)
    return "\n".join(line.rstrip() for line in lines)


def _size(results: Mapping[str, Any]) -> str:
    return f"{results['comparisons']} comparisons on {results['prompts']} prompts"


def _table(models: Sequence[Row], unit: str, elo: bool) -> list[str]:
    header = ("model", "win rate", unit, f"{unit} at equal length", "win rate at equal length")
    rows = [header]
    for row in models:
        share = row["win_rate"]
        win_rate = "" if share is None else f"{share['share']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"
        note = PLACES.get(row["place"], APART if row["place"] == "not comparable" else "")
        rows.append(
            (
                row["model"],
                win_rate,
                _strength(row, elo),
                _interval(row["controlled"], elo) if row["controlled"] else note,
                _percent(row["controlled_win_rate"]),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _strength(row: Row, elo: bool) -> str:
    value = {"above": "+∞", "below": "−∞", "not comparable": "?"}.get(row["place"])
    return _interval(row["strength"], elo) if value is None else f"{value} {_bounds(row['strength'], elo)}"


def _interval(estimate: Row, elo: bool) -> str:
    value = "∞" if estimate["value"] is None else _number(estimate["value"], elo)
    return f"{value} {_bounds(estimate, elo)}"


def _bounds(estimate: Row, elo: bool) -> str:
    infinite = {"low": "−∞", "high": "∞"}
    low, high = (sign if estimate[end] is None else _number(estimate[end], elo) for end, sign in infinite.items())
    return f"[{low}, {high}]"


def _number(value: float, elo: bool) -> str:
    return f"{1000 + ELO * value:.0f}" if elo else f"{value:+.2f}"


def _percent(estimate: Row | None) -> str:
    if estimate is None:
        return ""
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    interval = "" if low is None or high is None else f" [{low:.1%}, {high:.1%}]"
    return f"{value:.1%}{interval}"


def _length(effect: Row | None) -> str:
    if effect is None:
        return "length: its effect cannot be told from the models, so there are no figures at equal length"
    if effect["value"] is None:
        return "length effect φ infinite: lengths and models decide all; there are no figures at equal length"
    words = f"length effect φ {_interval(effect, False)}"
    share = 1 / (1 + exp(-tanh(1) * effect["value"]))
    return f"{words}: of two equal models the response that is longer by a standard deviation wins {share:.0%}"


def _matrix(models: Sequence[Row], pairs: Sequence[Row]) -> list[str]:
    """Win rates of the row's model over the column's, by place in the ranking."""
    names = [row["model"] for row in models]
    shares = {(pair["model"], pair["other"]): pair["win_rate"]["share"] for pair in pairs}
    shares |= {(other, model): 1 - share for (model, other), share in shares.items()}
    width = max(8, *(len(name) for name in names))
    lines = ["win rate of the row over the column", " " * width + "".join(f"  {name:>{width}}" for name in names)]
    for name in names:
        cells = (f"{shares[name, other]:.1%}" if (name, other) in shares else "" for other in names)
        lines.append(f"{name:{width}}" + "".join(f"  {cell:>{width}}" for cell in cells))
    return lines

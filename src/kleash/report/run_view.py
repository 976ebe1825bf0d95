"""A run in a notebook: its results, its checks and its curves as HTML that needs no file and no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from kleash.checks.check import MARKS
from kleash.io import Json

SHOWN: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "sft": (("loss, nats a token", ("loss", "eval_loss")), ("gradient norm", ("grad_norm",))),
    "reward": (("loss", ("loss", "eval_log_loss")), ("accuracy", ("accuracy", "eval_accuracy"))),
    "dpo": (
        ("loss", ("loss", "eval_loss")), ("accuracy", ("accuracy", "eval_accuracy")),
        ("margin", ("margin", "eval_margin")), ("KL, nats", ("eval_kl",)),
    ),
    "ppo": (
        ("reward", ("reward", "eval_reward")), ("KL, nats", ("kl", "eval_kl")),
        ("length, tokens", ("length", "eval_length")), ("entropy, nats a token", ("entropy",)),
    ),
}  # fmt: skip
"""By stage: the panels, each with the figures that it draws; of each step solid, on held-out rows dotted."""

ROWS = 20
"""Most rows of a table of metrics."""

STYLE = (
    "--ink:var(--jp-content-font-color1,currentColor);--muted:#7a8396;--grid:#7a839644;--card:transparent;"
    "--gold:#b7791f;--proxy:#2f6fd0;--kl:#7a8396;--good:#2f8f5b;--bad:#d0453a;--sans:inherit;max-width:60rem"
)

COLOURS = {True: "var(--good)", False: "var(--bad)", None: "var(--gold)"}


def run_view(path: Path, record: Json, rows: Sequence[Json]) -> str:
    """Results, checks and curves of a run."""
    checks = record["gates"].get("out", {}).get("checks", [])
    parts = [
        f"<b>kleash {escape(record['stage'])}</b> <code>{escape(str(path))}</code> · {escape(summary_line(record))}",
        _curves(record["stage"], rows, name=str(path)),
        _table([(name, _text(value)) for name, value in _figures(record["results"]).items()]),
        checks_table(checks) if checks else "",
    ]
    return f'<div style="{STYLE}">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'


def summary_line(record: Json) -> str:
    """State, duration and result of the checks, in a few words."""
    words = [record["status"], f"{record['seconds']:.0f} s"]
    if (stopped := record.get("stopped")) and record["status"] == "stopped":
        words[0] += f" ({stopped['reason'] or stopped['error']})"
    checks = record["gates"].get("out", {}).get("checks", [])
    counts = {mark: sum(check["passed"] is passed for check in checks) for passed, mark in MARKS.items()}
    if checks:
        words.append("checks: " + ", ".join(f"{count} {mark.lower()}" for mark, count in counts.items() if count))
    return " · ".join(words)


def checks_table(checks: Sequence[Json]) -> str:
    """The checks, with what to try where one did not pass."""
    lines = []
    for check in checks:
        advice = f"<br><span style='color:var(--muted)'>→ {escape(check['advice'])}</span>" if check["advice"] else ""
        mark = f"<b style='color:{COLOURS[check['passed']]}'>{MARKS[check['passed']]}</b>"
        lines.append((mark, escape(check["name"]), escape(check["finding"]) + advice))
    return f'<div style="{STYLE}">{_table(lines, escaped=True)}</div>'


def metrics_table(rows: Sequence[Json]) -> str:
    """The last rows of metrics.jsonl, without the figures that no row has."""
    last = rows[-ROWS:]
    names = [
        name for name in dict.fromkeys(key for row in last for key in row) if any(_is_number(r.get(name)) for r in last)
    ]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_text(row.get(name))}</td>' for name in names)}</tr>" for row in last)
    more = f"<p>the last {len(last)} of {len(rows)} steps</p>" if len(rows) > len(last) else ""
    return f'{more}<div style="overflow-x:auto;white-space:nowrap"><table><tr>{head}</tr>{body}</table></div>'


def _curves(stage: str, rows: Sequence[Json], *, name: str) -> str:
    """The curves of a stage as SVG; empty where it has fewer than two steps."""
    panels = [
        (title, present)
        for title, keys in SHOWN.get({"grpo": "ppo"}.get(stage, stage), ())
        if (present := [key for key in keys if any(_is_number(row.get(key)) for row in rows)])
    ]
    if len(rows) < 2 or not panels:
        return ""
    from kleash.report.figures import steps  # here: matplotlib takes a second to import

    return f'<div style="max-width:46rem">{steps(rows, panels, name=name)}</div>'


def _figures(results: Json, prefix: str = "") -> dict[str, Any]:
    """The numbers and words of the results, those of nested ones by their path; long lists are left out."""
    figures: dict[str, Any] = {}
    for name, value in results.items():
        if isinstance(value, dict):
            if len(prefix.split(".")) < 2:
                figures |= _figures(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float) and len(figures) < ROWS:
            figures[f"{prefix}{name}"] = value
    return dict(list(figures.items())[:ROWS])


def _table(rows: Sequence[Sequence[str]], *, escaped: bool = False) -> str:
    cell = str if escaped else escape
    style = "text-align:left;vertical-align:top;padding:.15rem .8rem .15rem 0"
    lines = ("".join(f'<td style="{style}">{cell(text)}</td>' for text in row) for row in rows)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>" if rows else ""


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""A demo's folder as one HTML page for a general reader, and its summary in ten lines. Only reads files.

The page is self-contained: no script and no external font or picture, and a content security policy that forbids them.
Texts by models are escaped, never markup.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from math import hypot, isfinite, log
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined
from markupsafe import Markup

from kleash.errors import InputError
from kleash.io import Json, read_json, read_jsonl, write_text
from kleash.report import figures
from kleash.report.reward_section import reward_pieces
from kleash.rollout.rollout_log import logged_steps, read_rollout
from kleash.run import read_record

Summary = Mapping[str, Any]

ORDER = ("base", "sft", "ppo", "ppo-no-leash")
ARMS = ("ppo", "ppo-no-leash")
METHODS = {
    "ppo": "PPO",
    "grpo": "GRPO",
    "dpo": "DPO",
    "best-of-n": "best of n",
    "online-dpo": "online DPO",
    "rlaif": "RLAIF",
}
WIDTH = 100
"""Columns of the story."""

STEPS_SHOWN = 12
"""Most steps of a run whose samples are on the page; all of them are under its rollouts/."""


def write_report(folder: Path) -> Path:
    """Write report.html from a demo's summary.json and run folders.

    Parts whose data are missing are left out of the page.

    Args:
        folder: the demo's folder.

    Returns:
        Path of the page, which was replaced atomically.

    Raises:
        InputError: there is no summary.json, or it is not JSON.
    """
    path = folder / "summary.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; give the folder of a finished `kleash demo`")
    summary = read_json(path, "run `kleash demo` again")
    runs = {name: folder / name for name in ("sft", "reward", *ARMS)}
    page = environment().get_template("report.html.jinja")
    report = folder / "report.html"
    write_text(report, page.render(_context(summary, runs)))
    return report


def story(summary: Summary) -> str:
    """The demo in at most ten lines for a terminal: figures of the policies, then a sample of each.

    Args:
        summary: of summary.json.

    Returns:
        Plain text, no line over `WIDTH` characters.
    """
    policies = _policies(summary)
    names = {name: _plain_label(name, summary) for name in policies}
    width = max((len(label) for label in names.values()), default=0)
    cell = {name: [_plain_estimate(policies[name].get(key)) for key in ("gold", "proxy", "kl")] for name in policies}
    lines = [f"{'':{width}}  {'gold':>14}  {'proxy':>14}  {'KL (nats)':>14}"]
    for name, label in names.items():
        gold, proxy, kl = cell[name]
        line = f"{label:{width}}  {gold:>14}  {proxy:>14}  {kl:>14}"
        best = policies[name].get("gold_peak")
        if best and _number(_mean(best.get("gold"))):
            line += f"   gold's best {_mean(best['gold']):.2f} at step {best['step']}"
        lines.append(line)
    examples = {name: policies[name]["sample"] for name in policies if policies[name].get("sample")}
    questions = {sample["prompt"] for sample in examples.values()}
    if len(questions) == 1:
        lines.append(_one_line("asked: ", *questions))
    for name, sample in examples.items():
        sentence = sample["response"] if len(questions) == 1 else f"{sample['prompt']} -> {sample['response']}"
        lines.append(_one_line(f"{names[name]:{width}}  ", sentence))
    return "\n".join(line.rstrip() for line in lines[:10])


def findings(summary: Summary) -> list[Json]:
    """The claims that the run supports and those that it does not, each with its figures.

    Returns:
        {"holds": bool, "text": str}; differences beyond two standard errors of the difference hold.
    """
    policies = _policies(summary)
    entries = []

    def compare(low: str, high: str, quantity: str, claim: str, denial: str) -> None:
        if low not in policies or high not in policies:
            return
        a, b = policies[low].get(quantity) or {}, policies[high].get(quantity) or {}
        if not (_number(a.get("mean")) and _number(b.get("mean"))):
            return
        gain, error = b["mean"] - a["mean"], hypot(a.get("se") or 0.0, b.get("se") or 0.0)
        holds = gain > 2 * error
        entries.append({"holds": holds, "text": f"{claim if holds else denial} ({quantity} {_pm(a)} → {_pm(b)})."})

    compare("base", "sft", "gold", "Demonstrations made the model better", "Demonstrations did not show a gain")
    compare(
        "sft",
        "ppo",
        "gold",
        "PPO with a KL penalty made it better still",
        "PPO with a KL penalty did not show a gain over SFT",
    )
    opening = "Without the KL penalty the reward model was pleased"
    compare("ppo", "ppo-no-leash", "proxy", f"{opening} more", f"{opening} no more than with it")
    turn, end = _turn(summary), (policies.get("ppo-no-leash") or {}).get("gold") or {}
    if turn and _number(end.get("mean")):
        holds = turn["gold"]["mean"] - end["mean"] > 2 * hypot(turn["gold"].get("se") or 0.0, end.get("se") or 0.0)
        claim = "Meanwhile what is truly wanted " + (
            "fell from its best" if holds else "did not clearly fall from its best"
        )
        text = f"{claim} (gold {_pm(turn['gold'])} at step {turn['step']} → {_pm(end)} at the end)."
        entries.append({"holds": holds, "text": text})
    return entries


def _turn(summary: Summary) -> Mapping[str, Any] | None:
    """Where the gold of the run without a KL penalty was best."""
    best = _policies(summary).get("ppo-no-leash", {}).get("gold_peak")
    if not best or not _number(_mean(best.get("gold"))):
        return None
    gold = best["gold"] if isinstance(best["gold"], Mapping) else {"mean": best["gold"], "se": None}
    return {"step": best["step"], "gold": gold}


def _context(summary: Summary, runs: Mapping[str, Path]) -> Json:
    """The values of the template, in the order of the page."""
    policies = _policies(summary)
    curves = {name: rows for name, rows in _curves(summary).items() if len(figures.complete(rows)) >= 2}
    profile = list(
        dict.fromkeys(key for policy in policies.values() for key in policy.get("profile") or {} if key != "gold")
    )
    reward = summary.get("reward_model") or {}
    return {
        "summary": summary,
        "labels": {name: _label(name, summary) for name in [*policies, *curves, *ARMS]},
        "short": _short_labels(policies),
        "policies": policies,
        "profile": sorted(profile, key=lambda key: "/" not in key),  # gold by kind of prompt first
        "findings": findings(summary),
        "story": story(summary),
        "distance": _distance_figures(curves, summary),
        "methods": _methods(summary),
        "training": _svg(figures.training, curves, _short_labels(curves)) if curves else None,
        "reliability": _svg(figures.reliability, reward) if reward.get("reliability") else None,
        "accuracy": _svg(figures.accuracy, reward) if _number(reward.get("accuracy")) else None,
        "reward": reward,
        "judged": reward_pieces(reward, _svg),
        "losses": _losses(runs),
        "watched": _watched(curves, runs),
        "samples": [_sample(sample, summary) for sample in summary.get("samples") or []],
        "gates": _gates(summary, runs),
        "configs": {name: record["config"] for name, path in runs.items() if (record := read_record(path))},
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


def _distance_figures(curves: Mapping[str, Sequence[Any]], summary: Summary) -> list[Json]:
    """The picture of overoptimization for each arm, the other arm faint in it."""
    short = _short_labels(curves)
    pictures = []
    for name, rows in curves.items():
        other = next((key for key in curves if key != name), None)
        best = (_policies(summary).get(name, {}).get("gold_peak") or {}).get("step")
        svg = _svg(
            figures.overoptimization,
            rows,
            name=name,
            other=curves[other] if other else (),
            other_label=short[other] if other else "",
            peak_step=best,
        )
        pictures.append(
            {"policy": name, "svg": svg, "past": "-past-gold" in svg, "evaluations": len(figures.complete(rows))}
        )
    return pictures


def _methods(summary: Summary) -> Json | None:
    """The methods compared, where there are others than PPO: the picture, and a row of costs for each."""
    results = {name: method for name, method in (summary.get("roads") or {}).items() if method}
    if len(results) < 2:
        return None
    curves = {
        name: method["curve"]
        for name, method in results.items()
        if len(figures.complete(method.get("curve") or ())) > 1
    }
    names = {name: METHODS.get(name, name[:12]) for name in results}
    return {
        "svg": _svg(figures.methods, curves, names) if curves else None,
        "rows": [
            {
                "name": names[name],
                **{key: method.get(key) for key in ("gold", "proxy", "kl", "seconds")},
                "models": len(method["models"]) if method.get("models") else None,
                "parameters": sum((method.get("models") or {}).values()) or None,
                "held": ", ".join(method.get("models") or {}),
                "memory": method.get("peak_memory"),
            }
            for name, method in results.items()
        ],
    }


def methods_table(summary: Summary) -> str:
    """The methods compared, for a terminal: figures at the end of each, and its cost; empty where there are none.

    Args:
        summary: of summary.json.
    """
    entries = _methods(summary)
    if entries is None:
        return ""
    width = max(len(row["name"]) for row in entries["rows"])
    lines = [f"{'':{width}}  {'gold':>14}  {'proxy':>14}  {'KL (nats)':>14}  {'time':>12}  {'models held':>11}"]
    for row in entries["rows"]:
        figures_of_it = "  ".join(f"{_plain_estimate(row[key]):>14}" for key in ("gold", "proxy", "kl"))
        seconds = _seconds(row["seconds"]) if _number(row["seconds"]) else "-"
        lines.append(f"{row['name']:{width}}  {figures_of_it}  {seconds:>12}  {row['models'] or '-':>11}")
    return "\n".join(lines)


def _watched(curves: Mapping[str, Sequence[Any]], runs: Mapping[str, Path]) -> list[Json]:
    """The monitored figures of each arm, and some of the responses of some steps."""
    entries = []
    for name in ARMS:
        rows = [row for row in read_jsonl(runs[name] / "metrics.jsonl") if row.get("kl") is not None]
        if not any(key in row for row in rows for key in figures.MONITORS):
            continue
        steps: dict[int, Json] = {row["step"]: {"step": row["step"], "figures": row, "rows": []} for row in rows}
        logged = [step for step in logged_steps(runs[name]) if step in steps]
        every = -(-len(logged) // STEPS_SHOWN) or 1
        selection = [step for index, step in enumerate(logged) if index % every == 0 or index == len(logged) - 1]
        for step in selection:
            steps[step]["rows"] = read_rollout(runs[name], step)
        svg = _svg(figures.monitors, rows, name=name, curve=curves.get(name, ()))
        entries.append({"policy": name, "svg": svg, "steps": [steps[step] for step in selection]})
    return entries


def _losses(runs: Mapping[str, Path]) -> dict[str, Markup]:
    """Loss curves of the stages that train on data."""
    pictures = {}
    for name, keys, unit, floor in (
        ("sft", ("eval_loss", "eval/loss"), "nats a token", None),
        (
            "reward",
            ("eval_log_loss", "eval/log_loss", "eval_loss", "eval/loss"),
            "nats a pair",
            (log(2), "a coin: log 2"),
        ),
    ):
        rows = read_jsonl(runs[name] / "metrics.jsonl")
        if any("loss" in row for row in rows):
            pictures[name] = _svg(figures.loss, rows, name=name, held_out=keys, unit=unit, floor=floor)
    return pictures


def _sample(sample: Mapping[str, Any], summary: Summary) -> Json:
    """One prompt with its answers: a column for the models before PPO and one for each arm, in the order of
    training.
    """
    columns: dict[str, list[Json]] = {}
    answers = sorted(sample["answers"], key=lambda answer: answer.get("step") or 0)
    for name in _in_order({answer["policy"] for answer in answers}):
        best = (_policies(summary).get(name, {}).get("gold_peak") or {}).get("step")
        before = name in ("base", "sft")
        for answer in answers:
            if answer["policy"] == name:
                step = answer.get("step")
                heading = _label(name, summary) if before or step is None else f"step {step}"
                heading += " · its best gold" if name in ARMS and step is not None and step == best else ""
                column = columns.setdefault("Before PPO" if before else _label(name, summary), [])
                column.append({"gold": None, "proxy": None, **answer, "name": heading})
    return {**sample, "columns": [{"title": title, "answers": column} for title, column in columns.items()]}


def _gates(summary: Summary, runs: Mapping[str, Path]) -> dict[str, Mapping[str, Any]]:
    """The stages' summaries of checks: from the demo's summary, otherwise from the run folders."""
    verdicts = {name: ((read_record(path) or {}).get("gates") or {}).get("out") for name, path in runs.items()}
    return {name: verdict for name, verdict in {**verdicts, **(summary.get("gates") or {})}.items() if verdict}


def _policies(summary: Summary) -> dict[str, Json]:
    """The policies in the order of the chain; incomplete best steps and samples are left out."""
    required = {"gold_peak": ("step", "gold"), "sample": ("prompt", "response")}
    policies = summary.get("policies") or {}
    return {
        name: {
            key: value
            for key, value in policies[name].items()
            if all(part in (value or {}) for part in required.get(key, ()))
        }
        for name in _in_order(policies)
    }


def _curves(summary: Summary) -> dict[str, Sequence[Any]]:
    curves = summary.get("curves") or {}
    return {name: curves[name] for name in _in_order(curves)}


def _in_order(names: Any) -> list[str]:
    """Names in the chain's order; unknown names come last."""
    return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def _label(name: str, summary: Summary) -> str:
    beta = summary.get("beta")
    with_penalty = "PPO with a KL penalty" + (f", β = {beta:g}" if _number(beta) else "")
    names_of = {"base": "Base model", "sft": "SFT", "ppo": with_penalty, "ppo-no-leash": "PPO without a KL penalty"}
    return names_of.get(name, name)


def _plain_label(name: str, summary: Summary) -> str:
    beta = summary.get("beta")
    with_penalty = f"PPO, beta {beta:g}" if _number(beta) else "PPO, KL penalty"
    return {"base": "base", "sft": "SFT", "ppo": with_penalty, "ppo-no-leash": "PPO, no KL"}.get(name, name)


def _short_labels(names: Any) -> dict[str, str]:
    names_of = {"base": "base", "sft": "SFT", "ppo": "KL penalty", "ppo-no-leash": "no penalty"}
    return {name: names_of.get(name, name[:12]) for name in names}


def environment() -> Environment:
    """The template environment of this package: everything is escaped, an unknown name is an error."""
    templates = Environment(
        loader=PackageLoader("kleash.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "figure": _figure,
        "signed": _signed,
        "bound": _bound,
        "pm": _pm,
        "clean": _visible,
        "mean": _mean,
        "seconds": _seconds,
        "amount": _amount,
        "p_value": _p_value,
        "percent": _percent,
        "points": _points,
    }
    return templates


def _svg(draw: Callable[..., str], *arguments: Any, **options: Any) -> Markup:
    """A picture as markup, the only part of the page that is not escaped: its texts were escaped when it was drawn."""
    return Markup(draw(*arguments, **options))


def _figure(value: Any, digits: int = 2) -> str:
    """A number with a true minus; a dash where there is none."""
    if not isinstance(value, Undefined) and value == "unknown":
        return "unknown"
    if not _number(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + _figure(value)


def _bound(value: float | None) -> str:
    """An end of an interval; a dash where it has none."""
    return "∞" if value is None else _figure(value)


def _pm(estimate: Any, digits: int = 2) -> str:
    """Mean ± standard error."""
    if not isinstance(estimate, Mapping):
        return _figure(estimate, digits)
    error = estimate.get("se")
    return _figure(estimate.get("mean"), digits) + (f" ± {error:.{digits}f}" if _number(error) else "")


def _plain_estimate(estimate: Any) -> str:
    return _pm(estimate).replace("−", "-").replace("–", "-")


def _mean(value: Any) -> Any:
    return value.get("mean") if isinstance(value, Mapping) else value


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else f"{int(value) // 60} min {int(value) % 60:02d} s"


def _amount(value: float) -> str:
    """A large number in thousands, millions or billions."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f}"


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _visible(text: str) -> str:
    """Text without terminal control characters or changes of the direction of reading; newlines stay."""
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else "�" for c in text)


def _one_line(lead: str, text: str) -> str:
    """One line of a terminal without control characters, cut with an ellipsis."""
    line = lead + _visible(" ".join(text.split()))
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"

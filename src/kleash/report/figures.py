"""The pictures of a report, each as inline SVG whose colours are the page's CSS variables.

One size fits phones and desktops: fonts are legible from a width of 350 pixels. Gold is amber, proxy is blue,
KL is grey, everywhere; a run with the KL penalty is a solid line, one without is dashed. Curves are labelled directly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from itertools import cycle, pairwise
from math import hypot, sqrt
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = Mapping[str, Any]
Curve = Sequence[Row]
"""Evaluations of one policy, in the order of training: `step` and {"mean", "se"} of `gold`, `proxy`, `kl`."""

Ends = list[tuple[float, float, str, str]]
"""The ends of lines: x, y, label and colour."""

# Colours that matplotlib draws with, and the CSS variables that replace them on the page.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
GOLD, PROXY, KL, GOOD = "#050505", "#060606", "#070707", "#080808"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--card",
    GOLD: "--gold",
    PROXY: "--proxy",
    KL: "--kl",
    GOOD: "--good",
}
COLOURS = {"gold": GOLD, "proxy": PROXY, "kl": KL}
TITLES = {
    "gold": "gold: the goal",
    "proxy": "proxy: the reward model's score",
    "kl": "KL from SFT, nats a response",
}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, readable by screen readers, in the page's font
    "path.simplify": False,  # every measured point is in the file
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


def overoptimization(
    curve: Curve, *, name: str, other: Curve = (), other_label: str = "", peak_step: int | None = None
) -> str:
    """Gold and proxy against √KL, one above the other since their units differ, with gold's peak marked in both.

    Args:
        curve: the policy's evaluations.
        name: of the policy, for ids.
        other: another policy, drawn faint and setting the same limits, so that both can be compared at equal KL.
        other_label: its name.
        peak_step: the step to mark; that of the highest gold of the curve by default.

    Returns:
        SVG. Where gold ends below its best by more than two standard errors, the area past the best is shaded.
    """
    rows, others = complete(curve), complete(other)
    highest = max(rows, key=lambda row: row["gold"]["mean"])
    peak = next((row for row in rows if row["step"] == peak_step), highest)
    with _figure(f"distance-{name}", 4.3) as (figure, svg):
        panels = figure.subplots(2, 1, sharex=True)
        for axes, quantity in zip(panels, ("gold", "proxy"), strict=True):
            axes.set_title(TITLES[quantity], color=COLOURS[quantity], weight="bold")
            _against_distance(axes, others, quantity, colour=MUTED, linewidth=1.2, alpha=0.5, gid=f"other-{quantity}")
            _against_distance(axes, rows, quantity, colour=COLOURS[quantity], errors=True, gid=quantity)
            axes.axvline(_distance(peak), color=INK, linewidth=0.9, linestyle=(0, (2, 2)), gid=f"peak-{quantity}")
            _same_limits(axes, quantity, [*rows, *others])
            if _fell(peak, rows[-1]):
                axes.axvspan(
                    _distance(peak), axes.get_xlim()[1], color=MUTED, alpha=0.09, linewidth=0, gid=f"past-{quantity}"
                )
        if others:  # named once: below an end that is far out, to the right of another
            far = _distance(others[-1]) > 0.6 * panels[0].get_xlim()[1]
            panels[0].annotate(
                other_label, (_distance(others[-1]), others[-1]["gold"]["mean"]), (0 if far else 5, -5 if far else 5),
                textcoords="offset points", ha="right" if far else "left", va="top" if far else "center",
                color=MUTED, fontsize=9.5,
            )  # fmt: skip
        panels[0].plot(
            _distance(peak), peak["gold"]["mean"], "o", color=GOLD, markersize=7, markeredgecolor=INK, zorder=5
        )
        right = _distance(peak) < 0.6 * panels[1].get_xlim()[1]
        panels[1].annotate(  # below, where a rising proxy leaves room
            f"{_peak_word(rows, peak)}: {peak['gold']['mean']:.2f}\nstep {peak['step']}, KL {peak['kl']['mean']:.1f}",
            (_distance(peak), 0.04), (6 if right else -6, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="left" if right else "right", va="bottom", fontsize=9.5,
        )  # fmt: skip
        panels[1].set_xlabel("√KL from SFT (√nats): how far the policy has gone")
        return svg()


def training(curves: Mapping[str, Curve], labels: Mapping[str, str]) -> str:
    """Gold, proxy and KL over the steps of training, all policies, with bands of one standard error.

    Args:
        curves: by policy; the first is drawn solid, the others dashed.
        labels: a short name for each, which is written at the end of its line.
    """
    with _figure("training", 5.4) as (figure, svg):
        panels = figure.subplots(3, 1, sharex=True)
        names: dict[Axes, Ends] = {}
        for axes, quantity in zip(panels, ("gold", "proxy", "kl"), strict=True):
            axes.set_title(TITLES[quantity], color=COLOURS[quantity], weight="bold")
            ends = names.setdefault(axes, [])
            for index, (name, curve) in enumerate(curves.items()):
                rows = complete(curve)
                if not rows:
                    continue
                steps, means = [row["step"] for row in rows], [row[quantity]["mean"] for row in rows]
                errors = [row[quantity].get("se") or 0.0 for row in rows]
                low = [mean - error for mean, error in zip(means, errors, strict=True)]
                high = [mean + error for mean, error in zip(means, errors, strict=True)]
                colour, dash = COLOURS[quantity], "solid" if index == 0 else (0, (4, 2))
                axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
                axes.plot(steps, means, color=colour, linestyle=dash, gid=f"{_slug(name)}-{quantity}")
                ends.append((steps[-1], means[-1], labels[name], INK))
            axes.margins(y=0.12)
        panels[-1].set_xlabel("PPO step")
        _write_at_ends(figure, names)
        return svg()


MONITORS = {
    "entropy": "entropy, nats a token",
    "length": "length, tokens",
    "truncated": "share cut off",
    "distinct_2": "different pairs of words",
    "kl_acceleration": "acceleration of the KL",
    "advantage_sd": "spread of the advantages",
    "spread": "disagreement of the ensemble",
    "validation_reward": "reward model on other labels",
    "validation_agreement": "its agreement with the proxy",
    "distance": "distance from its training",
    "outside": "share outside its range",
}
"""The monitored figures: key in metrics.jsonl → label in the picture."""


def monitors(rows: Sequence[Row], *, name: str, curve: Curve = ()) -> str:
    """Gold, proxy and KL of a run over its steps, and the monitored figures, one below the other on one axis of steps.

    Args:
        rows: of metrics.jsonl.
        name: of the run, for ids.
        curve: its evaluations, with gold; where its best is, a line goes through all panels.

    Returns:
        SVG; a monitor that the run lacks is left out.
    """
    measured = complete(curve)
    watched = [key for key in MONITORS if sum(_number(row.get(key)) for row in rows) > 1]
    best = max(measured, key=lambda row: row["gold"]["mean"])["step"] if measured else None
    panels = [*(["gold"] if measured else []), "reward", "kl", *watched]
    depth = -(-len(panels) // 2)
    with _figure(f"monitors-{name}", 0.3 + 1.05 * depth) as (figure, svg):
        grid = figure.subplots(depth, 2, sharex=True, squeeze=False)
        for axes, key in zip(grid.T.flatten(), panels, strict=False):
            if key == "gold":
                points = [(row["step"], row["gold"]["mean"]) for row in measured]
            else:
                points = [(row["step"], row[key]) for row in rows if _number(row.get(key)) and row["step"] > 0]
            colour = COLOURS.get({"reward": "proxy"}.get(key, key), INK)
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, gid=key)
            axes.set_title({"gold": "gold", "reward": "proxy", "kl": "KL, nats"}.get(key) or MONITORS[key], fontsize=9)
            axes.tick_params(labelsize=8)
            axes.locator_params(axis="y", nbins=3)
            if best is not None:
                axes.axvline(best, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), gid=f"best-{key}")
        for axes in grid.T.flatten()[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("step")
        return svg()


def methods(curves: Mapping[str, Curve], labels: Mapping[str, str]) -> str:
    """Gold against √KL of several methods from one start, a name at the end of each.

    Args:
        curves: by method; the first is drawn solid, each other with dashes of its own.
        labels: a short name for each.
    """
    dashes = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)), (0, (9, 2)))
    with _figure("methods", 4.3) as (figure, svg):
        axes = figure.subplots()
        ends: Ends = []
        complete_curves = {name: complete(curve) for name, curve in curves.items()}
        for (name, rows), dash in zip(complete_curves.items(), cycle(dashes)):
            gid = f"{_slug(name)}-gold"
            _against_distance(axes, rows, "gold", colour=GOLD, errors=True, gid=gid, linestyle=dash)
            if rows:
                ends.append((_distance(rows[-1]), rows[-1]["gold"]["mean"], labels[name], INK))
        axes.set_title(TITLES["gold"], color=GOLD, weight="bold")
        axes.set_xlabel("√KL from SFT (√nats): how far the policy has gone")
        _write_at_ends(figure, {axes: ends})
        return svg()


def strengths(models: Sequence[Row]) -> str:
    """Bradley–Terry strengths with their 95 % intervals: a dot, and a ring for those at equal length.

    Args:
        models: of `evals.ranking.Ranking`, the strongest first; one without a finite strength has its name only.
    """
    with _figure("strengths", 0.9 + 0.5 * len(models)) as (figure, svg):
        axes = figure.subplots()
        for row, model in enumerate(models):
            for key, offset, face in (("strength", -0.1, GOLD), ("controlled", 0.1, "none")):
                estimate = model[key] or {"value": None}
                if estimate["value"] is None:
                    continue
                ends = [estimate[end] for end in ("low", "high")]
                if None not in ends:
                    axes.plot(ends, [row + offset] * 2, color=GOLD, linewidth=1.2)
                axes.plot(
                    estimate["value"], row + offset, "o", color=GOLD, markerfacecolor=face, markersize=6, zorder=3,
                    gid=f"{_slug(model['model'])}-{key}",
                )  # fmt: skip
        axes.set_yticks(range(len(models)), [model["model"] for model in models])
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlabel("strength, nats (dot); at equal length (ring)")
        return svg()


def kl_curves(analyses: Mapping[str, Row], labels: Mapping[str, str]) -> str:
    """Gold and proxy against √KL with 95 % bands, the laws dotted through gold, the peak and the recommended checkpoint
    marked.

    Args:
        analyses: `evals.overoptimization.analyse` of each curve; the first is drawn solid and marked, others dashed.
        labels: a short name for each, written at the end of its line.
    """
    dashes = ("solid", (0, (5, 2)))
    with _figure("overoptimization", 5.0) as (figure, svg):
        panels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        names: dict[Axes, Ends] = {}
        for axes, quantity in zip(panels, ("gold", "proxy"), strict=True):
            axes.set_title(TITLES[quantity], color=COLOURS[quantity], weight="bold")
            for (name, analysis), dash in zip(analyses.items(), dashes, strict=False):
                rows = analysis["points"]
                x, y = [row["distance"]["value"] for row in rows], [row[quantity]["mean"] for row in rows]
                _between(axes, x, [row[quantity] for row in rows], COLOURS[quantity])
                axes.plot(
                    x, y, color=COLOURS[quantity], linestyle=dash, marker="o", markersize=3,
                    gid=f"{_slug(name)}-{quantity}",
                )  # fmt: skip
                names.setdefault(axes, []).append((x[-1], y[-1], labels[name], INK))
            low = min(row[quantity]["low"] for analysis in analyses.values() for row in analysis["points"])
            high = max(row[quantity]["high"] for analysis in analyses.values() for row in analysis["points"])
            axes.set_ylim(low - 0.06 * (high - low or 1), high + 0.12 * (high - low or 1))
        for name, analysis in analyses.items():
            _law(panels[0], name, analysis)
        main = next(iter(analyses.values()))
        peak, recommended = (main["points"][main[key]["index"]] for key in ("peak", "recommended"))
        for axes, quantity in zip(panels, ("gold", "proxy"), strict=True):
            for row, mark, size, gid in ((peak, "o", 8, "peak"), (recommended, "D", 6, "recommended")):
                axes.plot(
                    row["distance"]["value"], row[quantity]["mean"], mark, color=COLOURS[quantity], markersize=size,
                    markeredgecolor=INK, markeredgewidth=1.2, zorder=5, gid=f"{gid}-{quantity}",
                )  # fmt: skip
        panels[-1].set_xlabel("√KL from the start (√nats): how far it has gone")
        _write_at_ends(figure, names)
        return svg()


def _between(axes: Axes, x: Sequence[float], figures: Sequence[Row], colour: str) -> None:
    """The 95 % intervals of a curve: a band where it only goes forth, bars where it also goes back."""
    low, high = ([each[end] for each in figures] for end in ("low", "high"))
    if all(a <= b for a, b in pairwise(x)):
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    else:
        axes.vlines(x, low, high, color=colour, linewidth=2.5, alpha=0.3)


def _law(axes: Axes, name: str, analysis: Row) -> None:
    """The fitted law from gold at the start on, dotted, with the band of its resamples."""
    if not analysis["fit"]:
        return
    line, start = analysis["fit"]["curve"], analysis["points"][0]["gold"]["mean"]
    at = [point["distance"] for point in line]
    low, high = ([start + point[end] for point in line] for end in ("low", "high"))
    axes.fill_between(at, low, high, color=MUTED, alpha=0.15, linewidth=0)
    gains = [start + point["gain"] for point in line]
    axes.plot(at, gains, color=INK, linewidth=1.1, linestyle=(0, (1, 2)), gid=f"{_slug(name)}-law")


def reliability(report: Row) -> str:
    """Reliability diagram: how often the model is right at each level of confidence, and the number of pairs."""
    rows = report["reliability"]
    confidence, outcome = [row["confidence"] for row in rows], [row["outcome"] for row in rows]
    with _figure("calibration", 4.3) as (figure, svg):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        below = [max(0.0, r - row["low"]) for r, row in zip(outcome, rows, strict=True)]
        above = [max(0.0, row["high"] - r) for r, row in zip(outcome, rows, strict=True)]
        upper.errorbar(confidence, outcome, yerr=(below, above), fmt="none", ecolor=PROXY, elinewidth=1, alpha=0.6)
        upper.plot(confidence, outcome, "o", color=PROXY, markersize=5, gid="bins")
        upper.set_title("how often it is right", color=PROXY, weight="bold")
        upper.set_ylim(min(0.35, *(row["low"] for row in rows)) - 0.02, 1.02)
        upper.set_xlim(0.49, 1.01)
        upper.yaxis.set_major_formatter(_percent)
        lower.vlines(confidence, 0, [row["pairs"] for row in rows], color=KL, linewidth=5, gid="pairs")
        lower.set_title(f"pairs in the bin (n = {report['pairs']})", color=KL, weight="bold")
        maximum = max(row["pairs"] for row in rows)
        lower.set_ylim(0, 1.1 * maximum)
        lower.set_yticks([maximum])
        lower.xaxis.set_major_formatter(_percent)
        lower.set_xlabel("how sure the reward model is of its choice")
        return svg()


def accuracy(report: Row) -> str:
    """Accuracy with its interval, between that of length and the noise ceiling."""
    rows: list[tuple[str, float, Sequence[float] | None, str]] = [("coin", report.get("chance", 0.5), None, MUTED)]
    if report.get("length_accuracy") is not None:
        word = report.get("length_prefers", "longer")
        rows.append((f"the {word}\none", report["length_accuracy"], report.get("length_accuracy_interval"), KL))
    rows.append(("reward\nmodel", report["accuracy"], report.get("accuracy_interval"), PROXY))
    if isinstance(report.get("noise_ceiling"), (int, float)):
        rows.append(("best\npossible", report["noise_ceiling"], None, GOOD))
    with _figure("accuracy", 2.9) as (figure, svg):
        axes = figure.subplots()
        for place, (_, value, interval, colour) in enumerate(rows):
            if interval:
                axes.plot(interval, [place, place], color=colour, linewidth=3, alpha=0.4)
            axes.plot(value, place, "o", color=colour, markersize=7, gid=f"row-{place}")
            axes.annotate(
                f"{value:.1%}",
                (value, place),
                (0, 7),
                textcoords="offset points",
                ha="center",
                color=colour,
                weight="bold",
            )
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows], color=INK)
        axes.set_ylim(-0.4, len(rows) - 0.35)
        lowest = min([value for _, value, *_ in rows] + [interval[0] for *_, interval, _ in rows if interval])
        axes.set_xlim(min(0.45, lowest - 0.03), 1.0)
        axes.xaxis.set_major_formatter(_percent)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("held-out pairs ordered as the labeller did")
        return svg()


def probes(rows: Sequence[Row]) -> str:
    """How often each degraded response scores above the original, with its interval."""
    with _figure("probes", 0.7 + 0.33 * len(rows)) as (figure, svg):
        axes = figure.subplots()
        axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        for place, row in enumerate(reversed(rows)):
            axes.plot((row["low"], row["high"]), (place, place), color=PROXY, linewidth=3, alpha=0.4)
            axes.plot(row["above"], place, "o", color=PROXY, markersize=6, gid=f"probe-{_slug(row['name'])}")
        axes.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)], color=INK)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(_percent)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("the spoiled answer scores higher")
        return svg()


def learning_curve(curve: Row) -> str:
    """Held-out accuracy against the number of labels, with bars of one standard error, and what is expected of twice as
    many, with its 95 % interval.
    """
    points, twice = curve["points"], curve["accuracy"]["at_twice"]
    rows, means = [point["rows"] for point in points], [point["accuracy"]["mean"] for point in points]
    with _figure("learning-curve", 2.9) as (figure, svg):
        axes = figure.subplots()
        errors = [point["accuracy"]["se"] for point in points]
        axes.errorbar(rows, means, yerr=errors, fmt="none", ecolor=PROXY, elinewidth=2.5, alpha=0.3)
        axes.plot(rows, means, "o-", color=PROXY, markersize=5, gid="measured")
        expected = 2 * rows[-1]
        axes.plot((rows[-1], expected), (means[-1], twice["value"]), color=KL, linewidth=1, linestyle=(0, (2, 2)))
        axes.plot((expected, expected), (twice["low"], twice["high"]), color=KL, linewidth=3, alpha=0.4)
        axes.plot(expected, twice["value"], "o", color=KL, markersize=6, markerfacecolor=PAPER, gid="expected")
        axes.set_xscale("log", base=2)
        axes.set_xticks([*rows, expected], [f"{size:,}" for size in (*rows, expected)])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(_percent)
        axes.set_ylabel("accuracy")
        axes.set_xlabel("labels trained on (open: expected)")
        return svg()


def best_of(rows: Sequence[Row]) -> str:
    """Mean reward of the best of n by the reward that chooses, and by gold where it was measured, over n."""
    quantities = {"score": PROXY} | ({"gold": GOLD} if rows[0].get("gold") else {})
    titles = {"score": TITLES["proxy"], "gold": TITLES["gold"]}
    with _figure("best-of", 1.3 + 1.6 * len(quantities)) as (figure, svg):
        panels = figure.subplots(len(quantities), 1, sharex=True, squeeze=False)[:, 0]
        n = [row["k"] for row in rows]
        for axes, (name, colour) in zip(panels, quantities.items(), strict=True):
            means = [row[name]["mean"] for row in rows]
            errors = [row[name].get("se") or 0.0 for row in rows]
            low = [mean - error for mean, error in zip(means, errors, strict=True)]
            high = [mean + error for mean, error in zip(means, errors, strict=True)]
            axes.fill_between(n, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(n, means, color=colour, gid=f"best-of-{name}")
            axes.set_title(titles[name], color=colour, weight="bold")
        panels[-1].set_xscale("log", base=2)
        ticks = [k for k in n if k & (k - 1) == 0]
        panels[-1].set_xticks(ticks, [str(k) for k in ticks])
        panels[-1].minorticks_off()
        panels[-1].set_xlabel("n: answers to choose from")
        return svg()


def loss(rows: Sequence[Row], *, name: str, held_out: Sequence[str], unit: str, floor: tuple[float, str] | None) -> str:
    """Training loss of every step, faint, and the held-out figure where it was measured.

    Args:
        rows: of metrics.jsonl.
        name: of the stage, for ids.
        held_out: keys under which the held-out loss may stand.
        unit: of the vertical axis.
        floor: a level to mark by a line, and its name.
    """
    train = [(row["step"], row["loss"]) for row in rows if _number(row.get("loss"))]
    evaluated = [(row["step"], row[key]) for row in rows for key in held_out if _number(row.get(key))]
    with _figure(f"loss-{name}", 2.9) as (figure, svg):
        axes = figure.subplots()
        if floor:
            axes.axhline(floor[0], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(
                floor[1], (1.0, floor[0]), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                color=MUTED, fontsize=9.5, ha="right",
            )  # fmt: skip
        if train:
            axes.plot(*zip(*train, strict=True), color=KL, linewidth=0.9, alpha=0.55, gid="steps")
        if evaluated:
            steps, values = zip(*evaluated, strict=True)
            axes.plot(steps, values, "o-", color=PROXY, markersize=4, gid="held-out")
        ends: Ends = [(*evaluated[-1], "held out", PROXY)] if evaluated else []
        if train:
            tail = [value for _, value in train[-max(1, len(train) // 10) :]]
            ends.append((train[-1][0], sum(tail) / len(tail), "training", KL))
        axes.margins(y=0.08)
        axes.set_ylabel(unit)
        axes.set_xlabel("step")
        _write_at_ends(figure, {axes: ends})
        return svg()


def steps(rows: Sequence[Row], panels: Sequence[tuple[str, Sequence[str]]], *, name: str) -> str:
    """Figures of a run over its steps, two panels a line.

    Args:
        rows: of metrics.jsonl.
        panels: a title, and the figures in it: the first as a line, those on held-out rows (`eval_…`) as dots on one.
        name: of the run, for ids.
    """
    depth = -(-len(panels) // 2)
    with _figure(f"steps-{name}", 1.5 * depth + 0.2, width=7.0 if len(panels) > 1 else 3.5) as (figure, svg):
        grid = figure.subplots(depth, min(2, len(panels)), squeeze=False)
        for axes, (title, keys) in zip(grid.flatten(), panels, strict=False):
            for key in keys:
                points = [(row["step"], row[key]) for row in rows if _number(row.get(key))]
                held_out = key.startswith("eval_")
                style: dict[str, Any] = {"marker": "o", "markersize": 3.5} if held_out or len(points) < 2 else {}
                colour = PROXY if held_out else INK
                if points:
                    axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, gid=key, **style)
            both = len(keys) > 1
            axes.set_title(f"{title} (● held out)" if both else title, fontsize=9)
            axes.tick_params(labelsize=8)
            axes.locator_params(axis="y", nbins=4)
            axes.locator_params(axis="x", integer=True, nbins=6)
        for axes in grid.flatten()[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("step", fontsize=8)
        return svg()


def _against_distance(
    axes: Axes, rows: Curve, quantity: str, *, colour: str, gid: str, errors: bool = False, **style: Any
) -> None:
    """One curve against √KL: dots joined in the order of training, bars of one standard error."""
    if not rows:
        return
    distance, means = [_distance(row) for row in rows], [row[quantity]["mean"] for row in rows]
    if errors:  # bars and not a band, since √KL need not grow from one evaluation to the next
        error = [row[quantity].get("se") or 0.0 for row in rows]
        axes.errorbar(distance, means, yerr=error, fmt="none", ecolor=colour, elinewidth=2.5, alpha=0.3)
    axes.plot(distance, means, marker="o" if errors else "", color=colour, markersize=3, gid=gid, **style)


def _same_limits(axes: Axes, quantity: str, rows: Curve) -> None:
    means = [row[quantity]["mean"] for row in rows]
    room = 0.1 * (max(means) - min(means) or 1.0)
    axes.set_ylim(min(means) - 1.5 * room, max(means) + 1.5 * room)
    furthest = max(_distance(row) for row in rows) or 1.0
    axes.set_xlim(-0.03 * furthest, 1.04 * furthest)


def _write_at_ends(figure: Figure, names: Mapping[Axes, Ends]) -> None:
    """Write names to the right of where lines end, pushed apart so that none lies on another."""
    figure.draw_without_rendering()  # fixes the scale that the distances below are measured in
    for axes, ends in names.items():
        lowest = float("-inf")
        for x, y, text, colour in sorted(ends, key=lambda end: end[1]):
            height = axes.transData.transform((x, y))[1] * 72 / figure.dpi
            lowest = max(height, lowest)
            axes.annotate(
                text, (x, y), (5, lowest - height), textcoords="offset points", va="center", fontsize=9.5,
                color=colour, annotation_clip=False,
            )  # fmt: skip
            lowest += 12


def _fell(peak: Row, end: Row) -> bool:
    """Whether the run continued and ended with less gold, by more than two standard errors of the difference."""
    error = hypot(peak["gold"].get("se") or 0.0, end["gold"].get("se") or 0.0)
    return _distance(end) > _distance(peak) and peak["gold"]["mean"] - end["gold"]["mean"] > 2 * error


def _peak_word(rows: Curve, peak: Row) -> str:
    """The label of the point where gold is best, which is a peak only if points lie on both sides."""
    if peak["step"] == rows[-1]["step"]:
        return "gold is best at the end"
    return "gold is best at the start" if peak["step"] == rows[0]["step"] else "gold is best here"


def complete(curve: Curve) -> list[Row]:
    """The evaluations that have all three figures."""
    return [row for row in curve if all(_number((row.get(key) or {}).get("mean")) for key in COLOURS)]


def _distance(row: Row) -> float:
    """√KL; an estimate that came out below zero is not a distance."""
    return sqrt(max(0.0, row["kl"]["mean"]))


def _slug(name: str) -> str:
    """A name as part of an id, with any characters."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == value and abs(value) != float("inf")


def _percent(value: float, _: float | None) -> str:
    return f"{value:.0%}"


@contextmanager
def _figure(name: str, height: float, *, width: float = 4.6) -> Iterator[tuple[Figure, Callable[[], str]]]:
    """A figure in the style of the report, and a function that turns it into SVG for the inside of a page."""
    name = _slug(name)
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):  # the same numbers give the same file
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, lambda: _inline(figure, name)


def _inline(figure: Figure, name: str) -> str:
    """SVG without external references, its colours as CSS variables and its ids unique on the page."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # a style would be the page's
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 var(--sans)", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    # matplotlib numbers its ids anew in each figure, and a page has many.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg).strip()

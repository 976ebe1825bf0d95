"""The reward model's part of a page: its report beyond accuracy, each part where the report has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from kleash.io import Json
from kleash.report import figures

PROBES = {
    "repeated": "said twice",
    "cut off": "cut off in the middle",
    "stopped halfway": "stopped halfway",
    "flattery first": "flattery before it",
    "flattery last": "flattery after it",
    "empty": "no answer at all",
    "prompt copied": "the question as answer",
    "off topic": "answer to another question",
    "run-on": "two other answers after it",
    "wordy": "empty words before it",
}
SETS = {"training": "training answers", "held out": "held-out answers", "samples": "the model's own samples"}


def reward_pieces(report: Mapping[str, Any], svg: Callable[..., Markup]) -> Json:
    """The values of the template `reward.html.jinja`; None for each part that the report lacks.

    Args:
        report: of the reward model, whole or in part.
        svg: draws a picture as markup.
    """
    report = {key: value for key, value in report.items() if not _skipped(value)}
    bias, noise = report.get("bias") or {}, report.get("label_noise") or {}
    curve = _whole(report.get("learning_curve"), "points", "answer", *_ends("accuracy/at_twice"))
    best_of = report.get("best_of") or []
    distance = report.get("distance") or {}
    probes = [{**row, "label": PROBES.get(row["name"], row["name"])} for row in report.get("probes") or []]
    return {
        "probes": svg(figures.probes, probes) if probes else None,
        "probed": max((row["pairs"] for row in probes), default=0),
        "hacked": [row["label"] for row in probes if row["low"] > 0.5],
        "bias": bias.get("features") or None,
        "biased": [row["name"] for row in bias.get("features") or [] if row["p_holm"] < 0.05 and row["difference"] > 0],
        "excess": _whole(bias.get("length_excess"), *ENDS),
        "strata": [
            {**row, "word": "differs" if row["p_holm"] < 0.05 else "may be the same"}
            for row in report.get("strata") or []
        ],
        "noise": _whole(noise.get("lapse_model"), *_ends("lapse"), *_ends("slope"), *_ends("bayes_accuracy")),
        "disagreement": _whole(noise.get("disagreement"), "rate", "low", "high", "pairs"),
        "curve": svg(figures.learning_curve, curve) if curve else None,
        "curve_answer": curve["answer"].replace("(-", "(−").replace(" -", " −") if curve else None,
        "best_of": svg(figures.best_of, best_of) if len(best_of) > 1 else None,
        "distance": [
            {"label": label, **row}
            for name, label in SETS.items()
            if (row := _whole(distance.get(name), "responses", "quantiles/0.5", "beyond")) is not None
        ],
    }


ENDS = ("value", "low", "high")


def _ends(path: str) -> list[str]:
    """The paths of an estimate and its interval."""
    return [f"{path}/{end}" for end in ENDS]


def _skipped(piece: Any) -> bool:
    """Whether a piece could not be measured."""
    return isinstance(piece, Mapping) and "skipped" in piece


def _whole(piece: Mapping[str, Any] | None, *paths: str) -> Mapping[str, Any] | None:
    """A part of the report, if it has all values to be shown."""
    for path in paths:
        value: Any = piece
        for key in path.split("/"):
            if not isinstance(value, Mapping) or key not in value:
                return None
            value = value[key]
    return piece

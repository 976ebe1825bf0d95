"""What the demo says of policies: gold, proxy and KL of the responses that stages wrote to samples.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kleash.evals.policy import mean_se
from kleash.lab.world.world import World

Rows = Sequence[Mapping[str, Any]]
"""Of samples.jsonl: step, prompt, response, finished, score, kl and the columns of the prompt's row (split, kind)."""


def gold(world: World, row: Mapping[str, Any]) -> float:
    """What the response of a row is truly worth."""
    return world.gold(row["prompt"], row["response"], row["finished"])


def figures(world: World, rows: Rows) -> dict[str, Any]:
    """Gold, proxy and KL of responses, each a mean with its standard error."""
    return {
        "gold": mean_se([gold(world, row) for row in rows]),
        "proxy": mean_se([row["score"] for row in rows]),
        "kl": mean_se([row["kl"] for row in rows]),
    }


def curve(world: World, rows: Rows) -> list[dict[str, Any]]:
    """The figures on the test prompts at each measured step, and gold on those the peak is chosen by."""
    points = []
    for step in sorted({row["step"] for row in rows}):
        test, choose = (
            [row for row in rows if row["step"] == step and row["split"] == split] for split in ("test", "choose")
        )
        points.append({"step": step, **figures(world, test), "gold_choose": figures(world, choose)["gold"]["mean"]})
    return points


def without_choice(points: Rows) -> list[dict[str, Any]]:
    """A curve as it is shown: without what checkpoints are chosen by."""
    return [{name: value for name, value in point.items() if name != "gold_choose"} for point in points]


def pm(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard error of what is there, as tables have it."""
    estimate = mean_se(list(values))
    if estimate["mean"] is None:
        return "–"
    error = "" if estimate["se"] is None else f" ± {estimate['se']:.{digits}f}"
    return f"{estimate['mean']:.{digits}f}{error}".replace("-", "−")

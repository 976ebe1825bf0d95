"""Gold, proxy and KL of the responses that a run wrote to samples.jsonl, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from kleash.data.group import Group, Response
from kleash.evals.policy_stats import MeanSE, mean_se
from kleash.io import read_jsonl
from kleash.lab.world import World


class SampleRow(TypedDict):
    """A row of samples.jsonl: a response to a held-out prompt, measured."""

    step: NotRequired[int]
    prompt: str
    response: str
    finished: bool
    score: float
    kl: float
    split: NotRequired[str]
    """`choose` or `test`: which prompts choose a checkpoint, and which report it."""
    kind: NotRequired[str]


class Estimates(TypedDict):
    """Gold, proxy and KL, each a mean with its standard error."""

    gold: MeanSE
    proxy: MeanSE
    kl: MeanSE


class CurvePoint(Estimates):
    """The estimates on the test prompts at one step."""

    step: int


def read_samples(folder: Path) -> list[SampleRow]:
    """The rows of a run's samples.jsonl."""
    return cast(list[SampleRow], read_jsonl(folder / "samples.jsonl"))


def gold(world: World, row: SampleRow) -> float:
    """The true reward of a row's response."""
    return world.gold(row["prompt"], row["response"], row["finished"])


def as_groups(rows: Sequence[SampleRow]) -> list[Group]:
    """The rows as groups of one response each."""
    return [Group(row["prompt"], (Response(row["response"], finished=row["finished"]),)) for row in rows]


def estimates(world: World, rows: Sequence[SampleRow]) -> Estimates:
    """Gold, proxy and KL of some responses."""
    return {
        "gold": mean_se([gold(world, row) for row in rows]),
        "proxy": mean_se([row["score"] for row in rows]),
        "kl": mean_se([row["kl"] for row in rows]),
    }


def curve(world: World, rows: Sequence[SampleRow]) -> list[CurvePoint]:
    """The estimates on the test prompts at each step that was measured."""
    return [{"step": step, **estimates(world, at(rows, step, "test"))} for step in steps_of(rows)]


def best_step(world: World, rows: Sequence[SampleRow]) -> int:
    """The step whose gold is highest on the prompts that choose; the first of several."""
    choice_gold = {
        step: mean_se([gold(world, row) for row in at(rows, step, "choose")])["mean"] or 0.0 for step in steps_of(rows)
    }
    return max(choice_gold, key=lambda step: choice_gold[step])


def at(rows: Sequence[SampleRow], step: int, split: str) -> list[SampleRow]:
    """The rows of one step and one split of the prompts."""
    return [row for row in rows if row["step"] == step and row["split"] == split]


def steps_of(rows: Sequence[SampleRow]) -> list[int]:
    """The steps that were measured, ascending."""
    return sorted({row["step"] for row in rows})

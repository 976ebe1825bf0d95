"""Score: what a reward says of every response, written beside the columns of its row.

    kleash score --reward math --data samples.jsonl --out scored.jsonl

Reads rows with `response` or `responses` and adds `score`, a number or a list; all else stays as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.data.formats import read_rows, write_rows
from kleash.data.group import Group, Preference, Ranking
from kleash.errors import DataError
from kleash.evals.policy_stats import mean_se
from kleash.outputs import finish, identity_of, is_done
from kleash.progress import Progress
from kleash.rewards.checks import VERDICTS
from kleash.rewards.reward import Reward, build_reward, explain
from kleash.stages.data_configs import ScoreConfig

logger = logging.getLogger("kleash")

GROUPS_AT_ONCE = 256


def run(config: ScoreConfig, *, reward: Reward | None = None) -> Path:
    """Score responses and write them.

    Args:
        config: the settings.
        reward: a live reward in place of `config.reward`.

    Returns:
        The file written: the rows of `data` with `score`. Figures lie beside it in `….summary.json`.

    Raises:
        DataError: a row has no response or is a preference, or the file holds something else.
    """
    identity = identity_of("score", config)
    if is_done(config.out, identity):
        return config.out
    reward = reward or build_reward(config.reward, device=config.device, dtype=config.dtype)
    rows, groups = zip(*read_rows(config.data), strict=True)
    for number, group in enumerate(groups, start=1):
        _refuse_unscorable(f"{config.data} row {number}", group)
    scores, parts = score_groups(reward, groups)
    write_rows(
        (
            # A list where the row has a list, be it of one.
            {**_unscored(row), "score": values if row.get("responses") is not None else values[0]}
            for row, values in zip(rows, scores, strict=True)
        ),
        config.out,
    )
    finish(config.out, identity, describe(scores, parts))
    return config.out


def score_groups(reward: Reward, groups: Sequence[Group]) -> tuple[list[list[float]], dict[str, list[list[float]]]]:
    """Scores of groups of any K, and what they are made of (`reward.explain`), both in the groups' order.

    Raises:
        DataError: a score that is not a finite number.
    """
    scores: list[list[float]] = []
    parts: dict[str, list[list[float]]] = {}
    with Progress(len(groups), "score") as progress:
        for _, run_of_one_size in groupby(groups, key=lambda group: len(group.responses)):
            same = list(run_of_one_size)
            for start in range(0, len(same), GROUPS_AT_ONCE):
                block = same[start : start + GROUPS_AT_ONCE]
                values, made_of = explain(reward, block)
                _refuse_not_finite(values, block)
                scores += values.tolist()
                for name, part in made_of.items():
                    parts.setdefault(name, []).extend(part.tolist())
                progress.update(len(scores))
    return scores, parts


def describe(scores: Sequence[Sequence[float]], parts: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Figures of scored responses, and the count of each verdict, which goes to the log too.

    Formulas: docs/metrics.md. The standard error is over prompts, each by the mean of its responses.
    """

    def over_prompts(values: Sequence[Sequence[float]]) -> dict[str, float | None]:
        return mean_se([sum(row) / len(row) for row in values])

    verdicts = {
        name: sum(map(int, map(sum, values))) for name, values in parts.items() if name.split("/")[-1] in VERDICTS
    }
    if verdicts:
        logger.info("verdicts: %s", ", ".join(f"{count} {name}" for name, count in verdicts.items()))
    return {
        "rows": len(scores),
        "responses": sum(map(len, scores)),
        "score": over_prompts(scores),
        "parts": {name: over_prompts(values) for name, values in parts.items() if name not in verdicts},
        "verdicts": verdicts,
    }


def _refuse_unscorable(where: str, group: Group) -> None:
    if isinstance(group.label, Preference | Ranking):
        raise DataError(
            f"{where}: is a {type(group.label).__name__.lower()}, which has no place for a score; "
            "give rows with response or responses"
        )
    if not group.responses:
        raise DataError(f"{where}: has no response to score; `kleash generate` adds some")


def _refuse_not_finite(values: Float[Tensor, "P K"], groups: Sequence[Group]) -> None:
    for place, k in torch.nonzero(~values.isfinite()).tolist():
        text = groups[place].responses[k].text[:60]
        raise DataError(f"the score of {text!r} is {values[place, k].item()}; a reward must give finite numbers")


def _unscored(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("score", "scores")}

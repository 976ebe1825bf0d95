"""Score existing responses: each row of a file is written with an additional column, the reward's score.

    kleash score --reward math --data samples.jsonl --out scored.jsonl

Reads rows with `response` or `responses` and adds `score`, a number or a list; other columns are unchanged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.content import fingerprints
from kleash.data.formats import Row, read_rows, write_rows
from kleash.data.group import Group, Preference, Ranking, prompt_key
from kleash.data.row_format import RowFormat
from kleash.errors import ConfigError, DataError
from kleash.evals.pass_at_k import AtK, at_k
from kleash.evals.policy_stats import MeanSE, mean_se
from kleash.models.compute import Compute
from kleash.outputs import finish, identity_of, is_done, only_writer
from kleash.progress import Progress
from kleash.rewards.build import AnyReward, as_reward, reward_name
from kleash.rewards.identity import live_fingerprint
from kleash.rewards.reward import NO_OPINION, Reward, RowCheck, explain, no_opinion
from kleash.rewards.verifier import VerifierReward
from kleash.rewards.verifiers import OUTCOMES
from kleash.stages.data_configs import ScoreConfig

logger = logging.getLogger("kleash")

GROUPS_AT_ONCE = 256

VERIFIED = 0.5
"""A verifier gives 1 to a right response and 0 to any other."""

GroupScores = list[list[float]]
"""One list per group, one number per response; NaN where the reward has no opinion."""


@dataclass(frozen=True)
class ScoreReport:
    """Figures of scored responses. Formulas: docs/metrics.md."""

    rows: int
    responses: int
    score: MeanSE
    """Over prompts, with the mean of each prompt's responses."""
    parts: dict[str, MeanSE]
    """Likewise for each part of the reward."""
    verdicts: dict[str, int]
    """Number of responses with each outcome of a verifier (right, wrong, …); empty without a verifier."""
    counts: dict[str, int]
    """Number of responses of which the reward has no opinion (`no_opinion`), and of each value by which rows are routed
    to rewards; empty where there are none."""


@only_writer
def run(config: ScoreConfig, *, reward: AnyReward | None = None) -> Path:
    """Score responses and write them.

    Args:
        config: the settings.
        reward: a live reward in place of `config.reward`, anything that `as_reward` takes.

    Returns:
        The file written: the rows of `data` with `score`, null where the reward has no opinion. Figures are in
        `….summary.json` next to it.

    Raises:
        ConfigError: pass@K is asked for, and nothing says which responses are right.
        DataError: a row has no response, too few for a metric, or is a preference, or lacks what the reward reads, or
            `out` exists and was written with other settings.
    """
    live = {} if reward is None else {"reward": live_fingerprint(reward, reward_name(reward))}
    inputs = fingerprints(config, instead=live)
    identity = identity_of("score", config, inputs)
    if is_done(config.out, identity, paths={role: value["path"] for role, value in inputs.items()}):
        return config.out
    scorer = as_reward(config.reward if reward is None else reward, compute=Compute(config.device, config.dtype))
    rows, groups = _read_scorable(config.data, RowFormat(config.columns, config.as_chat))
    above = _threshold(config, scorer)
    _refuse_too_few(config, groups)
    RowCheck(scorer)(groups, range(1, len(groups) + 1), str(config.data))
    scores, parts = score_groups(scorer, groups)
    report = score_report(scores, parts)
    log_outcomes(report)
    keys = [prompt_key(group.prompt) for group in groups]
    metrics = [at_k(kind, k, scores, keys, above=above) for kind, k in config.metrics()]
    _log_metrics(metrics)
    asked = {"metrics": [asdict(metric) for metric in metrics], "pass_above": above} if metrics else {}
    finish(config.out, identity, asdict(report) | asked)
    write_rows(map(_with_score, rows, scores), config.out)
    return config.out


def score_groups(reward: Reward, groups: Sequence[Group]) -> tuple[GroupScores, dict[str, GroupScores]]:
    """Scores of groups of any K, and their components (`reward.explain`), both in the groups' order.

    Raises:
        DataError: a score that is not a finite number.
    """
    scores: GroupScores = []
    parts: dict[str, GroupScores] = {}
    with Progress(len(groups), "score") as progress:
        for block in _blocks(groups):
            values, components = explain(reward, block)
            _refuse_not_finite(torch.where(no_opinion(values, components), 0, values), block)
            for name, component in components.items():  # one that the blocks before lack says nothing of them
                parts.setdefault(name, [[math.nan] * len(row) for row in scores]).extend(component.tolist())
            scores += values.tolist()
            for name in parts.keys() - components.keys():
                parts[name] += [[math.nan] * values.shape[1]] * len(values)
            progress.update(len(scores))
    return scores, parts


def score_report(scores: Sequence[Sequence[float]], parts: Mapping[str, Sequence[Sequence[float]]]) -> ScoreReport:
    """Figures of scores and of their parts; a verifier's outcomes are counted."""
    outcomes = {name: values for name, values in parts.items() if name.split("/")[-1] in OUTCOMES}
    counts = {name for name in parts if name.split("/")[-1] in (NO_OPINION, "count")}
    return ScoreReport(
        rows=len(scores),
        responses=sum(map(len, scores)),
        score=_over_prompts(scores),
        parts={name: _over_prompts(values) for name, values in parts.items() if name not in {*outcomes, *counts}},
        verdicts={name: _number(values) for name, values in outcomes.items()},
        counts={name.removesuffix("/count"): _number(parts[name]) for name in parts if name in counts},
    )


def log_outcomes(report: ScoreReport) -> None:
    """Log the number of responses with each outcome: many unparsable ones are a fault of the verifier (F15)."""
    if report.verdicts:
        logger.info("verifier: %s", ", ".join(f"{count} {name}" for name, count in report.verdicts.items()))
    if report.counts:
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.counts.items())
        logger.info("of %d responses: %s", report.responses, counts)


def _threshold(config: ScoreConfig, reward: Reward) -> float:
    """The score above which a response is right.

    Raises:
        ConfigError: pass@K is asked for, and nothing says what is right.
    """
    if config.pass_above is not None:
        return config.pass_above
    passes = [name for name in config.metric if name.startswith("pass")]
    if passes and not isinstance(reward, VerifierReward):
        raise ConfigError(
            f"{passes[0]} counts right responses, which only a verifier names; give --pass-above, the score above "
            "which a response is right"
        )
    return VERIFIED


def _refuse_too_few(config: ScoreConfig, groups: Sequence[Group]) -> None:
    most = max((k for _, k in config.metrics()), default=0)
    for row, group in enumerate(groups, start=1):
        if len(group.responses) < most:
            metric = next(name for name in config.metric if name.endswith(f"@{most}"))
            raise DataError(
                f"{config.data} row {row}: has {len(group.responses)} responses, and {metric} needs {most}; sample "
                f"more (`kleash generate -n {most}`) or ask for a smaller K"
            )


def _log_metrics(metrics: Sequence[AtK]) -> None:
    for metric in metrics:
        if metric.value is None:
            logger.info("%-8s of no row: the reward had an opinion of too few responses", metric.metric)
            continue
        interval = "one prompt" if metric.low is None else f"{metric.low:.3f} to {metric.high:.3f}, 95 %"
        left_out = f", {metric.left_out} rows left out" if metric.left_out else ""
        logger.info("%-8s %.3f (%s; %d rows%s)", metric.metric, metric.value, interval, metric.rows, left_out)


def _read_scorable(data: str, row_format: RowFormat) -> tuple[list[Row], list[Group]]:
    rows, groups = [], []
    for number, (row, group) in enumerate(read_rows(data, row_format=row_format), start=1):
        _refuse_unscorable(f"{data} row {number}", group)
        rows.append(row)
        groups.append(group)
    return rows, groups


def _refuse_unscorable(where: str, group: Group) -> None:
    if isinstance(group.label, Preference | Ranking):
        raise DataError(
            f"{where}: is a {type(group.label).__name__.lower()}, and score reads rows with 'response' or 'responses'; "
            "give such rows"
        )
    if not group.responses:
        raise DataError(f"{where}: has no response to score; `kleash generate` adds some")


def _blocks(groups: Sequence[Group]) -> list[list[Group]]:
    """Blocks of consecutive groups of one K, of limited size."""
    runs = [list(run) for _, run in groupby(groups, key=lambda group: len(group.responses))]
    return [run[start : start + GROUPS_AT_ONCE] for run in runs for start in range(0, len(run), GROUPS_AT_ONCE)]


def _refuse_not_finite(values: Float[Tensor, "P K"], groups: Sequence[Group]) -> None:
    for p, k in torch.nonzero(~values.isfinite()).tolist():
        text = groups[p].responses[k].text[:60]
        raise DataError(f"the score of {text!r} is {values[p, k].item()}; a reward must give finite numbers")


def _with_score(row: Row, scores: Sequence[float]) -> Row:
    """The row with its score in place of an old one: a list where the row has a list, even of one."""
    others = {name: value for name, value in row.items() if name not in ("score", "scores")}
    values = [None if math.isnan(score) else score for score in scores]
    return {**others, "score": values if row.get("responses") is not None else values[0]}


def _over_prompts(values: Sequence[Sequence[float]]) -> MeanSE:
    """Over the prompts with an opinion, with the mean of each prompt's."""
    opinions = [[value for value in row if not math.isnan(value)] for row in values]
    return mean_se([sum(row) / len(row) for row in opinions if row])


def _number(values: Sequence[Sequence[float]]) -> int:
    return round(sum(value for row in values for value in row if not math.isnan(value)))

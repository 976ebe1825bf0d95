"""Best of n: sample a pool, score it, keep the best; no training, and the strongest simple baseline.

    kleash best-of-n --model runs/sft --data prompts.jsonl --reward runs/reward --out best.jsonl -n 16

Writes `best.jsonl` (each row with its best `response` and `score`, which `kleash sft` can train on), the pool as
`best.pool.jsonl`, and `best.summary.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from kleash.content import fingerprints
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Scores
from kleash.evals.best_of_n_report import best_of_n_curve
from kleash.evals.report_values import as_json
from kleash.io import beside
from kleash.models.compute import Compute
from kleash.models.forward import Live
from kleash.models.live_copy import live_inputs
from kleash.outputs import finish, identity_of, is_done, only_writer
from kleash.rewards.build import build_reward
from kleash.rewards.reward import Reward, check_rows
from kleash.stages import generate
from kleash.stages.data_configs import BestOfNConfig, GenerateConfig
from kleash.stages.score import log_outcomes, score_groups, score_report


@only_writer
def run(
    config: BestOfNConfig,
    *,
    policy: Live | None = None,
    reward: Reward | None = None,
    gold: Reward | None = None,
) -> Path:
    """Sample, score and choose.

    Args:
        config: the settings.
        policy: a live model and tokenizer in place of `config.model`.
        reward: a live reward in place of `config.reward`.
        gold: a live reward in place of `config.gold`.

    Returns:
        The file of the best responses; the pool and the figures are written next to it.
    """
    identity = identity_of("best-of-n", config, fingerprints(config, instead=live_inputs(model=policy)))
    if is_done(config.out, identity):
        return config.out
    compute = Compute(config.device, config.dtype)
    reward = reward or build_reward(config.reward, compute=compute)
    if gold is None and config.gold is not None:
        gold = build_reward(config.gold, compute=compute)
    rows = list(islice(read_groups(config.data), config.max_rows))
    for each in (reward, gold):
        if each is not None:
            check_rows(each, rows)  # before anything is sampled
    pool_file = _sample_pool(config, policy)
    pool = list(read_groups(pool_file))
    scores, parts = score_groups(reward, pool)
    gold_scores = score_groups(gold, pool)[0] if gold is not None else None
    write_groups((replace(group, label=Scores(tuple(row))) for group, row in zip(pool, scores, strict=True)), pool_file)
    report = score_report(scores, parts)
    log_outcomes(report)
    points = [as_json(point) for point in best_of_n_curve(pool, scores, gold_scores)]
    finish(config.out, identity, {**asdict(report), "best_of": points})
    write_groups((best_of(group, row) for group, row in zip(pool, scores, strict=True)), config.out)
    return config.out


def best_of(group: Group, scores: Sequence[float]) -> Group:
    """A group with its best response only; the first of several equal ones."""
    best = max(range(len(scores)), key=scores.__getitem__)
    return replace(group, responses=(group.responses[best],), label=Scores((scores[best],)))


def _sample_pool(config: BestOfNConfig, policy: Live | None) -> Path:
    """The file of n responses a prompt.

    `generate` recognises its file by the settings, not by the content: after an interruption it accepts the file with
    or without scores.
    """
    settings = {name: getattr(config, name) for name in GenerateConfig.model_fields}
    return generate.run(GenerateConfig(**settings | {"out": beside(config.out, "pool")}), policy=policy)

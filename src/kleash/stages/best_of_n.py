"""Best of n: sample a pool, score it, keep the best; no training, and the strongest simple baseline.

    kleash best-of-n --model runs/sft --data prompts.jsonl --reward runs/reward --out best.jsonl -n 16

Writes `best.jsonl` (each row with its best `response` and `score`, which `kleash sft` can train on), the pool as
`best.pool.jsonl`, and `best.summary.json`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from kleash.content import fingerprints
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Scores
from kleash.errors import RewardError
from kleash.evals.best_of_n_report import best_of_n_curve
from kleash.evals.report_values import as_json
from kleash.io import beside
from kleash.models.compute import Compute
from kleash.models.forward import Live
from kleash.models.live_copy import live_inputs
from kleash.outputs import finish, identity_of, is_done, only_writer
from kleash.rewards.build import AnyReward, as_reward, reward_name
from kleash.rewards.identity import live_fingerprint
from kleash.rewards.reward import RowCheck
from kleash.stages import generate
from kleash.stages.data_configs import BestOfNConfig, GenerateConfig
from kleash.stages.score import log_outcomes, score_groups, score_report

logger = logging.getLogger("kleash")


@only_writer
def run(
    config: BestOfNConfig,
    *,
    policy: Live | None = None,
    reward: AnyReward | None = None,
    gold: AnyReward | None = None,
) -> Path:
    """Sample, score and choose.

    Args:
        config: the settings.
        policy: a live model and tokenizer in place of `config.model`.
        reward: a live reward in place of `config.reward`, anything that `as_reward` takes.
        gold: the same in place of `config.gold`.

    Returns:
        The file of the best responses; the pool and the figures are written next to it. A prompt of whose responses the
        reward has no opinion is left out.

    Raises:
        RewardError: the reward has no opinion of any response.
    """
    live = {"reward": reward, "gold": gold}
    rewards = {role: live_fingerprint(value, reward_name(value)) for role, value in live.items() if value is not None}
    inputs = fingerprints(config, instead=live_inputs(model=policy) | rewards)
    identity = identity_of("best-of-n", config, inputs)
    if is_done(config.out, identity, paths={role: value["path"] for role, value in inputs.items()}):
        return config.out
    compute = Compute(config.device, config.dtype)
    scorer = as_reward(config.reward if reward is None else reward, compute=compute)
    measure = config.gold if gold is None else gold
    true_reward = None if measure is None else as_reward(measure, compute=compute)
    rows = list(islice(read_groups(config.data), config.max_rows))
    RowCheck(scorer, true_reward)(rows, range(1, len(rows) + 1), str(config.data))  # before anything is sampled
    pool_file = _sample_pool(config, policy)
    pool = list(read_groups(pool_file))
    scores, parts = score_groups(scorer, pool)
    gold_scores = score_groups(true_reward, pool)[0] if true_reward is not None else None
    write_groups((replace(group, label=Scores(tuple(row))) for group, row in zip(pool, scores, strict=True)), pool_file)
    scored = [pair for pair in zip(pool, scores, strict=True) if not all(map(math.isnan, pair[1]))]
    if not scored:
        raise RewardError(f"the reward has no opinion of any response of {pool_file}; there is no best one")
    if len(scored) < len(pool):
        left_out = len(pool) - len(scored)
        logger.warning("%d of %d prompts left out: the reward has no opinion of their responses", left_out, len(pool))
    report = score_report(scores, parts)
    log_outcomes(report)
    points = [as_json(point) for point in best_of_n_curve(pool, scores, gold_scores)]
    finish(config.out, identity, {**asdict(report), "best_of": points})
    write_groups((best_of(group, row) for group, row in scored), config.out)
    return config.out


def best_of(group: Group, scores: Sequence[float]) -> Group:
    """A group with its best response only; the first of several equal ones. NaN: no score; there is another."""
    best = max((k for k in range(len(scores)) if not math.isnan(scores[k])), key=scores.__getitem__)
    return replace(group, responses=(group.responses[best],), label=Scores((scores[best],)))


def _sample_pool(config: BestOfNConfig, policy: Live | None) -> Path:
    """The file of n responses a prompt.

    `generate` recognises its file by the settings, not by the content: after an interruption it accepts the file with
    or without scores.
    """
    settings = {name: getattr(config, name) for name in GenerateConfig.model_fields}
    return generate.run(GenerateConfig(**settings | {"out": beside(config.out, "pool")}), policy=policy)

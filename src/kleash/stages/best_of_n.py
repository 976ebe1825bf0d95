"""Best of n: sample a pool, score it, keep the best; no training, and the strongest simple baseline.

    kleash best-of-n --model runs/sft --data prompts.jsonl --reward runs/reward --out best.jsonl -n 16

Writes `best.jsonl` (each row with its best `response` and `score`, which `kleash sft` can train on), the pool beside it
as `best.pool.jsonl`, and `best.summary.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Scores
from kleash.evals.best_of_n_curve import best_of_k, kl_bound, kl_of_best_of_k
from kleash.evals.policy_stats import MeanSE, mean_se
from kleash.models.compute import Compute
from kleash.rewards.build import build_reward, content_of
from kleash.rewards.reward import Reward
from kleash.run import fingerprint
from kleash.stages import generate
from kleash.stages.data_configs import BestOfNConfig, GenerateConfig
from kleash.stages.files import beside, finish, finished
from kleash.stages.score import log_outcomes, score_groups, score_report


class BestOfPoint(TypedDict):
    """What best of k gives, and how far it is from the policy. Formulas: docs/metrics.md."""

    k: int
    score: MeanSE
    """By the reward that chooses."""
    gold: NotRequired[MeanSE]
    """By the other reward, where there is one."""
    kl: MeanSE
    """KL(best of k ‖ policy) in nats, estimated from the pool."""
    kl_bound: float
    """The most that it can be."""


def run(
    config: BestOfNConfig,
    *,
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
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
        The file of the best responses; the pool and the figures lie beside it.
    """
    identity = _identity(config)
    if finished(config.out, identity):
        return config.out
    compute = Compute(config.device, config.dtype)
    reward = reward or build_reward(config.reward, compute=compute)
    if gold is None and config.gold is not None:
        gold = build_reward(config.gold, compute=compute)
    pool_file = _sample_pool(config, policy)
    pool = list(read_groups(pool_file))
    scores, parts = score_groups(reward, pool)
    gold_scores = score_groups(gold, pool)[0] if gold is not None else None
    write_groups((replace(group, label=Scores(tuple(row))) for group, row in zip(pool, scores, strict=True)), pool_file)
    write_groups((best_of(group, row) for group, row in zip(pool, scores, strict=True)), config.out)
    report = score_report(scores, parts)
    log_outcomes(report)
    finish(config.out, identity, {**asdict(report), "best_of": curve(pool, scores, gold_scores)})
    return config.out


def best_of(group: Group, scores: Sequence[float]) -> Group:
    """A group with its best response only; the first of those that tie."""
    best = max(range(len(scores)), key=scores.__getitem__)
    return replace(group, responses=(group.responses[best],), label=Scores((scores[best],)))


def curve(
    pool: Sequence[Group], scores: Sequence[Sequence[float]], gold: Sequence[Sequence[float]] | None = None
) -> list[BestOfPoint]:
    """Best of k for k = 1 … n, estimated from one pool.

    Args:
        pool: groups of one n.
        scores: of the reward that chooses, [P, n].
        gold: of another reward that is measured on what the first one chooses, [P, n].
    """
    chosen_by = np.array([one_score_a_text(*both) for both in zip(pool, scores, strict=True)], dtype=np.float64)
    of_reward = best_of_k(np.array(scores), chosen_by=chosen_by)
    of_gold = None if gold is None else best_of_k(np.array(gold), chosen_by=chosen_by)
    kl = kl_of_best_of_k(chosen_by)
    points: list[BestOfPoint] = []
    for column in range(chosen_by.shape[1]):
        point: BestOfPoint = {
            "k": column + 1,
            "score": mean_se(of_reward[:, column]),
            "kl": mean_se(kl[:, column]),
            "kl_bound": kl_bound(column + 1),
        }
        points.append(point if of_gold is None else {**point, "gold": mean_se(of_gold[:, column])})
    return points


def one_score_a_text(group: Group, scores: Sequence[float]) -> list[float]:
    """The scores, where a text that occurs again has the one of its first: rounding must not make it a better one."""
    first: dict[tuple[str, bool], float] = {}
    return [
        first.setdefault((response.text, response.finished), score)
        for response, score in zip(group.responses, scores, strict=True)
    ]


def _identity(config: BestOfNConfig) -> dict[str, object]:
    """The settings and the content that the result follows from."""
    contents = {"model": fingerprint(config.model), "data": fingerprint(config.data)}
    rewards = {"reward": config.reward, "gold": config.gold}
    contents |= {role: content_of(name) for role, name in rewards.items() if name is not None}
    settings = config.model_dump(mode="json", exclude=generate.NOT_IDENTITY)
    return settings | {f"sha256 of {role}": content["sha256"] for role, content in contents.items()}


def _sample_pool(config: BestOfNConfig, policy: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None) -> Path:
    """The file of n responses a prompt.

    `generate` knows its file by the settings, not by the content: after an interruption it finds the samples in it
    whether their scores have been added already or not.
    """
    settings = {name: getattr(config, name) for name in GenerateConfig.model_fields}
    return generate.run(GenerateConfig(**settings | {"out": beside(config.out, "pool")}), policy=policy)

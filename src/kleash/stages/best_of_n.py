"""Best of n: sample a pool, score it, keep the best; no training, and the strongest simple thing to compare with.

    kleash best-of-n --model runs/sft --data prompts.jsonl --reward runs/reward --out best.jsonl -n 16

Writes `best.jsonl` (each row with its best `response` and `score`, which `kleash sft` can train on), the pool beside it
as `best.pool.jsonl`, and `best.summary.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Scores
from kleash.evals.best_of_n_curve import best_of_k, kl_bound, kl_of_best_of_k
from kleash.evals.policy_stats import mean_se
from kleash.outputs import beside, finish, identity_of, is_done
from kleash.rewards.reward import Reward, build_reward
from kleash.stages import generate
from kleash.stages.data_configs import BestOfNConfig
from kleash.stages.generate import GenerateConfig
from kleash.stages.score import describe, score_groups


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
    identity = identity_of("best-of-n", config)
    if is_done(config.out, identity):
        return config.out
    reward = reward or build_reward(config.reward, device=config.device, dtype=config.dtype)
    if gold is None and config.gold is not None:
        gold = build_reward(config.gold, device=config.device, dtype=config.dtype)
    # `generate` knows its file by the settings, not by the content: after an interruption it finds the samples in it
    # whether their scores have been added already or not.
    settings = {name: getattr(config, name) for name in GenerateConfig.model_fields}
    pool_file = generate.run(GenerateConfig(**settings | {"out": beside(config.out, "pool")}), policy=policy)
    pool = list(read_groups(pool_file))
    scores, parts = score_groups(reward, pool)
    truth = score_groups(gold, pool)[0] if gold is not None else None
    write_groups((replace(group, label=Scores(tuple(row))) for group, row in zip(pool, scores, strict=True)), pool_file)
    write_groups((best_of(group, row) for group, row in zip(pool, scores, strict=True)), config.out)
    finish(config.out, identity, describe(scores, parts) | {"best_of": curve(pool, scores, truth)})
    return config.out


def best_of(group: Group, scores: Sequence[float]) -> Group:
    """A group with its best response alone; the first of those that tie."""
    best = max(range(len(scores)), key=scores.__getitem__)
    return replace(group, responses=(group.responses[best],), label=Scores((scores[best],)))


def curve(
    pool: Sequence[Group], scores: Sequence[Sequence[float]], gold: Sequence[Sequence[float]] | None = None
) -> list[dict[str, Any]]:
    """What best of k gives and how far it is from the policy, k = 1 … n. Formulas: docs/metrics.md."""
    chosen_by = np.array([one_score_a_text(*both) for both in zip(pool, scores, strict=True)], dtype=np.float64)
    measured = {"score": np.array(scores)} | ({} if gold is None else {"gold": np.array(gold)})
    expected = {name: best_of_k(values, chosen_by=chosen_by) for name, values in measured.items()}
    kl = kl_of_best_of_k(chosen_by)
    return [
        {
            "k": k,
            **{name: mean_se(values[:, k - 1]) for name, values in expected.items()},
            "kl": mean_se(kl[:, k - 1]),
            "kl_bound": kl_bound(k),
        }
        for k in range(1, chosen_by.shape[1] + 1)
    ]


def one_score_a_text(group: Group, scores: Sequence[float]) -> list[float]:
    """The scores, where a text that occurs again has the one of its first: rounding must not make it a better one."""
    first: dict[tuple[str, bool], float] = {}
    return [
        first.setdefault((response.text, response.finished), score)
        for response, score in zip(group.responses, scores, strict=True)
    ]

"""Figures that are measured while a policy trains, and are never part of its reward.

An alarm that is used as a reward is optimised away, so nothing here flows back into training. Each figure is written to
metrics.jsonl beside gold, proxy and KL, and a few responses of each step under rollouts/. Formulas: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from kleash.data.group import Group, Response
from kleash.evals.policy_stats import diversity
from kleash.rewards.reward import Parts, Reward, opinions


def watch(
    groups: Sequence[Group],
    scores: Float[Tensor, "P K"],
    *,
    parts: Parts | None = None,
    validation_reward: Reward | None = None,
) -> dict[str, float | None]:
    """Figures of fresh responses.

    Args:
        groups: prompts with the responses that were sampled from the policy.
        scores: their rewards.
        parts: further outputs of the reward: `spread` is the disagreement of an ensemble, `distance` and
            `outside` how far a reward model is from its training.
        validation_reward: a reward that the policy is not trained against.

    Returns:
        The figures of `describe_responses`; the means of the parts; `validation_reward`, its mean score, and
        `validation_reward_agreement`, the rank correlation of both rewards over the responses.
    """
    figures: dict[str, float | None] = describe_responses(groups)
    for figure in ("spread", "distance", "outside"):
        tensors = [values for name, values in (parts or {}).items() if name.split("/")[-1] == figure]
        if tensors:
            figures[figure] = float(torch.stack(tensors).nanmean())
    if validation_reward is not None:
        validation = opinions(validation_reward, groups)
        figures |= {
            "validation_reward": float(validation.nanmean()),
            "validation_reward_agreement": _agreement(scores.cpu(), validation),
        }
    return figures


def describe_responses(groups: Sequence[Group]) -> dict[str, float | None]:
    """How varied responses are and how many were cut off: distinct_1, distinct_2, distinct_3, repetition, truncated."""
    responses = [response for group in groups for response in group.responses]
    tokens = [_tokens(response) for response in responses]
    varied = diversity(tokens, finished=[response.finished for response in responses])
    return {
        "distinct_1": varied.distinct_1,
        "distinct_2": varied.distinct_2,
        "distinct_3": varied.distinct_3,
        "repetition": varied.repetition,
        "truncated": None if varied.end_rate is None else 1 - varied.end_rate,
    }


def acceleration(history: Sequence[float]) -> float | None:
    """Second difference of the KL over the last three steps.

    Args:
        history: the KL of each step so far, the latest last.
    """
    if len(history) < 3:
        return None
    before, last, now = history[-3:]
    return now - 2 * last + before


def _tokens(response: Response) -> Sequence[Any]:
    return response.ids if response.ids is not None else response.text.split()


def _agreement(scores: Float[Tensor, "P K"], other: Float[Tensor, "P K"]) -> float | None:
    """Spearman's rank correlation of two rewards over the responses of which both have an opinion; None where one of
    them does not vary.
    """
    pair = torch.stack([scores.flatten().double(), other.flatten().double()])
    pair = pair[:, ~pair.isnan().any(0)]
    if pair.shape[1] < 2 or bool((pair.amax(1) == pair.amin(1)).any()):
        return None
    return float(stats.spearmanr(*pair.numpy()).statistic)

"""From prompts to scored samples with their log-probabilities and KL."""

from kleash.rollout.components import build_components, read_prompts
from kleash.rollout.evaluation import HeldOutPrompts, evaluate
from kleash.rollout.rollout import (
    Components,
    Rollout,
    advantage_metrics,
    merge,
    refuse_advantages,
    rollout_metrics,
)
from kleash.rollout.rollouts import Rollouts, minibatches

__all__ = [
    "Components",
    "HeldOutPrompts",
    "Rollout",
    "Rollouts",
    "advantage_metrics",
    "build_components",
    "evaluate",
    "merge",
    "minibatches",
    "read_prompts",
    "refuse_advantages",
    "rollout_metrics",
]

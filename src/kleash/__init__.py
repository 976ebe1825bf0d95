"""kleash: post-training of language models from feedback, and measurement of reward over-optimisation.

The public names are explained in docs/api.md. Each is imported when it is first used, so that `import kleash` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "kleash.data.group": ("Group", "Preference", "Ranking", "Response", "Scores"),
    "kleash.data.batch": ("GroupBatch",),
    "kleash.data.formats": ("read_groups", "write_groups"),
    "kleash.data.chat": ("encode", "encode_prompt"),
    "kleash.models.load": ("load_policy", "load_reward_model"),
    "kleash.models.place": ("trust_remote_code",),
    "kleash.models.forward": ("response_logprobs", "response_scores"),
    "kleash.sampling.local": ("LocalSampler",),
    "kleash.rewards.build": ("build_reward",),
    "kleash.rewards.reward": ("Reward",),
    "kleash.rewards.learned": ("LearnedReward",),
    "kleash.run": ("RunFolder",),
    "kleash.api.finished": ("Run", "open_run"),
    "kleash.api.checking": ("check",),
    "kleash.stages.training_configs": ("SFTConfig", "EnsembleConfig", "PPOConfig", "GRPOConfig", "DPOConfig"),
    "kleash.stages.data_configs": (
        "GenerateConfig", "ScoreConfig", "BestOfNConfig", "JudgeConfig", "ReviseConfig", "OveroptConfig", "AskConfig",
        "ExportConfig", "RankConfig",
    ),
    "kleash.recipe": ("run_recipe",),
    "kleash.errors": (
        "ConfigError", "DataError", "GateError", "InputError", "KleashError", "MachineError", "ModelError",
        "OnStepError", "RewardError", "SavingError", "TrainingError",
    ),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

_STAGES = (
    "sft", "reward", "ppo", "grpo", "dpo", "generate", "score", "best_of_n", "judge", "revise", "overopt", "ask",
    "export", "label", "rank",
)  # fmt: skip
"""Stages as functions of keyword arguments, see `api/functions.py`."""

__all__ = ["__version__", *sorted((*_HOME_OF, *_STAGES))]


def __getattr__(name: str) -> Any:
    if name in _STAGES:
        return import_module("kleash.api.functions").stage_function(name)
    if name not in _HOME_OF:
        raise AttributeError(f"kleash has no {name!r}; the public names are in docs/api.md")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__

"""kleash: learning from feedback, and where it went wrong.

The public names, explained in docs/api.md. They are imported when first used, so that `import kleash` takes no time.
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
    "kleash.models.forward": ("response_logprobs", "response_scores"),
    "kleash.sampling.local": ("LocalSampler",),
    "kleash.rewards.build": ("build_reward",),
    "kleash.rewards.reward": ("Reward",),
    "kleash.rewards.learned": ("LearnedReward",),
    "kleash.run": ("RunFolder",),
    "kleash.recipe": ("run_recipe",),
    "kleash.errors": (
        "ConfigError", "DataError", "GateError", "InputError", "KleashError", "MachineError", "ModelError",
        "TrainingError",
    ),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"kleash has no {name!r}; the public names are in docs/api.md")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__

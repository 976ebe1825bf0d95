"""Build a reward from the name that a user gives: the only module that knows all kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kleash.config import REWARD, read_yaml
from kleash.content import HUB_NAME, refuse_missing, refuse_unfinished
from kleash.errors import ConfigError
from kleash.models.compute import Compute
from kleash.rewards.composition import ComposedReward, read_parts
from kleash.rewards.ended import EndedReward
from kleash.rewards.ensemble import FILE as ENSEMBLE
from kleash.rewards.ensemble import EnsembleReward
from kleash.rewards.function import FunctionReward
from kleash.rewards.learned import LearnedReward
from kleash.rewards.reward import Reward
from kleash.rewards.verifier import VerifierReward
from kleash.rewards.verifiers import verifiers

NAMED: dict[str, Callable[[], Reward]] = {
    "ended": EndedReward,
}
"""Rewards that need only their name."""


def build_reward(
    name: str | Path, *, policy_tokenizer: PreTrainedTokenizerBase | None = None, compute: Compute | None = None
) -> Reward:
    """The reward of a name: a verifier, a YAML file, the folder of a reward model or an ensemble, a reward
    model's hub name, or a function.

    Args:
        name: as given to `--reward`.
        policy_tokenizer: the tokenizer of the responses' ids; a reward model with another tokenizer reads the text
            (F9).
        compute: how reward models compute; None: `Compute()`.

    Raises:
        ConfigError: the name is none of these.
    """
    compute, name = compute or Compute(), str(name)
    if name in verifiers():
        return VerifierReward(verifiers()[name])
    if name in NAMED:
        return NAMED[name]()
    path = Path(name)
    refuse_unfinished(path)
    if _is_yaml(name):
        return _from_yaml(path, policy_tokenizer, compute)
    if (path / ENSEMBLE).exists():
        return EnsembleReward.load(path, policy_tokenizer=policy_tokenizer, compute=compute)
    if path.is_dir() or _is_on_hub(name):
        return LearnedReward.load(path, policy_tokenizer=policy_tokenizer, compute=compute)
    if ":" in name and not name.startswith((".", "/")):
        return FunctionReward(name)
    raise ConfigError(
        f"reward {name}: no such folder; give a reward model's folder, module:function, a .yaml composition, a hub "
        f"name or a verifier ({', '.join(verifiers())}; or {', '.join(NAMED)})"
    )


def _is_on_hub(name: str) -> bool:
    if "/" not in name or not HUB_NAME.fullmatch(name) or ":" in name:
        return False
    refuse_missing(name, REWARD)  # beside a folder it is a missing one
    return True


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _from_yaml(path: Path, policy_tokenizer: PreTrainedTokenizerBase | None, compute: Compute) -> Reward:
    if "judge" in read_yaml(path):
        from kleash.rewards.judge_score import JudgeReward  # its client is an extra

        return JudgeReward.load(path, compute=compute)
    parts = read_parts(path)
    return ComposedReward(
        [(part, build_reward(part.reward, policy_tokenizer=policy_tokenizer, compute=compute)) for part in parts]
    )

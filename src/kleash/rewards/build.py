"""Build a reward from the name that a user gives: the only module that knows all kinds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from kleash.config import REWARD, read_yaml
from kleash.content import HUB_NAME, refuse_missing, refuse_unfinished, reward_hash, text_hash
from kleash.errors import ConfigError
from kleash.live import live_object, named
from kleash.models.compute import Compute
from kleash.models.live_copy import live_model
from kleash.rewards.composition import ComposedReward, Part, read_parts
from kleash.rewards.ended import EndedReward
from kleash.rewards.ensemble import FILE as ENSEMBLE
from kleash.rewards.ensemble import EnsembleReward
from kleash.rewards.function import FunctionReward
from kleash.rewards.learned import LearnedReward
from kleash.rewards.reward import Reward
from kleash.rewards.verifier import VerifierReward
from kleash.rewards.verifiers import verifiers
from kleash.run import RunFolder

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
    if (live := live_object(name)) is not None:
        return as_reward(live.value, policy_tokenizer=policy_tokenizer, compute=compute)
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


def as_reward(
    value: Any, *, policy_tokenizer: PreTrainedTokenizerBase | None = None, compute: Compute | None = None
) -> Reward:
    """The reward that a Python value stands for.

    Args:
        value: a name as for `build_reward`; the run of a reward model; a classifier and its tokenizer; a function with
            TRL's signature or a `Reward`; a list of those, or of pairs of one with its weight, whose sum counts.
        policy_tokenizer, compute: see `build_reward`.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(value, str | Path | RunFolder):
        name = value.path if isinstance(value, RunFolder) else value
        return build_reward(name, policy_tokenizer=policy_tokenizer, compute=compute)
    if isinstance(value, list):
        parts = [_weighted(item, number) for number, item in enumerate(value, start=1)]
        titles = [part.title for part, _ in parts]
        if len(set(titles)) < len(titles):
            parts = [
                (part.model_copy(update={"name": f"{part.title} {n}"}), item) for n, (part, item) in enumerate(parts, 1)
            ]
        return ComposedReward(
            [(part, as_reward(item, policy_tokenizer=policy_tokenizer, compute=compute)) for part, item in parts]
        )
    if (model := live_model(value)) is not None:
        with named([model]):
            return LearnedReward.load(model.name, policy_tokenizer=policy_tokenizer, compute=compute)
    if not callable(value):
        raise ConfigError(f"reward {value!r}: give a name, a run, a function, or a list of them with weights")
    return FunctionReward.of(value) if _reads_completions(value) else value


def reward_identity(value: Any) -> str:
    """Hash of what a Python reward depends on: of a function its source and what it closes over."""
    if isinstance(value, str | Path | RunFolder):
        return reward_hash(str(value.path if isinstance(value, RunFolder) else value))
    if isinstance(value, list | tuple) and live_model(value) is None:
        return text_hash(*(repr(item) if isinstance(item, int | float) else reward_identity(item) for item in value))
    if (model := live_model(value)) is not None:
        return model.sha256
    function = getattr(value, "__func__", value)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        source = repr((code.co_code, code.co_consts, code.co_names) if code else type(function))
    cells = [repr(cell.cell_contents) for cell in getattr(function, "__closure__", None) or ()]
    return text_hash(source, *cells)


def _weighted(item: Any, number: int) -> tuple[Part, Any]:
    value, weight = item if isinstance(item, tuple) and isinstance(item[-1], int | float) else (item, 1.0)
    name = value if isinstance(value, str) else getattr(getattr(value, "path", value), "__name__", None)
    if isinstance(value, RunFolder):
        name = value.path.name
    title = f"reward {number}" if name in (None, "<lambda>") else str(name)
    return Part(reward=title, weight=weight), value


def _reads_completions(function: Callable[..., Any]) -> bool:
    """Whether a callable has TRL's signature; otherwise it takes groups."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return "completions" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _is_on_hub(name: str) -> bool:
    if "/" not in name or not HUB_NAME.fullmatch(name) or ":" in name:
        return False
    refuse_missing(name, REWARD)  # beside a folder it is a missing one
    return True


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _from_yaml(path: Path, policy_tokenizer: PreTrainedTokenizerBase | None, compute: Compute) -> Reward:
    if "judge" in read_yaml(path):
        from kleash.rewards.judge_file import judge_reward  # its client is an extra

        return judge_reward(path, compute=compute)
    parts = read_parts(path)
    return ComposedReward([(part, _of_part(part, path, policy_tokenizer, compute)) for part in parts])


def _of_part(part: Part, path: Path, policy_tokenizer: PreTrainedTokenizerBase | None, compute: Compute) -> Reward:
    if part.reward not in verifiers():
        return build_reward(part.reward, policy_tokenizer=policy_tokenizer, compute=compute)
    try:
        return part.verifier()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None

"""Build a reward from the name, or the object, that a user gives: the only module that knows all kinds."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from kleash.config import BY, REWARD, YAML, may_nest, read_yaml, routed_text, routes_of
from kleash.content import HUB_NAME, refuse_missing, refuse_unfinished
from kleash.errors import ConfigError, described
from kleash.live import live_object, named
from kleash.models.compute import Compute
from kleash.models.live_copy import live_model
from kleash.rewards.composition import ComposedReward, Part, read_parts
from kleash.rewards.ended import EndedReward
from kleash.rewards.ensemble import FILE as ENSEMBLE
from kleash.rewards.ensemble import EnsembleReward
from kleash.rewards.function import GIVEN, FunctionReward, callable_name
from kleash.rewards.learned import LearnedReward
from kleash.rewards.reward import Reward
from kleash.rewards.routed import RoutedReward
from kleash.rewards.verifier import VerifierReward
from kleash.rewards.verifiers import verifiers
from kleash.run import RunFolder

AnyReward = Any
"""What `as_reward` takes."""

NAMED: dict[str, Callable[[], Reward]] = {
    "ended": EndedReward,
}
"""Rewards that need only their name."""


def build_reward(
    name: str | Path, *, policy_tokenizer: PreTrainedTokenizerBase | None = None, compute: Compute | None = None
) -> Reward:
    """The reward of a name: a verifier, a YAML file, the folder of a reward model or an ensemble, a reward
    model's hub name, a function, or the text of a mapping that routes rows to such rewards.

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
    if name.lstrip().startswith("{"):
        return _routed(name, "reward", policy_tokenizer, compute)
    if name in verifiers():
        return VerifierReward(verifiers()[name])
    if name in NAMED:
        return NAMED[name]()
    path = Path(name)
    refuse_unfinished(path)
    if name.endswith(YAML):
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


def _from_yaml(path: Path, policy_tokenizer: PreTrainedTokenizerBase | None, compute: Compute) -> Reward:
    values = read_yaml(path)
    route = values["reward"] if values.keys() == {"reward"} else values
    if isinstance(route, dict) and BY in route:
        if nested := [name for name in route.values() if may_nest(str(name))]:
            raise ConfigError(f"{path}: routes to {nested[0]}; a .yaml file cannot name another one")
        return _routed(route, str(path), policy_tokenizer, compute)
    if "judge" in values:
        from kleash.rewards.judge_file import judge_reward  # its client is an extra

        return judge_reward(path, compute=compute)
    parts, filter_on = read_parts(path)
    return ComposedReward(
        [(part, _of_part(part, path, policy_tokenizer, compute)) for part in parts], filter_on=filter_on
    )


def _of_part(part: Part, path: Path, policy_tokenizer: PreTrainedTokenizerBase | None, compute: Compute) -> Reward:
    if part.reward not in verifiers():
        return build_reward(part.reward, policy_tokenizer=policy_tokenizer, compute=compute)
    try:
        return part.verifier()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _routed(
    route: str | Mapping[Any, Any],
    source: str,
    policy_tokenizer: PreTrainedTokenizerBase | None,
    compute: Compute,
) -> Reward:
    try:
        text = routed_text(route)
        routes = routes_of(text)
    except ValueError as error:
        raise ConfigError(f"{source}: should be {error}") from None
    rewards = {
        value: build_reward(name, policy_tokenizer=policy_tokenizer, compute=compute)
        for value, name in (routes or {}).items()
    }
    return RoutedReward(json.loads(text)[BY], rewards)


def as_reward(
    value: AnyReward, *, policy_tokenizer: PreTrainedTokenizerBase | None = None, compute: Compute | None = None
) -> Reward:
    """The reward of anything that can be given as one in Python.

    Args:
        value: a name as for `build_reward`, also as a `Path`; the run of a reward model; a mapping that
            routes rows (`{"by": "task", "math": "math", …}`, whose values may be any of these, too); a model and its
            tokenizer; a `Reward`, which is a callable of groups; any other callable, which is a function with TRL's
            signature (see `FunctionReward`); or a list of these, or of pairs of one and its weight: their weighted sum,
            in which each is logged by its name.
        policy_tokenizer, compute: see `build_reward`.

    Raises:
        ConfigError: the value is none of these.
    """
    build: dict[str, Any] = {"policy_tokenizer": policy_tokenizer, "compute": compute}
    check_reward(value)
    if isinstance(value, str | Path | RunFolder):
        return build_reward(value.path if isinstance(value, RunFolder) else value, **build)
    if isinstance(value, Mapping):
        return RoutedReward(
            str(value[BY]), {str(key): as_reward(reward, **build) for key, reward in value.items() if key != BY}
        )
    if (model := live_model(value)) is not None:
        with named([model]):
            return LearnedReward.load(model.name, **build)
    if isinstance(value, Sequence):
        return _weighted(value, build)
    return value if is_reward(value) else FunctionReward(value)


def check_reward(value: AnyReward, argument: str = "reward") -> None:
    """Refuse what `as_reward` does not take, without loading anything.

    Raises:
        ConfigError: names the argument and what would do.
    """
    if isinstance(value, Mapping):
        if BY not in value or len(value) < 2:
            raise ConfigError(f"{argument}: a mapping should have `by`, a column, and a reward for each of its values")
        parts = [reward for key, reward in value.items() if key != BY]
    elif isinstance(value, str | Path | RunFolder) or live_model(value) is not None or callable(value):
        return
    elif isinstance(value, Sequence) and value:
        parts = [reward for _, reward, _ in _named_parts(value)]
    elif isinstance(value, Sequence):
        raise ConfigError(f"{argument} is empty; give a reward")
    else:
        raise ConfigError(
            f"{argument} is {described(value)}; give a name, a path, a run, (model, tokenizer), a function, or a "
            "list of these, each with its weight"
        )
    for part in parts:
        check_reward(part, argument)


def reward_name(value: AnyReward) -> str:
    """The name of such a value in logs; that of a list joins those of its parts."""
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Mapping):
        return str(value.get(BY, "routed"))
    if (model := live_model(value)) is not None:
        return model.kind
    if isinstance(value, Sequence):
        return "+".join(name for name, _, _ in _named_parts(value))
    if isinstance(value, RunFolder):
        return value.path.name
    return str(getattr(value, "name", None) or callable_name(value))


def is_reward(value: object) -> bool:
    """Whether an object is a `Reward`, a callable of groups, and not a function of prompts and completions."""
    if hasattr(value, "explain") or hasattr(value, "faults"):
        return True
    if not callable(value):
        return False
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return False
    if any(parameter.name in GIVEN or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return False
    return [parameter.default is parameter.empty for parameter in parameters][:2] in ([True], [True, False])


def _named_parts(values: Sequence[AnyReward]) -> list[tuple[str, AnyReward, float]]:
    """The parts of a list: name, value and weight; the second of a name gets `-2`."""
    parts: list[tuple[str, AnyReward, float]] = []
    counts: Counter[str] = Counter()
    for value in values:
        pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int | float)
        reward, weight = value if pair else (value, 1.0)
        name = reward_name(reward)
        counts[name] += 1
        parts.append((name if counts[name] == 1 else f"{name}-{counts[name]}", reward, float(weight)))
    return parts


def _weighted(values: Sequence[AnyReward], build: Mapping[str, Any]) -> Reward:
    return ComposedReward(
        [
            (Part.make({"reward": "live", "name": name, "weight": weight}, source=f"reward {name}"), part)
            for name, reward, weight in _named_parts(values)
            for part in [as_reward(reward, **build)]
        ]
    )

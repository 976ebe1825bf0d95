"""What scores groups: one protocol, whatever stands behind it.

A reward takes groups of text (or of sampled ids that decode to text) and gives a number for each response. It may be a
reward model's folder, a Python function with TRL's signature, a verifier, or a composition of these.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kleash.config import read_yaml
from kleash.data.group import Content, Group
from kleash.errors import ConfigError, DataError
from kleash.rewards.checks import CHECKS
from kleash.rewards.verifiers import Verifier

Parts = Mapping[str, Float[Tensor, "P K"]]
"""What scores are made of, by name: the scores of a composition's parts, a verifier's verdicts (1 where given)."""


@runtime_checkable
class Reward(Protocol):
    """Scores groups of one K."""

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """A score for each response, in float32 on the CPU."""
        ...


def explain(reward: Reward, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
    """Scores of groups of one K, and what they are made of, to be logged apart.

    A reward that is made of parts has a method `explain` of its own; any other has none.
    """
    own = getattr(reward, "explain", None)
    return (reward(groups), {}) if own is None else own(groups)


class EndedReward:
    """1 for a response that ended by itself, 0 for one that was cut off: a gate for what counts in full only."""

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return torch.tensor([[float(response.finished) for response in group.responses] for group in groups])


class FunctionReward:
    """A Python function with TRL's signature: `f(prompts, completions, **columns) -> list[float]`.

    Prompts and completions are text, or lists of turns where the prompt is one; `finished`, which says of each whether
    it ended by itself, and every other column of the rows come as keyword arguments, lists as long as the completions.
    """

    def __init__(self, name: str) -> None:
        """Find `module:function`, from the working directory too.

        Raises:
            ConfigError: there is no such module or function.
        """
        self.name = name
        self.function = _find(name)

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`.

        Raises:
            DataError: the function gave something else than one finite number for each completion.
        """
        rows = [(group, response) for group in groups for response in group.responses]
        columns: dict[str, list[Any]] = {
            key: [group.columns.get(key) for group, _ in rows]
            for key in {key for group in groups for key in group.columns}
        }
        scores = self.function(
            prompts=[_plain(group.prompt) for group, _ in rows],
            completions=[
                response.text if isinstance(group.prompt, str) else [{"role": "assistant", "content": response.text}]
                for group, response in rows
            ],
            finished=[response.finished for _, response in rows],
            **columns,
        )
        scores = list(scores)
        if len(scores) != len(rows):
            raise DataError(
                f"{self.name} gave {len(scores)} scores for {len(rows)} completions; it must give one for each"
            )
        for score, (_, response) in zip(scores, rows, strict=True):
            if not isinstance(score, (int, float)) or not math.isfinite(score):
                raise DataError(f"{self.name} gave {score!r} for {response.text[:60]!r}; it must give finite numbers")
        return torch.tensor(scores, dtype=torch.float32).reshape(len(groups), -1)


def build_reward(name: str, *, policy_tokenizer: PreTrainedTokenizerBase | None = None, **settings: Any) -> Reward:
    """The reward of a name: a verifier, a YAML composition, the folder of a reward model or an ensemble, or a function.

    Args:
        name: as given to `--reward`.
        policy_tokenizer: whose ids the responses carry; a reward model with another tokenizer reads the text (F9).
        settings: passed on to `LearnedReward` (`device`, `dtype`, `micro_batch_tokens`).

    Raises:
        ConfigError: the name is none of these.
    """
    from kleash.rewards.composition import ComposedReward
    from kleash.rewards.ensemble import FILE as ENSEMBLE
    from kleash.rewards.ensemble import EnsembleReward
    from kleash.rewards.learned import LearnedReward

    if name in CHECKS:
        return Verifier(name)
    if name == "ended":
        return EndedReward()
    if name.endswith((".yaml", ".yml")) and "judge" in read_yaml(Path(name)):
        from kleash.rewards.judge_score import JudgeReward

        return JudgeReward.load(Path(name), **{key: settings[key] for key in ("device", "dtype") if key in settings})
    if name.endswith((".yaml", ".yml")):
        return ComposedReward.load(Path(name), policy_tokenizer=policy_tokenizer, **settings)
    if (Path(name) / ENSEMBLE).exists():
        return EnsembleReward.load(Path(name), policy_tokenizer=policy_tokenizer, **settings)
    if Path(name).is_dir():
        return LearnedReward.load(name, policy_tokenizer=policy_tokenizer, **settings)
    if ":" in name and not name.startswith((".", "/")):
        return FunctionReward(name)
    raise ConfigError(
        f"reward {name}: no such folder; give a reward model's folder, module:function, a .yaml composition or a "
        f"verifier ({', '.join(CHECKS)}; or ended)"
    )


def _find(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"reward {name}: {error}; give module:function, importable from {here}") from None
    if not callable(function):
        raise ConfigError(
            f"reward {name}: is a {type(function).__name__}; give a function f(prompts, completions, **columns)"
        )
    return function


def _plain(content: Content) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [dict(turn) for turn in content]

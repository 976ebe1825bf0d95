"""A Python function as a reward, with TRL's signature.

def brief(prompts, completions, **columns):
return [-len(text.split()) / 100 for text in completions]
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.content import module_file
from kleash.data.group import Content, Group
from kleash.errors import ConfigError, DataError


class FunctionReward:
    """A Python function with TRL's signature: `f(prompts, completions, **columns) -> list[float]`.

    Prompts and completions are text, or lists of turns where the prompt is one. `finished` (whether each completion
    ended by itself) and every other column of the rows are passed as keyword arguments: lists as long as the
    completions.
    """

    def __init__(self, name: str) -> None:
        """Find `module:function`, from the working directory too.

        Raises:
            ConfigError: there is no such module or function, or another module of that name is imported already.
        """
        self.name = name
        self.function = _find(name)

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`.

        Raises:
            DataError: the function does not return one finite number for each completion.
        """
        rows = [(group, response) for group in groups for response in group.responses]
        scores = self.function(
            prompts=[_plain(group.prompt) for group, _ in rows],
            completions=[
                response.text if isinstance(group.prompt, str) else [{"role": "assistant", "content": response.text}]
                for group, response in rows
            ],
            finished=[response.finished for _, response in rows],
            **{column: [group.columns.get(column) for group, _ in rows] for column in _columns(groups)},
        )
        scores = list(scores)
        if len(scores) != len(rows):
            raise DataError(
                f"{self.name} returned {len(scores)} scores for {len(rows)} completions; it must return one for each"
            )
        for score, (_, response) in zip(scores, rows, strict=True):
            if not isinstance(score, (int, float)) or not math.isfinite(score):
                raise DataError(
                    f"{self.name} returned {score!r} for {response.text[:60]!r}; it must return finite numbers"
                )
        return torch.tensor(scores, dtype=torch.float32).reshape(len(groups), -1)


def _columns(groups: Sequence[Group]) -> set[str]:
    return {column for group in groups for column in group.columns}


def _find(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"reward {name}: {error}; give module:function, importable from {here}") from None
    loaded, expected = getattr(sys.modules[module_name], "__file__", None), module_file(name)
    if loaded is not None and expected is not None and not expected.samefile(loaded):
        # the run would be identified by a file whose function it does not call
        raise ConfigError(
            f"reward {name}: Python has already imported '{module_name}' from {loaded}, not from {expected}; rename "
            f"one of the two, or restart Python"
        )
    if not callable(function):
        raise ConfigError(
            f"reward {name}: is a {type(function).__name__}; give a function f(prompts, completions, **columns)"
        )
    return function


def _plain(content: Content) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [dict(turn) for turn in content]

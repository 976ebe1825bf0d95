"""A Python function as a reward, with TRL's signature.

def brief(prompts, completions, **columns):
return [-len(text.split()) / 100 for text in completions]
"""

from __future__ import annotations

import importlib
import importlib.machinery
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

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
            ConfigError: there is no such module or function.
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


def module_file(name: str) -> Path | None:
    """The file that holds the function of `module:function`; None for other names, or where the file does not exist."""
    module_name, colon, _ = name.partition(":")
    if not colon:
        return None
    folders: list[str] | None = [str(Path.cwd()), *sys.path]
    spec = None
    for part in module_name.split("."):  # without importing the packages on the way
        spec = importlib.machinery.PathFinder.find_spec(part, folders) if folders else None
        folders = list(spec.submodule_search_locations or ()) if spec is not None else None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


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
    if not callable(function):
        raise ConfigError(
            f"reward {name}: is a {type(function).__name__}; give a function f(prompts, completions, **columns)"
        )
    return function


def _plain(content: Content) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [dict(turn) for turn in content]

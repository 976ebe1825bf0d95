"""A Python function as a reward, with TRL's signature.

def brief(prompts, completions, **columns):
return [-len(text.split()) / 100 for text in completions]
"""

from __future__ import annotations

import importlib
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.content import module_file
from kleash.data.group import Content, Group, Response
from kleash.errors import ConfigError, DataError, RewardError


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

    @classmethod
    def of(cls, function: Callable[..., Any]) -> FunctionReward:
        """A function itself, in place of its name."""
        reward = cls.__new__(cls)
        reward.name, reward.function = getattr(function, "__name__", type(function).__name__), function
        return reward

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`.

        Raises:
            RewardError: the function raised an exception, or returned a number that is not finite in float32.
            DataError: the function does not return one number for each completion.
        """
        rows = [(group, response) for group in groups for response in group.responses]
        try:
            returned = self._call(groups, rows)
            scores = list(returned) if hasattr(returned, "__iter__") and not isinstance(returned, str) else None
        except (Exception, SystemExit) as error:
            raise RewardError(
                f"reward {self.name} raised {_raised(error, self.function)}; correct it (a run that it stopped goes on "
                "with --accept-changed reward)"
            ) from error
        if scores is None:
            raise DataError(
                f"{self.name} returned {_shown(returned)} for {len(rows)} completions; it must return a list with a "
                "number for each"
            )
        if len(scores) != len(rows):
            raise DataError(
                f"{self.name} returned {len(scores)} scores for {len(rows)} completions; it must return one for each"
            )
        numbers = torch.tensor(
            [self._number(score, response) for score, (_, response) in zip(scores, rows, strict=True)]
        )
        for row in (~numbers.isfinite()).nonzero().flatten().tolist():
            raise RewardError(
                f"{self.name} returned {_shown(scores[row])} for completion {row + 1} of {len(rows)}, "
                f"{rows[row][1].text[:60]!r}; it must return finite numbers (float32: at most 3.4e38)"
            )
        return numbers.reshape(len(groups), -1)

    def _call(self, groups: Sequence[Group], rows: Sequence[tuple[Group, Response]]) -> Any:
        return self.function(
            prompts=[_plain(group.prompt) for group, _ in rows],
            completions=[
                response.text if isinstance(group.prompt, str) else [{"role": "assistant", "content": response.text}]
                for group, response in rows
            ],
            finished=[response.finished for _, response in rows],
            **{column: [group.columns.get(column) for group, _ in rows] for column in _columns(groups)},
        )

    def _number(self, score: Any, response: Response) -> float:
        """A score as a number: whatever `float` takes, but for text; what is too large is infinite."""
        try:
            if not isinstance(score, (str, bytes)):
                return float(score)
        except OverflowError:
            return math.inf
        except (TypeError, ValueError, RuntimeError):
            pass
        raise DataError(
            f"{self.name} returned {_shown(score)} for {response.text[:60]!r}; it must return finite numbers"
        )


def _columns(groups: Sequence[Group]) -> set[str]:
    return {column for group in groups for column in group.columns}


def _shown(value: object) -> str:
    try:
        return " ".join(repr(value).split())[:60]
    except ValueError:  # an integer of more digits than Python prints
        return f"an {type(value).__name__} of thousands of digits"


def _raised(error: BaseException, function: Callable[..., Any] | None = None) -> str:
    """An exception in one line: its type, its message, and the last line of the function's own file that it passed."""
    message = " ".join(str(error).split())
    described = f"{type(error).__name__}{f': {message[:200]}' if message else ''}"
    if isinstance(error, SyntaxError):
        return described
    frames = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)
    file = getattr(sys.modules.get(getattr(function, "__module__", "")), "__file__", None)
    frame = [frame for frame in frames if frame.filename == file or file is None][-1:] or frames[-1:]
    return "".join([described, *(f" in {place.filename}, line {place.lineno} (`{place.line}`)" for place in frame)])


def _find(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"reward {name}: {error}; give module:function, importable from {here}") from None
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"reward {name}: importing {module_name} raised {_raised(error)}; correct the file"
        ) from error
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

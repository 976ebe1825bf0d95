"""A Python function as a reward, with TRL's signature.

def brief(prompts, completions, **columns):
return [-len(text.split()) / 100 for text in completions]
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import logging
import math
import struct
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.content import file_hash, module_file
from kleash.data.group import Content, Group, Response
from kleash.errors import ConfigError, DataError, RewardError, described, listed
from kleash.rewards.reward import NO_OPINION, Parts
from kleash.rewards.trainer_state import trainer_state

logger = logging.getLogger("kleash")

GIVEN = ("prompts", "completions", "completion_ids", "finished", "trainer_state", "log_extra", "log_metric")
"""What a function may take besides the columns of the rows."""

Row = tuple[Group, Response]


class FunctionReward:
    """A Python function with TRL's signature: `f(prompts, completions, **columns) -> list[float | None]`.

    Any callable will do: a function, also an `async` one, a lambda, a method, a `functools.partial`, an object with
    `__call__`. It gets what it takes of the following, by name, and all of it where it takes `**columns`: `prompts` and
    `completions`, text or lists of turns where the prompt is one; `completion_ids`, the sampled token ids of each, None
    where there are none; `finished`, whether each ended by itself; `trainer_state`, with `global_step` and `max_steps`;
    `log_extra(name, values)` and `log_metric(name, value)`, whose numbers are logged as components of the reward; and
    every other column of the rows. All but the last three are lists as long as the completions.

    It returns a number for each completion, in a list, an array, a tensor, a series or a generator; None: no opinion of
    this response.
    """

    def __init__(self, function: str | Callable[..., Any], *, name: str | None = None) -> None:
        """Take a function, or find it by its name `module:function`, from the working directory too.

        Args:
            function: the function or its name.
            name: its name in messages and logs; None: its own.

        Raises:
            ConfigError: there is no such module or function, or another module of that name is imported already.
        """
        self.function: Callable[..., Any] = _find(function) if isinstance(function, str) else function
        self.name = name or (function if isinstance(function, str) else callable_name(function))
        self.parameters = _parameters(self.function)

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def faults(self, groups: Sequence[Group]) -> Mapping[int, str]:
        """See `reward.faults`: rows without a column that the function takes and has no default for."""
        needed = [
            name
            for name, parameter in self.parameters.items()
            if name not in GIVEN and parameter.default is parameter.empty and parameter.kind in _BY_NAME_OR_PLACE
        ]
        bad: dict[int, str] = {}
        for index, group in enumerate(groups):
            if missing := [name for name in needed if name not in group.columns]:
                columns = listed(map(repr, group.columns), most=8) or "none"
                bad[index] = (
                    f"reward {self.name} takes the column '{missing[0]}', and the row with prompt "
                    f"{group.prompt_text[:60]!r} has none (its columns: {columns}); give each row one, or the "
                    "parameter a default"
                )
        return bad

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Scores, and what the function logged; see `reward.explain`.

        Raises:
            RewardError: the function raised an exception, or returned a number that is not finite in float32.
            DataError: the function does not return one number for each completion, or a row lacks a column.
        """
        if bad := self.faults(groups):
            raise DataError(bad[min(bad)])
        rows = [(group, response) for group in groups for response in group.responses]
        logs = _Logs(self.name, len(rows))
        try:
            scores = _as_list(_awaited(self._call(groups, rows, logs)))
        except (Exception, SystemExit) as error:
            raise RewardError(
                f"reward {self.name} raised {_raised(error, self.function)}; correct it (a run that it stopped goes on "
                "with --accept-changed reward)"
            ) from error
        if not isinstance(scores, list):
            raise DataError(
                f"{self.name} returned {_shown(scores)} for {len(rows)} completions; it must return a list with a "
                "number for each"
            )
        if len(scores) != len(rows):
            raise DataError(
                f"{self.name} returned {len(scores)} scores for {len(rows)} completions; it must return one for each"
            )
        none = torch.tensor([_is_none(score) for score in scores], dtype=torch.bool)
        numbers = torch.tensor([self._number(score, row, rows) for row, score in enumerate(scores)]).float()
        for row in (~numbers.isfinite() & ~none).nonzero().flatten().tolist():
            raise RewardError(
                f"{self.name} returned {_shown(scores[row])} for completion {row + 1} of {len(rows)}, "
                f"{rows[row][1].text[:60]!r}; it must return finite numbers (float32: at most 3.4e38), or None where "
                "it has no opinion"
            )
        shape = (len(groups), len(groups[0].responses) if groups else 0)
        parts = {name: values.reshape(shape) for name, values in logs.values.items()}
        if bool(none.any()):
            parts[NO_OPINION] = none.float().reshape(shape)
        return numbers.reshape(shape), parts

    def _call(self, groups: Sequence[Group], rows: Sequence[Row], logs: _Logs) -> Any:
        columns = dict.fromkeys(column for group in groups for column in group.columns)
        values: dict[str, Any] = {column: [group.columns.get(column) for group, _ in rows] for column in columns} | {
            "prompts": [_plain(group.prompt) for group, _ in rows],
            "completions": [
                response.text if isinstance(group.prompt, str) else [{"role": "assistant", "content": response.text}]
                for group, response in rows
            ],
            "completion_ids": [None if response.ids is None else list(response.ids) for _, response in rows],
            "finished": [response.finished for _, response in rows],
            "trainer_state": trainer_state(),
            "log_extra": logs.extra,
            "log_metric": logs.metric,
        }
        in_place = [
            values[name]
            for name, parameter in self.parameters.items()
            if parameter.kind is parameter.POSITIONAL_ONLY and name in values
        ]
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.parameters.values())
        by_name = {
            name: value
            for name, value in values.items()
            if (self.parameters[name].kind in _BY_NAME if name in self.parameters else takes_all)
        }
        return self.function(*in_place, **by_name)

    def _number(self, score: Any, row: int, rows: Sequence[Row]) -> float:
        """A score as a number: whatever `float` takes, but for text; NaN for None, and infinite for what is too large.

        Raises:
            DataError: it is not a number.
        """
        if _is_none(score):
            return math.nan
        try:
            value = score.item() if hasattr(score, "item") else score  # of an array or a tensor of one number
            if not isinstance(value, (str, bytes)):
                return float(value)
        except OverflowError:
            return math.inf
        except (TypeError, ValueError, RuntimeError):
            pass
        group, response = rows[row]
        raise DataError(
            f"{self.name} returned {_shown(score)} for {response.text[:60]!r} (completion {row + 1} of {len(rows)}, "
            f"prompt {group.prompt_text[:40]!r}); it must return finite numbers, or None where it has no opinion"
        )


def _is_none(score: object) -> bool:
    """Whether a score is None, or the null of pandas."""
    return score is None or type(score).__name__ == "NAType"


class _Logs:
    """What a function logs while it scores: numbers, one for each response or one for all."""

    def __init__(self, name: str, rows: int) -> None:
        self.name, self.rows = name, rows
        self.values: dict[str, Tensor] = {}

    def extra(self, column: str, values: Sequence[Any]) -> None:
        """A number for each completion; text is for tables that kleash does not write."""
        items = _as_list(values)
        if not isinstance(items, list) or len(items) != self.rows:
            raise ValueError(f"log_extra({column!r}) takes one value for each of the {self.rows} completions")
        try:
            self.values[column] = torch.tensor([math.nan if item is None else float(item) for item in items])
        except (TypeError, ValueError):
            _say_once(f"reward {self.name}: log_extra({column!r}) gives what is not a number, which is not logged")

    def metric(self, name: str, value: Any) -> None:
        """One number for all completions."""
        self.values[name] = torch.full((self.rows,), float(value))


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BY_NAME_OR_PLACE = (*_BY_NAME, inspect.Parameter.POSITIONAL_ONLY)


@cache
def _say_once(message: str) -> None:
    logger.warning("%s", message)


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that a function has left to take; without a signature it takes all, as `**columns` does."""
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {"columns": inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD)}
    if isinstance(function, functools.partial):  # what it binds is not to be given again
        bound = {name: parameters[name] for name in function.keywords if name in parameters}
        parameters |= {name: p.replace(kind=p.VAR_POSITIONAL, default=p.empty) for name, p in bound.items()}
    return parameters


def callable_name(function: object) -> str:
    """The name of a callable in logs: its own, that of what it wraps, or that of its class."""
    if isinstance(function, functools.partial):
        return callable_name(function.func)
    name = str(getattr(function, "__name__", type(function).__name__))
    return "lambda" if name == "<lambda>" else name


def _as_list(returned: Any) -> Any:
    """What a function returned as a list; anything that has no order of numbers as it is."""
    if isinstance(returned, (str, bytes, Mapping, Set)) or not hasattr(returned, "__iter__"):
        return returned
    if hasattr(returned, "tolist"):  # an array, a tensor or a series
        shape = tuple(getattr(returned, "shape", ()))
        if shape == ():
            return returned
        return (returned.reshape(-1) if len(shape) == 2 and shape[1] == 1 else returned).tolist()
    return list(returned)


def _awaited(returned: Any) -> Any:
    """The result of a coroutine, or the items of an asynchronous generator; anything else as it is."""
    if inspect.isasyncgen(returned):
        return _in_loop(_collected(returned))
    return _in_loop(returned) if inspect.isawaitable(returned) else returned


async def _collected(items: Any) -> list[Any]:
    return [item async for item in items]


def _in_loop(awaitable: Awaitable[Any]) -> Any:
    """Wait for an awaitable in a loop of its own thread: a notebook has a running loop, which cannot be waited in."""

    async def wait() -> Any:
        return await awaitable

    future = asyncio.run_coroutine_threadsafe(wait(), _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One loop for the whole process, so that a client that a function keeps stays usable."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="kleash rewards", daemon=True).start()
    return loop


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
    file = getattr(sys.modules.get(getattr(function, "__module__", "") or ""), "__file__", None)
    here = [frame for frame in frames if frame.filename == file] if file else []
    frame = (here or [frame for frame in frames if frame.filename != __file__] or frames)[-1:]
    return "".join([described, *(f" in {place.filename}, line {place.lineno} (`{place.line}`)" for place in frame)])


def _find(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(_module(module_name, module_file(name)), function_name)
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
            f"reward {name}: is {described(function)}; give a function f(prompts, completions, **columns)"
        )
    return function


_imported: dict[str, str] = {}
"""Module → hash of its file when it was imported here."""

_started = time.time()


def _module(name: str, file: Path | None) -> Any:
    """The module as its file is now: the file's hash identifies the run, so an older content must not be what runs."""
    sha256 = None if file is None or not file.is_file() else file_hash(file)
    module = sys.modules.get(name)
    if module is None:
        importlib.invalidate_caches()
        module = importlib.import_module(name)
    elif file is not None and sha256 is not None and _is_outdated(module, file, sha256):
        logger.info("%s was edited since Python imported it; it is imported again", file)
        with suppress(OSError):  # which Python would take for that of the file if the size and the second are the same
            Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)
        module = importlib.reload(module)
    if sha256 is not None:
        _imported[name] = sha256
    return module


def _is_outdated(module: Any, file: Path, sha256: str) -> bool:
    """Whether a module was imported from an older content of this file."""
    loaded = getattr(module, "__file__", None)
    if loaded is None or not file.samefile(loaded):
        return False
    if module.__name__ in _imported:
        return _imported[module.__name__] != sha256
    try:  # others imported it: Python noted then which second and size the file was of
        head = Path(importlib.util.cache_from_source(loaded)).read_bytes()[:16]
        flags, second, size = struct.unpack("<III", head[4:])
    except (OSError, ValueError, struct.error, NotImplementedError):
        return file.stat().st_mtime > _started
    return flags == 0 and (second, size) != (int(file.stat().st_mtime) & 0xFFFFFFFF, file.stat().st_size & 0xFFFFFFFF)


def _plain(content: Content) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [dict(turn) for turn in content]

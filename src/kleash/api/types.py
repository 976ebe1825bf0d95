"""What the arguments of a stage's function may be, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, TypeAlias

from kleash.models.forward import Live
from kleash.run import RunFolder

File: TypeAlias = str | PathLike[str]
"""A path."""

Model: TypeAlias = File | RunFolder | Live | Any
"""A folder, a hub name, a run, (model, tokenizer), or a model of `transformers` or `peft` whose tokenizer its name has.
"""

Data: TypeAlias = File | Iterable[Any]
"""A path, a hub name, a list of dicts, a `Dataset`, a data frame, any iterable of rows."""

OneReward: TypeAlias = File | RunFolder | Live | Callable[..., Any]
"""A name, a run of `reward`, a classifier with its tokenizer, a function of prompts and completions."""

RewardLike: TypeAlias = OneReward | Sequence[OneReward | tuple[OneReward, float]]
"""A reward, or a list of rewards or of pairs of a reward with its weight."""

"""Verifiers: checks of a response against a column of its row. Each module of this package is one; there is no list.

A module has

    NAME         its name in `--reward`
    COLUMN       the column of the row with the expected value
    GUARDED      whether a response could make the check run forever: it then runs in the sandbox, with limits
    check(text, expected) -> Outcome

and, where the default does not fit,

    ACCEPTS      types of the column; by default text or a number, which `check` gets as text, or a list of these: the
                 accepted answers, of which one has to be given
    OTHER_COLUMNS  where the expected value is looked for in a row without that column
    READS_ANSWER True where it looks for a response's answer: a copy of the prompt at its beginning is then left out
    prepare(value, columns)  what `check` gets as `expected`, where it depends on other columns too
    IMPORTS      libraries that `check` imports, to be loaded before its time begins
    LOOPS_COUNT  True where a response that ends in a loop may be right; otherwise it is unparsable

The modules import neither torch nor, outside `check`, a large library: `--help` lists them, and the sandbox's process
imports them.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal, get_args

ANSWER_COLUMNS = ("final_answer", "ground_truth", "gold", "solution")
"""Where the answer is looked for in a row without `answer`, first to last."""

Outcome = Literal["right", "wrong", "unparsable", "timed_out"]
"""The outcome of a check. All four are counted: a verifier that cannot parse responses looks like a policy that is
wrong."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


class BadRowError(Exception):
    """The expected value of a row cannot be read: its answer, its pattern or its schema."""


@dataclass(frozen=True)
class Verifier:
    """A module of this package; the package's docstring explains the fields."""

    name: str
    column: str
    guarded: bool
    check: Callable[[str, Any], Outcome]
    accepts: tuple[type, ...]
    imports: tuple[str, ...]
    loops_count: bool
    other_columns: tuple[str, ...]
    reads_answer: bool
    prepare: Callable[[Any, Mapping[str, Any]], Any] | None

    @property
    def program(self) -> str:
        """Its check as `module:function`, for `sandbox.runner`."""
        return f"{self.check.__module__}:{self.check.__name__}"


@cache
def verifiers() -> dict[str, Verifier]:
    """Every verifier by its name."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {
        module.NAME: Verifier(
            name=module.NAME,
            column=module.COLUMN,
            guarded=module.GUARDED,
            check=module.check,
            accepts=getattr(module, "ACCEPTS", (str, int, float, list, tuple)),
            imports=getattr(module, "IMPORTS", ()),
            loops_count=getattr(module, "LOOPS_COUNT", False),
            other_columns=getattr(module, "OTHER_COLUMNS", ()),
            reads_answer=getattr(module, "READS_ANSWER", False),
            prepare=getattr(module, "prepare", None),
        )
        for module in modules
    }

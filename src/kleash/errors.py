"""Error classes. A message says what is wrong, where, and what to do.

    KleashError                exit code
    ├── InputError                 2      the user's input is wrong
    │   ├── ConfigError                   a key, a type or a combination
    │   ├── DataError                     a file, a row or a column
    │   │   └── ChangedError                  an output exists that other settings or inputs made
    │   └── ModelError                    a model folder, a tokenizer, a template
    ├── GateError                  1      a precondition of a stage does not hold
    ├── TrainingError              1      the numbers went wrong while training (F7, F13)
    │   └── NotFiniteError                loss, gradient, weights or outputs overflow
    ├── RewardError                1      a reward raised an exception, or gave what is not a finite number
    ├── OnStepError                1      the user's on_step raised an exception
    ├── SavingError                1      what was written is not what is in memory
    ├── MachineError               3      disk or memory
    └── WaitingError              75      nothing is wrong: labels by people are still missing

Every message is one line and ends with what to do. The command line prints the message and no traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class KleashError(Exception):
    """Base class of the errors that kleash raises on purpose."""

    exit_code = 1


class InputError(KleashError):
    """The user's input is wrong."""

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the line that says what to give, without the calls that led to it."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(InputError):
    """An unknown key, a wrong type or an impossible combination of a config."""


class DataError(InputError):
    """A file, a row or a column that cannot be used; the message names it."""


class ChangedError(DataError):
    """An output exists that other settings or inputs made; the message names what differs."""

    def __init__(self, message: str, out: Path) -> None:
        """Name the output."""
        super().__init__(message)
        self.out = out


class ModelError(InputError):
    """A model folder, a tokenizer or a chat template that cannot be used."""


class GateError(KleashError):
    """A stage's precondition does not hold; `--force` continues anyway."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class TrainingError(KleashError):
    """Training produced impossible numbers; the message names the cause."""


class NotFiniteError(TrainingError):
    """Loss, gradient, weights or outputs of a model overflow; the message names the cause."""


class RewardError(KleashError):
    """A reward raised an exception, or gave what is not a finite number; the message names it and the line."""


class OnStepError(KleashError):
    """The user's `on_step` raised an exception, which is the cause; the message names it and the step."""


class SavingError(KleashError):
    """What was written to disk is not the model, or the rows, in memory; the run has not finished."""


class MachineError(KleashError):
    """Disk or memory is exhausted, or access is denied."""

    exit_code = 3


class WaitingError(KleashError):
    """Labels by people are still missing; the same command continues once they exist (sysexits: EX_TEMPFAIL)."""

    exit_code = 75


class Interrupted(KeyboardInterrupt):
    """The user interrupted a stage; the message says what was kept. Notebooks show it as one line."""

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]


def described(value: object) -> str:
    """What a value is, for a message: "an int", "a list"."""
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def listed(names: Iterable[str], most: int = 3) -> str:
    """Names for a message: the first few, and how many more there are."""
    shown = list(names)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more

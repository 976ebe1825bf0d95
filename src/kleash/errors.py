"""Errors are for people: what was wrong, where, and what would be right.

    KleashError                exit code
    ├── InputError                 2      the user's input is wrong
    │   ├── ConfigError                   a key, a type or a combination
    │   ├── DataError                     a file, a row or a column
    │   └── ModelError                    a model folder, a tokenizer, a template
    ├── GateError                  1      a precondition of a stage does not hold
    ├── TrainingError              1      the numbers went wrong while training (F7, F13)
    ├── MachineError               3      disk or memory
    └── WaitingError              75      nothing is wrong: people have been asked, and have not answered yet

Every message is one line and ends with what to do. The command line prints the message and no traceback.
"""

from __future__ import annotations


class KleashError(Exception):
    """Base of all errors that kleash raises on purpose."""

    exit_code = 1


class InputError(KleashError):
    """Something the user gave is wrong."""

    exit_code = 2


class ConfigError(InputError):
    """An unknown key, a wrong type or an impossible combination of a config."""


class DataError(InputError):
    """A file, a row or a column that cannot be used; the message names it."""


class ModelError(InputError):
    """A model folder, a tokenizer or a chat template that cannot be used."""


class GateError(KleashError):
    """A stage's precondition does not hold; `--force` goes on all the same."""


class TrainingError(KleashError):
    """Training numbers that cannot be right; the message names the cause."""


class MachineError(KleashError):
    """The disk or the memory gave out."""

    exit_code = 3


class WaitingError(KleashError):
    """People were asked and have not answered yet; the same command goes on once they have (sysexits: EX_TEMPFAIL)."""

    exit_code = 75

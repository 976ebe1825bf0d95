"""Completion in bash, zsh and fish, by `argcomplete`: the shell runs `kleash`, which answers from its own options.

    eval "$(kleash completion bash)"

Nothing is imported but the command line itself, so an answer takes as long as `kleash --help`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from kleash.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """What a shell has to evaluate."""
    if shell not in SHELLS:
        raise ConfigError(f"there is no completion for '{shell}'; choose from {', '.join(SHELLS)}")
    import argcomplete

    code: str = argcomplete.shellcode(["kleash"], shell=shell)
    return code


def is_asked() -> bool:
    """Whether a shell asks for completions, and not a person for a command."""
    return "_ARGCOMPLETE" in os.environ


def answer(build: Callable[[list[str]], argparse.ArgumentParser]) -> None:
    """Write the completions of the line that is being typed, and end the process.

    Args:
        build: makes the parser of a line's words.
    """
    import argcomplete

    typed = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", 0)) or None]
    parser = build(typed.split()[1:])
    for one in (parser, *_subparsers(parser)):
        for action in one._actions:
            if action.help not in (None, argparse.SUPPRESS):
                action.help = str(action.help).partition(". ")[0].rstrip(".")[:80]
    argcomplete.autocomplete(parser)


def _subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [subparser for action in actions for subparser in action.choices.values()]

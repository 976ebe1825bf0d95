"""Verifiers: rewards that check a response against what its row expects. 1 for a right response, 0 for any other.

    name          column     right is
    number        answer     the last number of the response equals the answer's
    math          answer     the final expression equals the answer (math-verify)
    exact         answer     the response is the answer, white space around it aside
    regex         pattern    the pattern matches all of the response, white space around it aside
    json-schema   schema     the response is JSON that the schema accepts

Every response has a verdict: right, wrong, unparsable or timed_out. They are counted apart, since a verifier that
cannot read what the policy writes looks like a policy that is wrong (F15).
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.data.group import Group, Response
from kleash.errors import DataError, MachineError
from kleash.rewards import checks

SECONDS = 5.0
"""Processor time that one check may take; math-verify's own limit."""


class Verifier:
    """A check as a reward."""

    def __init__(self, name: str) -> None:
        """Take the check of a name in `checks.CHECKS`."""
        self.name = name

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], dict[str, Float[Tensor, "P K"]]]:
        """Scores, and for each verdict 1 where it is the response's; see `reward.explain`.

        Raises:
            DataError: a row lacks the column, or what stands there cannot be read.
        """
        verdicts = [[self.verdict(group, response) for response in group.responses] for group in groups]
        parts = {
            verdict: torch.tensor([[float(given == verdict) for given in row] for row in verdicts])
            for verdict in checks.VERDICTS
        }
        return parts[checks.RIGHT], parts

    def verdict(self, group: Group, response: Response) -> str:
        """What a response is: one of `checks.VERDICTS`."""
        expected = self._expected(group)
        text = response.text
        if not text.strip() or (self.name != "exact" and checks.loops(text, finished=response.finished)):
            return checks.UNPARSABLE
        try:
            if self.name in checks.GUARDED:
                return _worker.check(self.name, text, expected, seconds=SECONDS)
            return checks.CHECKS[self.name](text, expected)
        except checks.BadRowError as error:
            raise DataError(f"--reward {self.name}: prompt {group.prompt_text[:60]!r}: {error}") from None

    def _expected(self, group: Group) -> Any:
        column = checks.COLUMNS[self.name]
        value = group.columns.get(column)
        kinds = (str, dict, bool) if column == "schema" else (str, int, float)
        if not isinstance(value, kinds) or (column != "schema" and isinstance(value, bool)):
            raise DataError(
                f"--reward {self.name} reads the column '{column}', and the row of prompt {group.prompt_text[:60]!r} "
                f"has {'none' if value is None else f'a {type(value).__name__} there'}; give it one"
            )
        return value if column == "schema" else str(value)


class _Worker:
    """One process that checks, started at the first check and again after it was ended by its budget."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = Lock()  # rewards may be asked from several threads; there is one line to the process

    def check(self, name: str, text: str, expected: Any, *, seconds: float) -> str:
        """The verdict on a text; `timed_out` where the process ended over it."""
        request = json.dumps({"check": name, "text": text, "expected": expected, "seconds": seconds})
        with self._lock:
            try:
                reply = self._exchange(request + "\n")
            except BaseException:  # Ctrl-C: the reply that is still to come must not be taken for the next one's
                self._stop()
                raise
            if not reply:
                self._stop()
                return checks.TIMED_OUT
        answer = json.loads(reply)
        if "error" in answer:
            raise checks.BadRowError(answer["error"])
        return str(answer["verdict"])

    def _exchange(self, request: str) -> str:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._process = self._start()
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(request)
            self._process.stdin.flush()
        return self._process.stdout.readline()

    def _start(self) -> subprocess.Popen[str]:
        # By its file and not as a module of the package: it needs neither kleash nor torch. -P: no path of its own.
        command = [sys.executable, "-P", checks.__file__]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            process.kill()
            process.wait()
            raise MachineError(f"the process that checks responses did not start ({' '.join(command)}); run it by hand")
        atexit.register(self._stop)
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        atexit.unregister(self._stop)
        if process is not None:
            process.kill()
            process.communicate()


_worker = _Worker()

"""Run a function in a separate process, with limits: a model's text can make a parser run forever.

Time is processor time, not wall time, which would make the outcome depend on the machine's load.
Left out: isolation. The process may read files and open connections, so it is for our functions on a model's text, and
not for a model's programs.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from kleash.errors import MachineError
from kleash.io import Json


@dataclass(frozen=True)
class Limits:
    """Limits of one call."""

    seconds: float
    """Processor time."""
    memory: int
    """Bytes of address space of the process."""


@dataclass(frozen=True)
class Completed:
    """The function returned."""

    value: Any
    """The value, passed through JSON."""


@dataclass(frozen=True)
class Raised:
    """The function raised an exception."""

    kind: str
    """Name of the exception's class."""
    message: str


@dataclass(frozen=True)
class LimitExceeded:
    """The call used up its time or its memory."""


Result = Completed | Raised | LimitExceeded


class Runner:
    """One process for all calls, started at the first one and again after a limit ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = Lock()  # several threads may call; there is one pipe to the process

    def run(
        self,
        program: str,
        *arguments: Any,
        limits: Limits,
        imports: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Result:
        """Call a function.

        Args:
            program: `module:function`, importable without the main program.
            arguments: of the call; they are passed through JSON.
            limits: of this call.
            imports: modules that the function imports; they are loaded before its time begins.
            options: keyword arguments of the call.

        Raises:
            MachineError: the process does not start, or the function or one of `imports` cannot be imported.
        """
        request = {"program": program, "arguments": arguments, "options": dict(options or {}), "imports": list(imports)}
        line = json.dumps(request | {"seconds": limits.seconds, "memory": limits.memory})
        with self._lock:
            try:
                reply = self._exchange(line + "\n")
            except BaseException:  # Ctrl-C: a late reply must not count as that of the next call
                self._stop()
                raise
            if not reply:
                self._stop()
                return LimitExceeded()
        return _result(program, json.loads(reply))

    def _exchange(self, line: str) -> str:
        """Send a request and wait for its reply; an empty one where the process ended."""
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._process = self._start()
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()
        return self._process.stdout.readline()

    def _start(self) -> subprocess.Popen[str]:
        # -P: the program's own folder is not on its path, where a file could hide a library.
        command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            process.kill()
            process.wait()
            raise MachineError(f"the sandbox's process did not start ({' '.join(command)}); run it by hand to see why")
        atexit.register(self._stop)
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        atexit.unregister(self._stop)
        if process is not None:
            process.kill()
            process.communicate()


def _result(program: str, reply: Json) -> Result:
    if "unavailable" in reply:
        raise MachineError(f"the sandbox cannot load {program} ({reply['unavailable']}); install what is missing")
    if "exceeded" in reply:
        return LimitExceeded()
    return Completed(reply["value"]) if "value" in reply else Raised(reply["kind"], reply["message"])

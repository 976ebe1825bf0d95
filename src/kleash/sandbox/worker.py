"""The program of the sandbox's process: one line of JSON in, one out, until the input ends (see `runner`).

    in    {"program": "module:function", "arguments": […], "options": {…}, "imports": […], "seconds": s,
           "memory": bytes}
    out   {"value": …}  or  {"kind": …, "message": …}  or  {"exceeded": true}  or  {"unavailable": …}

The kernel ends this process when a call uses up its processor time: no handler runs, so neither a library that catches
every exception nor a long step in C can go on. It imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from kleash.io import Json


def main() -> None:
    """Answer requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not a reply
    sys.path.append(str(Path(__file__).parents[2]))  # the root of this copy of kleash, installed or not
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; this process ends with its input
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), file=replies, flush=True)


def _answer(request: Json) -> Json:
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (request["memory"], most))
    try:
        function = _load(request["program"], request["imports"])
    except (ImportError, AttributeError) as error:
        return {"unavailable": str(error)}
    signal.setitimer(signal.ITIMER_PROF, request["seconds"])
    signal.setitimer(signal.ITIMER_REAL, 20 * request["seconds"])  # in case the call waits for something
    reply = _call(function, request["arguments"], request["options"])
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return reply


def _load(program: str, imports: list[str]) -> Callable[..., Any]:
    """The function, with its imports loaded before its time begins."""
    for name in imports:
        import_module(name)
    module, _, function = program.partition(":")
    loaded: Callable[..., Any] = getattr(import_module(module), function)
    return loaded


def _call(function: Callable[..., Any], arguments: list[Any], options: Json) -> Json:
    try:
        return {"value": function(*arguments, **options)}
    except MemoryError:
        return {"exceeded": True}
    except Exception as error:
        return {"kind": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    main()

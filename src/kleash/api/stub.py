"""Writes `kleash/__init__.pyi`, from which editors and type checkers know every function and argument.

    python -m kleash.api.stub

The functions are made from the configs when they are first asked for, which no editor can see.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import kleash
from kleash.api.functions import ARGUMENTS, beside_of, config_of, documentation
from kleash.config import Config, Kind, PathText
from kleash.stages import STAGES

HEAD = '''"""Written by `python -m kleash.api.stub` from the configs of the stages: change those."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from kleash.api.types import Data, File, Model, RewardLike
from kleash.chat.messages import Chat
from kleash.models.forward import Live
from kleash.run import RunFolder
from kleash.training.loop import OnStep
from pathlib import Path
'''

KINDS = {"model": "Model", "reward": "RewardLike", "data": "Data", "run": "File | RunFolder", "constitution": "File"}

_TO_TEXT = get_args(PathText)[1]


def stub() -> str:
    """The text of the stub."""
    homes: dict[str, list[str]] = {}
    for name, module in sorted(kleash._HOME_OF.items()):
        homes.setdefault(module, []).append(name)
    imports = [
        f"from {module} import {', '.join(f'{name} as {name}' for name in names)}" for module, names in homes.items()
    ]
    if "kleash.web.label.serve" not in homes:
        imports.append("from kleash.web.label.serve import LabelConfig")
    functions = [_function(name) for name in kleash._STAGES]
    names = ", ".join(f'"{name}"' for name in kleash.__all__)
    parts = [
        HEAD,
        "\n".join(imports),
        "__version__: str\n_STAGES: tuple[str, ...]\n_HOME_OF: dict[str, str]",
        f"__all__ = [{names}]",
        *functions,
    ]
    return "\n".join(parts) + "\n"


def _function(name: str) -> str:
    """The two forms of a stage's function: its arguments by name, or a config."""
    config = config_of(name)
    fields = config.model_fields.items()
    arguments = [f"{field}: {_type(config, field)}" for field, info in fields if info.is_required()]
    arguments += [
        f"{field}: {_type(config, field)} = {info.default!r}" for field, info in fields if not info.is_required()
    ]
    arguments = [argument.replace("PosixPath(", "Path(") for argument in arguments]
    live_arguments = [f"{other}: {ARGUMENTS[other][0]} = None" for other in beside_of(name)]
    arguments += [argument for argument in live_arguments if argument.partition(":")[0] not in config.model_fields]
    stage = STAGES.get(name.replace("_", "-"))
    returns = "None" if stage is None else "Run" if stage.writes in ("model", "page") else "Path"
    listed = "".join(f"    {argument},\n" for argument in arguments)
    text = "\n".join(_wrapped(documentation(name).split("\n")))
    live = "".join(f", {argument}" for argument in live_arguments) or ", **live: Any"
    return (
        f"@overload\ndef {name}(\n    *,\n{listed}) -> {returns}:\n"
        f'    """{text}\n    """\n'
        f"@overload\ndef {name}(config: {config.__name__}, /, *{live}, **others: Any) -> {returns}: ...\n"
    ).replace(", *, **live: Any, **others: Any", ", **live: Any")


def _wrapped(lines: Iterable[str]) -> list[str]:
    """A docstring's lines at most 100 wide, indented as in a function."""
    result: list[str] = []
    for number, line in enumerate(lines):
        indent = " " * (len(line) - len(line.lstrip()))
        body = textwrap.wrap(line, 100, subsequent_indent=indent + "    " * bool(indent)) or [""]
        result += [part if number == 0 and part is body[0] else f"    {part}".rstrip() for part in body]
    return [line.replace("\\", "\\\\") for line in result]


def _type(config: type[Config], field: str) -> str:
    info = config.model_fields[field]
    return _rendered(Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation)


def _rendered(annotation: Any) -> str:
    """A field's annotation as what a caller may pass."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kind = next((item for item in parts[1:] if isinstance(item, Kind)), None)
        if kind is not None:
            none = " | None" if NoneType in get_args(parts[0]) else ""
            return f"{KINDS[kind.name]}{none}"
        if _TO_TEXT in parts[1:]:
            return "File"
        return _rendered(parts[0])
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(map(_rendered, parts)))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, parts))}]"
    if origin is tuple:
        if parts[-1] is not Ellipsis:
            return f"tuple[{', '.join(map(_rendered, parts))}]"
        return "Data" if _rendered(parts[0]) == "Data" else f"Sequence[{_rendered(parts[0])}]"
    if origin is dict:
        return f"Mapping[{', '.join(map(_rendered, parts))}]"
    return {NoneType: "None", Path: "File", Any: "Any"}.get(annotation, getattr(annotation, "__name__", "Any"))


FILE = Path(kleash.__file__).with_suffix(".pyi")


if __name__ == "__main__":
    FILE.write_text(stub())

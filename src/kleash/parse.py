"""JSON and YAML as values: whatever a text holds, there is a value that is safe to use, or an error of one line.

Both parsers raise many types of errors on a damaged text, and they accept values that fail only later: nested so deep
that walking them exceeds the recursion limit, aliases that stand for billions of items, integers that cannot be
printed, halves of characters that cannot be written to a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

DEEPEST = 100
"""Most levels of nesting. Python's own JSON writer, and every recursive function, has to get to the bottom."""

MOST_ITEMS = 1_000_000
"""Most items of a YAML file once its aliases are written out."""

MOST_DIGITS = 3000
"""Most digits of an integer. Python converts no more than 4,300 to text, by default."""


class UnreadableError(ValueError):
    """Why a text is not a value, in one line; whoever reads a file raises its own error from it."""

    line: int | None = None
    """Where that is known."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; bytes are UTF-8.

    Raises:
        UnreadableError: it is not JSON, or it holds what no program could use.
    """
    value = _parse(text, json.loads)
    text = text if isinstance(text, str) else text.decode("utf-8-sig")
    if text.count("[") + text.count("{") > DEEPEST or re.search(r"\\u[dD][89a-fA-F]|[0-9]{1000}", text):
        _refuse_unusable(value)
    return value


def parse_yaml(text: str | bytes) -> Any:
    """The value of a YAML text; bytes are UTF-8.

    Raises:
        UnreadableError: it is not YAML, has a key twice, or holds what no program could use.
    """
    value = _parse(text, lambda text: yaml.load(text, Loader=_UniqueKeys))
    _refuse_unusable(value, most_items=MOST_ITEMS)
    return value


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML lets the last of equal keys win; YAML 1.2.2, 3.2.1.3 forbids them. Keys that `<<` merges in may repeat."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping, checked before merges are resolved.

        Raises:
            yaml.constructor.ConstructorError: a key is there twice.
        """
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            is_merge = key.tag == "tag:yaml.org,2002:merge"
            value = key.value if is_merge else self.construct_object(key)  # `yes` and `on` are one key
            if value in lines:
                problem = f"'{key.value}' is there twice (first in line {lines[value]}); give each its own name"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[value] = key.start_mark.line + 1
        return node


def _parse(text: str | bytes, parser: Callable[[str], Any]) -> Any:
    try:
        return parser(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UnreadableError("it is not UTF-8 text") from None
    except RecursionError:
        raise UnreadableError(f"it is nested more than {DEEPEST} levels deep") from None
    except yaml.YAMLError as error:
        unreadable = UnreadableError(_one_line(getattr(error, "problem", None) or error))
        mark = getattr(error, "problem_mark", None)
        unreadable.line = mark.line + 1 if mark else None
        raise unreadable from None
    except Exception as error:  # what Python raises on a date or a number that is none, in many types
        raise UnreadableError(_one_line(error)) from None


def _refuse_unusable(value: Any, *, most_items: int | None = None) -> None:
    """Refuse what cannot be walked, printed or written; without recursion."""
    items, level = 0, [value]
    for _ in range(DEEPEST + 1):
        children: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                children += [*part, *part.values()]
            elif isinstance(part, list | tuple | set):
                children += part
            else:
                _refuse_scalar(part)
            if most_items is not None and items + len(children) > most_items:
                raise UnreadableError(f"it holds more than {most_items:,} items")
        items += len(children)
        level = children
        if not level:
            return
    raise UnreadableError(f"it is nested more than {DEEPEST} levels deep")


def _refuse_scalar(value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > MOST_DIGITS * 3.33:
        raise UnreadableError(f"it holds a number of more than {MOST_DIGITS:,} digits")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            raise UnreadableError(f"it holds a lone surrogate, half of a character: {half}") from None


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

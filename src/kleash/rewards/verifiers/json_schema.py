"""A response is right if it is JSON, with nothing around it but reasoning, that the row's JSON Schema accepts."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

from kleash.parse import parse_json
from kleash.rewards.final_answer import answer_part
from kleash.rewards.verifiers import BadRowError, Outcome

NAME = "json-schema"
COLUMN = "schema"
GUARDED = True
ACCEPTS = (str, dict, bool)
IMPORTS = ("jsonschema",)


def check(text: str, schema: str | dict[str, Any] | bool, *, fences: bool = False) -> Outcome:
    """Parse a response as JSON and validate it; a `$ref` is resolved within the schema and never fetched (F17).

    Args:
        text: a response.
        schema: as an object, or its JSON as text.
        fences: whether the JSON may stand in a fence of Markdown.

    Raises:
        BadRowError: the schema is not a JSON Schema, or it refers to something outside itself.
    """
    import jsonschema
    import referencing
    import referencing.exceptions

    try:
        schema_object: Any = parse_json(schema) if isinstance(schema, str) else schema
        validator = jsonschema.validators.validator_for(schema_object, default=jsonschema.Draft202012Validator)
        validator.check_schema(schema_object)
    except (jsonschema.SchemaError, ValueError) as error:
        reason = str(getattr(error, "message", error))[:100]
        raise BadRowError(f"invalid JSON Schema: {reason}; correct the schema") from None
    if (missing := _missing_reference(schema_object)) is not None:
        raise BadRowError(f"the schema refers to {missing!r}, which is not in it; put it under $defs")
    try:
        value = _value(text, fences)
    except (ValueError, RecursionError):
        return "unparsable"
    try:
        # An empty registry: the default one would fetch a $ref to elsewhere from the network.
        return "right" if validator(schema_object, registry=referencing.Registry()).is_valid(value) else "wrong"
    except referencing.exceptions.Unresolvable as error:
        raise BadRowError(f"the schema refers to {error.ref!r}, which is not in it; put it under $defs") from None


_FENCE = re.compile(
    r"\s*(?:```|~~~)[^\S\n]*(?:json\w*)?[^\S\n]*\n(.*?)\n?[^\S\n]*(?:```|~~~)\s*", re.DOTALL | re.IGNORECASE
)


def _value(text: str, fences: bool) -> Any:
    """The JSON of a response: all of it, or what remains without its reasoning."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        part = answer_part(text)
        fence = _FENCE.fullmatch(part) if fences else None
        return json.loads(fence[1] if fence else part, parse_constant=_refuse_constant)


def _missing_reference(schema: Any) -> str | None:
    """A `$ref` that leads to nothing in a schema without names of its own (`$id`, `$anchor`); None where there is none.

    A response meets a reference only where the schema sends it there, so that a missing one could be met late.
    """
    references, names = [], False
    rest = [schema]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            names = names or any(key in part for key in ("$id", "id", "$anchor", "$dynamicAnchor"))
            references += [part["$ref"]] if isinstance(part.get("$ref"), str) else []
            rest += [value for key, value in part.items() if key not in ("const", "enum", "default", "examples")]
        elif isinstance(part, list):
            rest += part
    return None if names else next((ref for ref in references if not _leads_somewhere(ref, schema)), None)


def _leads_somewhere(reference: str, schema: Any) -> bool:
    """Whether a reference is a JSON pointer (RFC 6901) to a part of a schema."""
    if not reference.startswith("#"):
        return False
    place: Any = schema
    for step in unquote(reference.removeprefix("#")).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict) and key in place:
            place = place[key]
        elif isinstance(place, list) and key.isdecimal() and int(key) < len(place):
            place = place[int(key)]
        else:
            return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")

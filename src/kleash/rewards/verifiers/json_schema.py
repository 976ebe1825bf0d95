"""A response is right if it is JSON, with nothing around it, that the row's JSON Schema accepts."""

from __future__ import annotations

import json
from typing import Any

from kleash.rewards.verifiers import BadRowError, Outcome

NAME = "json-schema"
COLUMN = "schema"
GUARDED = True
ACCEPTS = (str, dict, bool)
IMPORTS = ("jsonschema",)


def check(text: str, schema: str | dict[str, Any] | bool) -> Outcome:
    """Parse a response as JSON and validate it; a `$ref` is resolved within the schema and never fetched (F17).

    Args:
        text: a response.
        schema: as an object, or its JSON as text.

    Raises:
        BadRowError: the schema is not a JSON Schema, or it refers to something outside itself.
    """
    import jsonschema
    import referencing
    import referencing.exceptions

    try:
        schema_object: Any = json.loads(schema) if isinstance(schema, str) else schema
        validator = jsonschema.validators.validator_for(schema_object, default=jsonschema.Draft202012Validator)
        validator.check_schema(schema_object)
    except (jsonschema.SchemaError, ValueError) as error:
        reason = str(getattr(error, "message", error))[:100]
        raise BadRowError(f"invalid JSON Schema: {reason}; correct the schema") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return "unparsable"
    try:
        # An empty registry: the default one would fetch a $ref to elsewhere from the network.
        return "right" if validator(schema_object, registry=referencing.Registry()).is_valid(value) else "wrong"
    except referencing.exceptions.Unresolvable as error:
        raise BadRowError(f"the schema refers to {error.ref!r}, which is not in it; put it under $defs") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")

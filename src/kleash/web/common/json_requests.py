"""Routes that read a JSON object and answer with one, and the checks of its values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from kleash.errors import InputError
from kleash.labels.store import Annotator
from kleash.parse import UnreadableError, parse_json
from kleash.web.common.security import refusal

Json = Mapping[str, object]
"""A JSON object."""
Handler = Callable[[Annotator, Json], Json]


def json_route(handle: Handler) -> Callable[[Request], Any]:
    """A route that passes the person and the JSON object of a request to a function, and sends what it returns."""

    async def route(request: Request) -> Response:
        try:
            body = parse_json(await request.body())
        except ClientDisconnect:  # in the middle of its body: nobody reads the answer
            return Response(status_code=400)
        except UnreadableError:
            body = None
        if not isinstance(body, dict):
            return JSONResponse({"error": "send a JSON object"}, 400)
        return JSONResponse(await run_in_threadpool(handle, request.state.person, body))

    return route


def input_refused(request: Request, error: Exception) -> Response:
    """The answer to a request that raised an `InputError`."""
    return refusal(request, 400, str(error))


def whole_number(body: Json, name: str) -> int:
    """A value that must be a whole number from 0 to 2³¹ − 1."""
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise InputError(f"'{name}' is missing or is not a whole number; reload the page and try again")
    return value


def query_number(request: Request, name: str, *, default: int, most: int) -> int:
    """A whole number of the query from 0 to `most`, which is also taken for a larger one; `default` for what is none
    of at most four digits.
    """
    value = request.query_params.get(name, "")
    return min(int(value), most) if re.fullmatch("[0-9]{1,4}", value) else default


def text(body: Json, name: str, limit: int) -> str:
    """A value that must be a text of at most `limit` characters; empty where it is missing."""
    value = body.get(name, "")
    if not isinstance(value, str) or len(value) > limit:
        raise InputError(f"'{name}' is not a text of at most {limit} characters; shorten it")
    return value.encode("utf-8", "replace").decode()

"""A small OpenAI-compatible server on loopback with configurable faults, which counts requests."""

from __future__ import annotations

import asyncio
import json
import math
import re
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Reply = tuple[str, Mapping[str, float]]
"""What the model says, and the probability of some first tokens."""


class Server:
    """Serves `/v1/chat/completions` in a thread.

    Args:
        reply: the model's reply to a request.
        faults: the fault of the request with that number, from 1: `429`, `429 after N`, `500`, `hang`, `truncated`,
            `cut` (the connection breaks), `no choices`.
        dies_after: requests that are answered before the server is gone.
        takes: which of `logprobs` and `response_format` the server knows; it refuses the others with 422.
    """

    def __init__(
        self,
        reply: Callable[[dict[str, Any]], Reply],
        *,
        faults: Mapping[int, str] | None = None,
        dies_after: int | None = None,
        takes: tuple[str, ...] = ("logprobs", "response_format"),
        port: int = 0,
    ) -> None:
        self.reply, self.faults, self.dies_after, self.takes = reply, dict(faults or {}), dies_after, takes
        self.requests: list[dict[str, Any]] = []
        self.answered: list[str] = []
        """Bodies that got an answer, and would have been paid for."""
        self.peak = 0
        self._open = 0
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Server:
        app = Starlette(routes=[Route("/v1/chat/completions", self._serve, methods=["POST"])])
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run, args=([self._socket],))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._uvicorn.should_exit = True
        self._uvicorn.force_exit = True
        self._thread.join(10)
        self._socket.close()

    async def _serve(self, request: Request) -> Response:
        self._open += 1
        self.peak = max(self.peak, self._open)
        try:
            return await self._answer(request)
        finally:
            self._open -= 1

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        number = len(self.requests)
        if self.dies_after is not None and len(self.answered) >= self.dies_after:
            self._uvicorn.should_exit = self._uvicorn.force_exit = True
            return Broken()
        fault = self.faults.pop(number, "")
        if fault.startswith("429"):
            after = fault.removeprefix("429 after ")
            return JSONResponse(
                {"error": {"message": "slow down"}}, 429, {"Retry-After": after} if after != "429" else {}
            )
        if fault == "500":
            return JSONResponse({"error": {"message": "an accident"}}, 500)
        if fault == "hang":
            await asyncio.sleep(3)
        if fault == "truncated":
            return Response(b'{"id": "x", "choices": [{"mess', media_type="application/json")
        if fault == "no choices":
            return JSONResponse({"id": "x", "object": "chat.completion", "choices": []})
        if fault == "cut":
            return Broken()
        for field in {"logprobs", "response_format"} - set(self.takes):
            if field in body:
                return JSONResponse({"error": {"message": f"unknown field {field}"}}, 422)
        self.answered.append(json.dumps(body, sort_keys=True))
        return JSONResponse(self._completion(body))

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        text, first = self.reply(body)
        top_logprobs = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in first.items() if p > 0]
        content = [{"token": text[:1], "logprob": -0.1, "bytes": None, "top_logprobs": top_logprobs}]
        size = sum(len(turn["content"]) for turn in body["messages"]) // 4
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": text},
                    "logprobs": {"content": content} if body.get("logprobs") else None,
                }
            ],
            "usage": {"prompt_tokens": size, "completion_tokens": 1, "total_tokens": size + 1},
        }


class Broken(Response):
    """Promises more than it sends, then the connection is gone."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b'{"id"', "more_body": True})
        raise ConnectionAbortedError


def shown(body: Mapping[str, Any]) -> tuple[str, str]:
    """The two responses that a judge was shown."""
    text = body["messages"][0]["content"]
    first, second = (re.search(rf"<response {n} (\w+)>\n(.*)\n</response {n} \1>", text, re.DOTALL) for n in (1, 2))
    assert first is not None and second is not None
    return first[2], second[2]


def counts_z(body: Mapping[str, Any], *, sure: float = 0.9, place: float = 0.0) -> Reply:
    """A judge that prefers the letter z, with a given probability, and has a position bias.

    Args:
        body: the request.
        sure: probability of the response with more z.
        place: added to the probability of the response shown first.
    """
    if "Reply with 1." in body["messages"][0]["content"]:
        return "1", {"1": 0.99}
    a, b = (text.count("z") for text in shown(body))
    first = min(max((0.5 if a == b else sure if a > b else 1 - sure) + place, 0.001), 0.999)
    return "1" if first > 0.5 else "2", {"1": first * 0.8, " 1": first * 0.1, "2": (1 - first) * 0.9, "The": 0.1}

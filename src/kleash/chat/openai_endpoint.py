"""A chat model behind an OpenAI-compatible endpoint. One request is one attempt; `ChatClient` repeats failed ones.

Only fields that every such server understands are sent: `model`, `messages`, `max_tokens`, `temperature`; `seed` for
samples, `logprobs` and `response_format` where the request needs them. The API key is read from OPENAI_API_KEY.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from kleash.chat.messages import ChatReply, ChatRequest, Retryable
from kleash.chat.quoting import JOINER, without_control_tokens
from kleash.errors import ConfigError, InputError
from kleash.io import Json

TOP_LOGPROBS = 20
"""Likeliest tokens whose log-probabilities are requested: the most that servers give."""


class Endpoint:
    """A `Chat` over HTTP.

    Args:
        url: base URL of the server, up to and including `/v1`.
        model: what the server calls the model.
        timeout: seconds until an attempt is given up.
        workers: requests at the same time.

    Raises:
        ConfigError: the package `openai` is not installed.
    """

    block = 1

    def __init__(self, url: str, model: str, *, timeout: float = 60.0, workers: int = 8) -> None:
        try:
            import openai
        except ImportError:
            raise ConfigError("--endpoint needs the package openai; pip install 'kleash[feedback]'") from None
        self.name = model.rstrip("/").rsplit("/", 1)[-1]
        self.workers = workers
        self.identity: Mapping[str, Any] = {"endpoint": url, "model": model}
        self._openai = openai
        # the package's own retries would be neither counted nor held to the budget
        self._client = openai.OpenAI(
            base_url=url, api_key=os.environ.get("OPENAI_API_KEY") or "none", timeout=timeout, max_retries=0
        )
        weakref.finalize(self, self._client.close)

    def ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """See `Chat`."""
        return [self._ask(request) for request in requests]

    def _ask(self, request: ChatRequest) -> ChatReply:
        openai, start = self._openai, time.monotonic()
        where = f"{self.identity['endpoint']} (model {self.identity['model']})"
        try:
            completion = self._client.chat.completions.create(model=self.identity["model"], **_fields(request))
            return _reply(completion, request, time.monotonic() - start)
        except openai.APITimeoutError:
            raise Retryable("timed out", charged=True) from None
        except openai.APIConnectionError as error:
            refused = "ConnectError" in type(error.__cause__).__name__
            raise Retryable(f"{where}: {error.__cause__ or error}", charged=not refused, unreachable=refused) from None
        except openai.APIStatusError as error:
            reason = f"HTTP {error.status_code}: {' '.join(str(error.message).split())[:200]}"
            if error.status_code in (408, 409, 425, 429) or error.status_code >= 500:
                raise Retryable(reason, after=retry_after(error.response.headers)) from None
            if error.status_code in (400, 413, 422):
                return ChatReply(error=reason, refused=True)
            raise InputError(f"{where} replies {reason}; check --endpoint, --model and OPENAI_API_KEY") from None
        except (ValueError, openai.APIError) as error:  # the body is not JSON, or lacks a field
            raise Retryable(f"the reply cannot be parsed ({type(error).__name__})", charged=True) from None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait (RFC 9110, 10.2.3: a number or a date); None where it names none."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _fields(request: ChatRequest) -> Json:
    fields: Json = {
        "messages": [{**turn, "content": without_control_tokens(str(turn["content"]))} for turn in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
    }
    if request.temperature > 0:
        fields["seed"] = request.seed % 2**31
    if request.options:
        fields |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    if request.schema is not None:
        schema = {"name": "answer", "schema": dict(request.schema), "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


def _reply(completion: Any, request: ChatRequest, seconds: float) -> ChatReply:
    if not getattr(completion, "choices", None) or completion.choices[0].message is None:
        raise ValueError("no choices")
    choice, usage = completion.choices[0], completion.usage
    text = choice.message.content or ""
    if any(JOINER in turn["content"] for turn in _fields(request)["messages"]):
        text = text.replace(JOINER, "")  # quoted from the request
    first = (getattr(choice.logprobs, "content", None) or [None])[0]
    likeliest = list(first.top_logprobs or []) if first is not None else []
    return ChatReply(
        text=text,
        finished=choice.finish_reason != "length",
        logprobs=_of_options(likeliest, request.options),
        has_logprobs=bool(likeliest),
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        seconds=seconds,
    )


def _of_options(likeliest: Sequence[Any], options: Sequence[str]) -> dict[str, float]:
    """Log-probability of each option as first token, with or without a space around it."""
    logprobs: dict[str, float] = {}
    for token in likeliest:
        option = token.token.strip()
        if option in options and math.isfinite(token.logprob):
            before = logprobs.get(option)
            logprobs[option] = token.logprob if before is None else math.log(math.exp(before) + math.exp(token.logprob))
    return logprobs

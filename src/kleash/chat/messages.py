"""Requests to a chat model and its replies, wherever it runs: behind an endpoint or in this process."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from kleash.data.group import Message

LEAST_MASS = 0.01
"""Probability that the options must have together; with less the model was about to reply something else."""


@dataclass(frozen=True)
class ChatRequest:
    """One request to a chat model."""

    messages: tuple[Message, ...]
    max_tokens: int = 1
    """Longest reply."""
    options: tuple[str, ...] = ()
    """Replies of one token whose log-probabilities are needed."""
    schema: Mapping[str, Any] | None = None
    """JSON schema of the reply, for models that can be constrained to one."""
    temperature: float = 0.0
    seed: int = 0
    """Seed of the sample; used where the temperature is above 0."""

    def key(self, identity: Mapping[str, Any]) -> str:
        """Hash of the whole request and of the model that it goes to."""
        text = json.dumps([dict(identity), self.to_json()], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, object]:
        """The request as a JSON object."""
        return asdict(self) | {"messages": [dict(turn) for turn in self.messages]}


@dataclass(frozen=True)
class ChatReply:
    """A chat model's reply to one request, or the reason why there is none."""

    text: str = ""
    finished: bool = True
    """False where the reply was cut off at `max_tokens`."""
    logprobs: Mapping[str, float] = field(default_factory=dict)
    """Log-probability of each option as the first token of the reply; options that were not reported are missing."""
    has_logprobs: bool = False
    """Whether the model reported log-probabilities of any tokens."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    error: str = ""
    """Why there is no reply; empty where there is one."""
    refused: bool = False
    """Whether the error lies in the request itself, so that the same request will never get a reply."""

    def shares(self, options: Sequence[str]) -> list[float] | None:
        """Probability of each option given that the reply is one of them (Lee et al. 2023); None where none was likely.

        An option that was not reported counts as 0: it is less likely than the twentieth token.
        """
        mass = [math.exp(self.logprobs[option]) if option in self.logprobs else 0.0 for option in options]
        total = sum(mass)
        return [value / total for value in mass] if total >= LEAST_MASS else None


class Retryable(Exception):
    """A failed attempt; the same request may succeed later."""

    def __init__(self, reason: str, *, after: float | None = None, charged: bool = False, unreachable: bool = False):
        """Describe the failure.

        Args:
            reason: for the user.
            after: seconds to wait, where the server asked for them.
            charged: whether the server may have done (and billed) the work anyway.
            unreachable: whether no connection could be made.
        """
        super().__init__(reason)
        self.after, self.charged, self.unreachable = after, charged, unreachable


@runtime_checkable
class Chat(Protocol):
    """A chat model that replies to a few requests in one call."""

    name: str
    """The model's name in reports and labels."""
    identity: Mapping[str, Any]
    """Everything besides the request that a reply depends on; part of the cache key."""
    block: int
    """Number of requests that one call takes best."""
    workers: int
    """Calls that may run at the same time."""

    def ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """One reply per request, in their order; the failure of a single request is its reply's `error`.

        Raises:
            Retryable: none of the requests got a reply this time.
            InputError: the settings are wrong, so no request will get a reply.
        """
        ...

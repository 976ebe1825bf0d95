"""What a chat model is asked and what it answers, wherever it runs: behind an endpoint or in this process."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from kleash.data.group import Message

ANSWERED = 0.01
"""Probability that the options must have together: below it the model was about to say something else."""


@dataclass(frozen=True)
class ChatRequest:
    """One thing asked of a chat model."""

    messages: tuple[Message, ...]
    max_tokens: int = 1
    """Longest answer."""
    options: tuple[str, ...] = ()
    """Answers of one token whose log-probabilities are wanted."""
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer should follow, where whoever is asked can be held to one."""
    temperature: float = 0.0
    seed: int = 0
    """Of the draw, where the temperature is above 0."""

    def key(self, identity: Mapping[str, Any]) -> str:
        """Hash of the whole question and of who is asked."""
        text = json.dumps([dict(identity), self.request()], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def request(self) -> dict[str, Any]:
        """The question as JSON has it."""
        return asdict(self) | {"messages": [dict(turn) for turn in self.messages]}


@dataclass(frozen=True)
class ChatReply:
    """What came back."""

    text: str = ""
    finished: bool = True
    """Whether it ended by itself."""
    logprobs: Mapping[str, float] = field(default_factory=dict)
    """Of the options, as the first token of the answer; those that were not told are missing."""
    told: bool = False
    """Whether log-probabilities of any tokens came."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    error: str = ""
    """Why there is no answer; empty where there is one."""
    refused: bool = False
    """Whether it was the question that could not be taken."""

    def shares(self, options: Sequence[str]) -> list[float] | None:
        """Probability of each option given that it is one of them (Lee et al. 2023); None where none was likely.

        An option that was not told counts with nothing: it is less likely than the twentieth token.
        """
        told = [math.exp(self.logprobs[option]) if option in self.logprobs else 0.0 for option in options]
        total = sum(told)
        return [value / total for value in told] if total >= ANSWERED else None


class Retryable(Exception):
    """No answer this time; the same question may get one later."""

    def __init__(self, reason: str, *, after: float | None = None, charged: bool = False, unreachable: bool = False):
        """Say why.

        Args:
            reason: for people.
            after: seconds to wait, where the other side said so.
            charged: whether the other side may have done the work all the same.
            unreachable: whether there was nobody to ask.
        """
        super().__init__(reason)
        self.after, self.charged, self.unreachable = after, charged, unreachable


@runtime_checkable
class Chat(Protocol):
    """Answers questions, a few in one call."""

    name: str
    """What reports and labels call it."""
    identity: Mapping[str, Any]
    """What its answers depend on beside the question: they are kept under it."""
    block: int
    """Questions that one call takes best."""
    workers: int
    """Calls that may run at the same time."""

    def ask(self, questions: Sequence[ChatRequest]) -> list[ChatReply]:
        """One answer a question, in their order; what goes wrong with one of them is its `error`.

        Raises:
            Retryable: no answer to any of them, this time.
            InputError: nobody can be asked.
        """
        ...

"""A verdict of a chat model on one text: a number from a scale, or whether something holds.

Where the server reports log-probabilities the verdict is the expectation over the answer tokens (Lee et al. 2023,
arXiv:2309.00267, direct scoring). Where it does not, or where the model reasons first, it is the mean of sampled votes.
A vote is read from the last line of the reply only, after its thoughts, so that a judge that quotes a verdict out of
the text has not given it. A vote that cannot be read is counted and left out; nothing takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kleash.chat.answer_text import without_thoughts
from kleash.chat.client import ChatClient
from kleash.chat.messages import ChatReply, ChatRequest

REPLY_TOKENS = 48
"""Longest reply after the reasoning."""

WORDS = {"Y": "es", "N": "o"}
"""What may follow a letter in a vote: a model that is asked for Y says Yes, too."""

Answers = Literal["auto", "logprobs", "votes"]


@dataclass(frozen=True)
class Question:
    """What is asked about each text, and the answers that it may get."""

    text: str
    """The question: "Rate the response from 1 to 9."."""
    word: str
    """What an answer is called: rating, verdict."""
    options: tuple[str, ...]
    """The answers, each one token of one character."""
    values: tuple[float, ...]
    """The number that each stands for."""

    def at_once(self) -> str:
        """The question with a request for the answer only."""
        return f"{self.text} Reply with {self._one()} and nothing else."

    def after_thought(self) -> str:
        """The question with a request to reason first."""
        return (
            f"{self.text} First reason step by step about what the text says and does. Then end your reply with a line "
            f'of its own, "{self.word.capitalize()}: X", where X is {self._one()}.'
        )

    def read(self, text: str) -> float | None:
        """The answer in the last line of a reply; None where that line holds anything but one answer."""
        lines = [line.strip() for line in text.split("\n") if line.strip(" \t*_`#")]
        names = "|".join(sorted({"answer", "score", "rating", "verdict", self.word}))
        options = "|".join(f"{option}(?:{WORDS.get(option, '')})?" for option in self.options)
        scale = rf"(?:\s*/\s*{self.options[-1]})?" if self.options[-1].isdigit() else ""
        answer = re.fullmatch(
            rf"[\W_]*(?:(?:(?:my|the|final)\s+)*(?:{names})\b(?:\s+is)?[\W_]*)?({options}){scale}[\W_]*",
            lines[-1] if lines else "",
            re.IGNORECASE,
        )
        return None if answer is None else self.values[self.options.index(answer[1][0].upper())]

    def _one(self) -> str:
        first, last = self.options[0], self.options[-1]
        return f"one digit from {first} to {last}" if first.isdigit() else f"{' or '.join(self.options)}"


@dataclass(frozen=True)
class Verdict:
    """The answer to a question about one text."""

    value: float | None
    """Its expectation, or the mean of the readable votes; None where nothing was readable."""
    spread: float
    """Standard deviation of the readable votes; 0 from log-probabilities."""
    unreadable: float
    """Share of the answers that could not be read, or did not come."""
    requests: int
    tokens: int
    """Of prompts and replies."""
    reason: str = ""
    """Why the first unreadable answer is not readable."""


class VerdictReader:
    """Asks a chat model one question about each of many texts.

    Args:
        client: the chat model.
        answers: from log-probabilities or from votes; auto finds out by one request whether the model reports any.
        votes: replies sampled for each text.
        reasoning: let the model reason before each vote.
        reasoning_tokens: longest reasoning.
        temperature: of the votes.
    """

    def __init__(
        self, client: ChatClient, *, answers: Answers = "auto", votes: int = 5, reasoning: bool = False,
        reasoning_tokens: int = 512, temperature: float = 1.0,
    ) -> None:  # fmt: skip
        self.client, self.votes, self.temperature = client, votes, temperature
        self.reasoning, self.reasoning_tokens = reasoning, reasoning_tokens
        self.answers: Answers = "votes" if reasoning else answers

    def __call__(self, prompts: Sequence[str], question: Question) -> list[Verdict]:
        """One verdict per prompt, each of which shows its text and ends before the question.

        Raises:
            GateError, MachineError, InputError: as `ChatClient`.
        """
        if self.answers == "auto":
            (reply,) = self.client([ChatRequest(_user(f"Reply with {question.options[0]}."), options=question.options)])
            self.answers = "logprobs" if reply.has_logprobs and not reply.error else "votes"
        if self.answers == "logprobs":
            texts = [f"{prompt}\n\n{question.at_once()}" for prompt in prompts]
            replies = self.client([ChatRequest(_user(text), options=question.options) for text in texts], "judge")
            return [_expected(reply, question) for reply in replies]
        instruction = question.after_thought() if self.reasoning else question.at_once()
        longest = REPLY_TOKENS + (self.reasoning_tokens if self.reasoning else 0)
        requests = [
            ChatRequest(_user(f"{prompt}\n\n{instruction}"), longest, temperature=self.temperature, seed=draw)
            for prompt in prompts
            for draw in range(self.votes)
        ]
        replies = self.client(requests, "judge")
        rows = [replies[start : start + self.votes] for start in range(0, len(replies), self.votes)]
        return [_mean(row, question) for row in rows]


def _user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def _expected(reply: ChatReply, question: Question) -> Verdict:
    shares = None if reply.error else reply.shares(question.options)
    tokens = reply.prompt_tokens + reply.completion_tokens
    if shares is None:
        reason = reply.error or f"its reply begins with {reply.text[:60]!r}, and none of {_listed(question)} was likely"
        return Verdict(None, 0.0, 1.0, 1, tokens, reason)
    return Verdict(float(np.dot(shares, question.values)), 0.0, 0.0, 1, tokens)


def _mean(replies: Sequence[ChatReply], question: Question) -> Verdict:
    votes = [value for reply in replies if (value := _vote(reply, question)) is not None]
    unread = next((reply for reply in replies if _vote(reply, question) is None), None)
    return Verdict(
        float(np.mean(votes)) if votes else None,
        float(np.std(votes)) if votes else 0.0,
        1 - len(votes) / len(replies),
        len(replies),
        sum(reply.prompt_tokens + reply.completion_tokens for reply in replies),
        "" if unread is None else _fault(unread, question),
    )


def _vote(reply: ChatReply, question: Question) -> float | None:
    return None if reply.error or not reply.finished else question.read(without_thoughts(reply.text))


def _fault(reply: ChatReply, question: Question) -> str:
    """Why a vote is not readable."""
    if reply.error:
        return reply.error
    if not reply.finished:
        return f"its reply was cut off, {reply.text[:60]!r}; give 'reasoning: true', or more 'reasoning_tokens'"
    return f"the last line of its reply is not one of {_listed(question)}: {reply.text[-60:]!r}"


def _listed(question: Question) -> str:
    return ", ".join(question.options)

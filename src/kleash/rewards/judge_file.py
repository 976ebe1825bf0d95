"""A judge's YAML file: a chat model that rates responses by a rule, or checks them by a rubric.

The keys are those of `JudgeSettings`; docs/rewards.md has examples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from kleash.chat.client import ChatClient
from kleash.chat.in_process import LocalChat
from kleash.chat.messages import Chat
from kleash.chat.openai_endpoint import Endpoint
from kleash.chat.reply_file import ReplyFile
from kleash.chat.verdicts import Answers, VerdictReader
from kleash.config import Config, read_yaml
from kleash.errors import ConfigError
from kleash.models.compute import Compute
from kleash.rewards.judge_score import JudgeReward
from kleash.rewards.rubric import RubricReward, read_rubric

GENERAL_RULE = "Prefer the response that is more helpful, honest and harmless."

ROWS = "rows"
"""Value of `rubric`: the rows have their own."""


class JudgeSettings(Config):
    """The chat model that judges, what it judges by, and how its verdicts are read."""

    judge: str
    """A folder or a hub name; with `endpoint`, the server's name of the model."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server, up to `/v1`; its key is read from OPENAI_API_KEY."""
    rule: str | None = Field(None, min_length=1)
    """The rule to rate by, from 1 to 9; null, and no `rubric`: more helpful, honest and harmless."""
    rubric: Any = None
    """Criteria in place of a rule: `rows`, each row's own in its column `rubric`; or a list of texts or of {criterion,
    weight, name}, for the rows without that column."""
    answers: Answers = "auto"
    """Where a verdict comes from. logprobs: the answer token's log-probability. votes: several sampled replies. auto:
    logprobs if the model reports them and does not reason first."""
    votes: int = Field(5, ge=1)
    """Replies to sample for each question, without log-probabilities."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of those replies."""
    reasoning: bool = False
    """Let the judge reason before its verdict, which is then read from the last line of each vote."""
    reasoning_tokens: int = Field(512, ge=1)
    """Longest reasoning, thoughts in `<think>` included."""
    max_characters: int | None = Field(None, ge=1)
    """Most characters of a response that the judge sees (its beginning), and of a prompt (its end)."""
    concurrency: int = Field(8, ge=1)
    """Requests to send to an endpoint at the same time."""
    timeout: float = Field(120.0, gt=0)
    """Seconds to wait for a reply before the request is sent again."""
    price: tuple[float, float] = (0.0, 0.0)
    """Price of a million tokens of prompt, and of a million tokens of reply. 1 and 1: `budget` is in millions of
    tokens."""
    budget: float | None = Field(None, gt=0)
    """Spending limit for all replies in `store`, those of other runs included. Needs `price`."""
    store: Path | None = None
    """File that keeps every reply of an endpoint, so that none is paid for twice. Null: beside this file, with the
    ending `.calls.db`."""

    @model_validator(mode="after")
    def _fits(self) -> JudgeSettings:
        if self.rule is not None and self.rubric is not None:
            raise ValueError("'rule' and 'rubric' exclude each other; give one of them")
        if self.reasoning and self.answers == "logprobs":
            raise ValueError("'reasoning' samples votes, so 'answers' should be votes or auto")
        if min(self.price) < 0 or (self.budget is not None and not any(self.price)):
            raise ValueError("'budget' needs 'price': the cost of a million tokens of prompt, and of reply, 0 or more")
        return self


def read_judge(path: Path) -> JudgeSettings:
    """The settings of a judge's file.

    Raises:
        ConfigError: names the file, the key and the valid values.
    """
    return JudgeSettings.make(read_yaml(path), source=str(path))


def judge_reward(path: Path, *, compute: Compute | None = None) -> JudgeReward | RubricReward:
    """The reward of a judge's file.

    Args:
        path: the YAML file.
        compute: how a model in this process computes; None: `Compute()`.

    Raises:
        ConfigError: names the file, the key and the valid values.
    """
    settings = read_judge(path)
    rubric = None
    if settings.rubric not in (None, ROWS):
        try:
            rubric = read_rubric(settings.rubric)
        except ConfigError as error:
            raise ConfigError(f"{path}: 'rubric': {error}; or `{ROWS}`, for each row's own") from None
    client = _client(settings, path, compute or Compute())
    reader = VerdictReader(
        client, answers=settings.answers, votes=settings.votes, reasoning=settings.reasoning,
        reasoning_tokens=settings.reasoning_tokens, temperature=settings.temperature,
    )  # fmt: skip
    if settings.rubric is not None:
        return RubricReward(client, default=rubric, max_characters=settings.max_characters, reader=reader)
    rule = settings.rule or GENERAL_RULE
    return JudgeReward(client, rule=rule, max_characters=settings.max_characters, reader=reader)


def _client(settings: JudgeSettings, path: Path, compute: Compute) -> ChatClient:
    if settings.endpoint is None:
        return ChatClient(LocalChat.load(settings.judge, device=compute.device, dtype=compute.dtype))
    chat: Chat = Endpoint(settings.endpoint, settings.judge, timeout=settings.timeout, workers=settings.concurrency)
    file = ReplyFile(settings.store or path.with_suffix(".calls.db"))
    return ChatClient(
        chat, cache=file, price=settings.price, budget=settings.budget, spent_before=file.spent(),
        remedy=f"raise 'budget' in {path} and run the same command again, a training run with --accept-changed reward",
    )  # fmt: skip

"""A chat model as reward: it rates each response, and the score is the expected rating (direct scoring, d-RLAIF).

Lee et al. 2023 (arXiv:2309.00267): no preferences and no reward model; the likelihood of each score token is normalised
over the scale, and the expected score is mapped to [−1, 1]. Their scale of 1 to 10 has a score of two tokens; here it
ends at 9, so that each is one.

    judge: models/judge                # a folder, or the endpoint's name of it
    endpoint: http://localhost:8000/v1 # without it the model runs in this process
    rule: Prefer the response that is more helpful.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kleash.chat.client import ChatClient
from kleash.chat.in_process import LocalChat
from kleash.chat.messages import Chat, ChatRequest
from kleash.chat.openai_endpoint import Endpoint
from kleash.chat.quoting import NOTE, code_of, conversation, marked, shortened
from kleash.config import Config, read_yaml
from kleash.data.group import Group, Response
from kleash.errors import DataError
from kleash.models.compute import Compute

SCALE = tuple("123456789")


class JudgeSettings(Config):
    """The chat model that rates, and its rule."""

    judge: str
    """A folder or a hub name; with `endpoint`, the server's name of the model."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server that gives log-probabilities, up to `/v1`."""
    rule: str = Field("Prefer the response that is more helpful, honest and harmless.", min_length=1)
    """The rule to rate by."""
    max_characters: int | None = Field(None, ge=1)
    """Most characters of a response that the judge sees (its beginning), and of a prompt (its end)."""


class JudgeReward:
    """A `Reward`: 2·(E[score] − 1)/8 − 1, in [−1, 1].

    Args:
        client: the judge.
        rule: the rule to rate by.
        max_characters: see `JudgeSettings`.
    """

    def __init__(self, client: ChatClient, *, rule: str, max_characters: int | None = None) -> None:
        self.client, self.rule, self.max_characters = client, rule, max_characters

    @classmethod
    def load(cls, path: Path, *, compute: Compute | None = None) -> JudgeReward:
        """From YAML; the keys are those of `JudgeSettings`.

        Raises:
            ConfigError: names the file, the key and the valid values.
        """
        compute = compute or Compute()
        settings = JudgeSettings.make(read_yaml(path), source=str(path))
        chat: Chat
        if settings.endpoint is None:
            chat = LocalChat.load(settings.judge, device=compute.device, dtype=compute.dtype)
        else:
            chat = Endpoint(settings.endpoint, settings.judge)
        return cls(ChatClient(chat), rule=settings.rule, max_characters=settings.max_characters)

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`.

        Raises:
            DataError: a response got no rating.
        """
        rows = [(group, response) for group in groups for response in group.responses]
        answers = self.client([ChatRequest(self._messages(*row), options=SCALE) for row in rows], "judge")
        scores: list[float] = []
        for (_, response), answer in zip(rows, answers, strict=True):
            shares = None if answer.error else answer.shares(SCALE)
            if shares is None:
                reason = answer.error or f"its reply begins with {answer.text!r}, and no digit was likely"
                raise DataError(
                    f"{self.client.chat.name} gave no score to {response.text[:60]!r} ({reason}); use a judge that "
                    "follows the format and returns log-probabilities"
                )
            expected = sum(int(score) * share for score, share in zip(SCALE, shares, strict=True))
            scores.append(2 * (expected - 1) / (len(SCALE) - 1) - 1)
        return torch.tensor(scores, dtype=torch.float32).reshape(len(groups), -1)

    def _messages(self, group: Group, response: Response) -> tuple[dict[str, str], ...]:
        prompt = shortened(conversation(group.prompt), self.max_characters, end=True)
        answer = shortened(response.text, self.max_characters)
        code = code_of(prompt, answer)
        parts = [
            f"You rate a response to a conversation by this rule:\n\n{self.rule}",
            NOTE.format(code=code),
            marked("conversation", prompt, code),
            marked("response", answer, code),
            "Rate the response from 1 (the worst) to 9 (the best). Reply with one digit and nothing else.",
        ]
        return ({"role": "user", "content": "\n\n".join(parts)},)

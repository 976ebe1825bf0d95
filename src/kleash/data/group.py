"""The record of the code base: a prompt with K responses, and their labels.

`Group` is used for files and interfaces: text, frozen, at most one label. `EncodedGroup` is a group as token ids.
`GroupBatch` (`kleash.data.batch`) is used in training: tensors over [P prompts, K responses, T tokens]. This module
does not import torch, so that code that only reads text starts at once.

Axes of the code base: P prompts, K responses of a prompt, T tokens of a response, S tokens of a prompt, R = P·K rows,
V vocabulary, D hidden.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kleash.errors import DataError

Message = Mapping[str, Any]
"""One turn of a conversation: `{"role": ..., "content": ...}`."""

Content = str | tuple[Message, ...]
"""Plain text, or turns for a chat template."""


@dataclass(frozen=True)
class Response:
    """One answer to a prompt: its text, or the token ids it was sampled as (or both)."""

    content: Content | None = None
    """Text or turns; None where the response has only ids that were not decoded."""
    ids: tuple[int, ...] | None = None
    """Token ids as sampled, end token included if the response ended. Never decoded and re-encoded for training."""
    finished: bool = True
    """Whether the response ended by itself; False for one that was cut off, which gets no end token."""
    stopped: bool = False
    """Whether a stop text ended it: `ids` hold that text and no end token, the text ends before it."""
    decode: Callable[[Sequence[int]], str] | None = field(default=None, repr=False, compare=False)
    """How to turn `ids` into text; needed only where `content` is None."""

    @property
    def text(self) -> str:
        """The response as text; turns are joined by newlines."""
        if isinstance(self.content, str):
            return self.content
        if self.content is not None:
            return "\n".join(str(turn["content"]) for turn in self.content)
        if self.ids is None or self.decode is None:
            raise DataError("a response has neither text nor token ids that can be decoded; give it one of them")
        return self.decode(self.ids)


@dataclass(frozen=True)
class Preference:
    """Which of two responses is the better one."""

    probability: float = 1.0
    """P(response 0 ≻ response 1): 1 for a plain choice, one half for a tie, between for a soft label."""
    annotator: str | None = None


@dataclass(frozen=True)
class Ranking:
    """An order over K responses, hence K(K−1)/2 comparisons."""

    ranks: tuple[int, ...]
    """Rank of each response, 0 the best; equal ranks are ties."""
    annotator: str | None = None


@dataclass(frozen=True)
class Scores:
    """A number for each of the K responses."""

    values: tuple[float, ...]
    """NaN where the reward had no opinion."""


Label = Preference | Ranking | Scores


@dataclass(frozen=True)
class Group:
    """A prompt, its K responses and at most one label."""

    prompt: Content
    responses: tuple[Response, ...] = ()
    label: Label | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The other columns of the row (`answer`, …); rewards receive them."""

    @property
    def prompt_text(self) -> str:
        """The prompt as text; turns are joined by newlines."""
        return Response(self.prompt).text


def canonical_prompt(prompt: str | Sequence[Message]) -> Any:
    """A prompt in the one form that all ways to write it share: turns without nulls and with sorted keys; one turn of
    the user as its text.
    """
    if isinstance(prompt, str):
        return prompt
    turns = [{name: turn[name] for name in sorted(turn) if turn[name] is not None} for turn in prompt]
    if len(turns) == 1 and turns[0].keys() == {"role", "content"} and turns[0]["role"] == "user":
        return turns[0]["content"]
    return turns


def prompt_key(prompt: str | Sequence[Message]) -> str:
    """The key of a prompt wherever rows are grouped or split by prompt; see `canonical_prompt`."""
    canonical = canonical_prompt(prompt)
    return canonical if isinstance(canonical, str) else json.dumps(canonical, sort_keys=True, default=str)


def chosen_first(group: Group) -> Group:
    """A preference with the response first that is more likely the better one, as in rows of `chosen` and
    `rejected`.
    """
    label = group.label
    if not isinstance(label, Preference) or label.probability >= 0.5:
        return group
    swapped = pair_of(group, 1, 0)
    others = {"chosen": "rejected", "rejected": "chosen"}
    columns = {}
    for name, value in swapped.columns.items():  # `chosen_model` is the chosen one's wherever it stands
        side, underscore, rest = name.partition("_")
        columns[f"{others[side]}_{rest}" if side in others and underscore else name] = value
    return replace(swapped, columns=columns, label=replace(label, probability=1 - label.probability))


MODELS = "models"
"""The column that says who wrote each response: a name for each, in their order."""


def pair_of(group: Group, i: int, j: int) -> Group:
    """Two responses of a group with its label as it is, and with their two names where it says who wrote each."""
    names, columns = group.columns.get(MODELS), group.columns
    if isinstance(names, list | tuple) and len(names) == len(group.responses):
        columns = {**columns, MODELS: [names[i], names[j]]}
    return replace(group, responses=(group.responses[i], group.responses[j]), columns=columns)


def pair_label(group: Group, i: int, j: int) -> float | None:
    """P(response i ≻ response j) by the group's own label, one half for a tie; None where it has none."""
    label = group.label
    if isinstance(label, Preference):
        return label.probability if i < j else 1 - label.probability
    values = label.values if isinstance(label, Scores) else [-rank for rank in label.ranks] if label else None
    if values is None or values[i] != values[i] or values[j] != values[j]:  # no opinion of a response
        return None
    return 0.5 + 0.5 * ((values[i] > values[j]) - (values[i] < values[j]))


@dataclass(frozen=True)
class EncodedResponse:
    """A response as token ids."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    """True where the policy chose (or is to choose) the token, False where it was forced: templates, other turns."""
    logprobs: tuple[float, ...] | None = None
    """log π_sampler of each token, where it was sampled."""


@dataclass(frozen=True)
class EncodedGroup:
    """A group as token ids. The prompt has at least one token, so that every response token has a predecessor."""

    prompt_ids: tuple[int, ...]
    responses: tuple[EncodedResponse, ...]
    source: Group

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the longest response."""
        return len(self.prompt_ids) + max((len(response.ids) for response in self.responses), default=0)

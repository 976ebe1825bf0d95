"""A chat model as labeller: which of two responses is better, by a principle, asked in both orders.

Lee et al. 2023 (RLAIF, arXiv:2309.00267): the label is the probability of the answer token among the two, both orders
are asked, optionally after a chain of thought. Bai et al. 2022 (Constitutional AI, arXiv:2212.08073): the principle is
drawn at random, and labels after a chain of thought are clamped. Here besides: where the orders disagree about which
response is better the label is one half, and what cannot be read or did not come is no label at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from kleash.chat.client import ChatClient
from kleash.chat.messages import ChatRequest
from kleash.chat.quoting import conversation, shortened
from kleash.data.group import Group
from kleash.errors import GateError
from kleash.labels.constitution import Constitution, Principle
from kleash.labels.judge_prompts import (
    ANSWER,
    CHOICES,
    GENERAL,
    REPAIR,
    SCHEMA,
    THINK,
    VOTE,
    comparison,
)  # fmt: skip
from kleash.labels.labeller import LabelResult, State
from kleash.run import derive_seed

CLAMP = (0.4, 0.6)
"""Bai et al. 2022, section 4.3: labels after a chain of thought are too sure; clamped to 40–60 % they work best."""

VOTE_TOKENS = 48

DISAGREE = "the two orders disagree"


@dataclass(frozen=True)
class Judgement:
    """A verdict, and what it was made of."""

    verdict: LabelResult
    orders: tuple[float, float] | None = None
    """P(shown first ≻ shown second) with the responses as given, and turned round; None where there is no label."""
    principles: Mapping[str, float] = field(default_factory=dict)
    """P(response 0 ≻ response 1) by each principle that was asked and answered."""

    @property
    def flipped(self) -> bool:
        """Whether the orders disagree about which response is better."""
        return self.orders is not None and not _agree(*self.orders)

    @property
    def mean(self) -> float | None:
        """P(response 0 ≻ response 1), mean of both orders, before a disagreement became one half and any clamp."""
        return None if self.orders is None else (self.orders[0] + 1 - self.orders[1]) / 2


@dataclass(frozen=True)
class _Said:
    """What one order of one pair gave."""

    state: State = "verdict"
    first: float = 0.5
    """P(shown first ≻ shown second)."""
    reason: str | None = None


class Judge:
    """A `Labeller` on a chat model.

    Args:
        client: the model, with its response cache and its spending limit.
        constitution: what to compare by; None: one general rule.
        principles: one drawn for each pair, or all, averaged by weight.
        chain_of_thought: reason first, then answer.
        reasoning_tokens: longest reasoning.
        clamp: least and greatest probability of a label; None: `CLAMP` after a chain of thought, else none.
        answers: from log-probabilities of the answer tokens, or from votes; auto asks the server what it gives.
        votes: answers drawn for each order where there are no log-probabilities.
        max_characters: a longer response loses its end, a longer prompt its beginning.
        seed: of draws and votes.
    """

    def __init__(
        self,
        client: ChatClient,
        *,
        constitution: Constitution | None = None,
        principles: Literal["drawn", "averaged"] = "drawn",
        chain_of_thought: bool = False,
        reasoning_tokens: int = 256,
        clamp: tuple[float, float] | None = None,
        answers: Literal["auto", "logprobs", "votes"] = "auto",
        votes: int = 5,
        max_characters: int | None = None,
        seed: int = 0,
    ) -> None:
        self.name = f"judge:{client.chat.name}"
        self.client = client
        self.constitution = constitution or Constitution(principles=(GENERAL,))
        self.averaged = principles == "averaged" and len(self.constitution.principles) > 1
        self.chain_of_thought, self.reasoning_tokens = chain_of_thought, reasoning_tokens
        self.clamp = clamp or (CLAMP if chain_of_thought else None)
        self.answers, self.votes = answers, votes
        self.max_characters, self.seed = max_characters, seed
        self._schema: Mapping[str, Any] | None = None  # None: not asked yet; empty: the server takes none

    def compare(self, groups: Sequence[Group]) -> list[LabelResult]:
        """See `Labeller`."""
        return [judgement.verdict for judgement in self.judge(groups)]

    def judge(self, groups: Sequence[Group], *, by: Sequence[str | None] | None = None) -> list[Judgement]:
        """One judgement a group of two responses.

        Args:
            groups: of two responses each.
            by: names of the principles to judge by, in place of those that would be drawn.

        Raises:
            GateError, MachineError, InputError: as `ChatClient`.
        """
        chosen = [self._principles(group, by[row] if by else None) for row, group in enumerate(groups)]
        asked = [(group, one, turned) for group, some in zip(groups, chosen, strict=True) for one in some
                 for turned in (False, True)]  # fmt: skip
        said = iter(self._ask([self._comparison(*question) for question in asked]))
        return [self._judgement([(one, next(said), next(said)) for one in some]) for some in chosen]

    def drawn(self, group: Group) -> Principle:
        """The principle that a pair is judged by where one is drawn; the same in either order of its responses."""
        texts = sorted(response.text for response in group.responses)
        return self.constitution.draw((self.seed, group.prompt_text, *texts))

    def _principles(self, group: Group, name: str | None) -> tuple[Principle, ...]:
        if self.averaged:
            return self.constitution.principles
        named = [principle for principle in self.constitution.principles if principle.name == name]
        return tuple(named) or (self.drawn(group),)

    def _comparison(self, group: Group, principle: Principle, turned: bool) -> str:
        first, second = (shortened(response.text, self.max_characters) for response in group.responses)
        asked = shortened(conversation(group.prompt), self.max_characters, end=True)
        return comparison(asked, *((second, first) if turned else (first, second)), principle)

    # --- asking ------------------------------------------------------------------------------------------------------

    def ready(self) -> str:
        """How answers are read, `logprobs` or `votes`; asks the server once where nobody said.

        Raises:
            GateError: a first question gets no answer.
        """
        if self.answers == "auto":
            self.answers = "logprobs" if self._takes(options=CHOICES) else "votes"
        if self.answers == "votes" and self._schema is None:
            self._schema = SCHEMA if self._takes(schema=SCHEMA) else {}
        return self.answers

    def _takes(self, **wanted: Any) -> bool:
        words = ({"role": "user", "content": 'Reply with {"better": "1"}.' if "schema" in wanted else "Reply with 1."},)
        (answer,) = self.client([ChatRequest(words, max_tokens=1 if "options" in wanted else VOTE_TOKENS, **wanted)])
        if answer.error and not answer.refused:
            raise GateError(f"{self.name} gave no answer to a first question: {answer.error}; look at the server")
        return not answer.refused and ("options" not in wanted or answer.told)

    def _ask(self, texts: Sequence[str]) -> list[_Said]:
        return self._by_logprobs(texts) if self.ready() == "logprobs" else self._by_votes(texts)

    def _by_logprobs(self, texts: Sequence[str]) -> list[_Said]:
        messages, reasons, failed = self._conversations(texts, ANSWER, temperature=0.0)
        answers = self.client([ChatRequest(turns, options=CHOICES) for turns in messages], "judge")
        said = []
        for answer, reason, no_reason in zip(answers, reasons, failed, strict=True):
            shares = answer.shares(CHOICES)
            if answer.error or no_reason:
                said.append(_Said("error", reason=answer.error or no_reason))
            elif shares is None:
                said.append(_Said("unparsable", reason=f"neither 1 nor 2 was likely; it begins with {answer.text!r}"))
            else:
                said.append(_Said(first=shares[0], reason=reason))
        return said

    def _by_votes(self, texts: Sequence[str]) -> list[_Said]:
        votes: list[list[float]] = [[] for _ in texts]
        told: list[list[_Said]] = [[] for _ in texts]
        reasons: list[str | None] = [None for _ in texts]
        for draw in range(self.votes):
            messages, why, failed = self._conversations(texts, VOTE, temperature=1.0, draw=draw)
            for row, (vote, failure) in enumerate(self._vote(messages, draw)):
                if failed[row] or failure is not None:
                    told[row].append(_Said("error", reason=failed[row]) if failed[row] else failure or _Said("error"))
                else:
                    votes[row].append(vote)
                    reasons[row] = reasons[row] or why[row]
        return [
            _Said(first=float(np.mean(given)), reason=reason) if 2 * len(given) > self.votes else failures[0]
            for given, failures, reason in zip(votes, told, reasons, strict=True)
        ]

    def _vote(self, messages: Sequence[Any], draw: int) -> list[tuple[float, _Said | None]]:
        """A vote of each, with one repair of what is no JSON."""

        def question(turns: Any) -> ChatRequest:
            seed = derive_seed(self.seed, "vote", draw, turns)
            return ChatRequest(turns, VOTE_TOKENS, schema=self._schema or None, temperature=1.0, seed=seed)

        answers = self.client([question(turns) for turns in messages], "judge")
        broken = [row for row, answer in enumerate(answers) if not answer.error and parse_vote(answer.text) is None]
        repairs = [
            (*messages[row], {"role": "assistant", "content": answers[row].text}, {"role": "user", "content": REPAIR})
            for row in broken
        ]
        mended = dict(zip(broken, self.client([question(turns) for turns in repairs], "repair"), strict=True))
        found: list[tuple[float, _Said | None]] = []
        for row, answer in enumerate(answers):
            last = mended.get(row, answer)
            vote = None if last.error else parse_vote(last.text)
            failure = _Said("error", reason=last.error) if last.error else _Said("unparsable", reason=last.text[:200])
            found.append((0.5, failure) if vote is None else (vote, None))
        return found

    def _conversations(
        self, texts: Sequence[str], ask: str, *, temperature: float, draw: int = 0
    ) -> tuple[list[Any], list[str | None], list[str]]:
        """What is asked in the end: at once, or after the model's own reasoning; with that, and why there is none."""
        if not self.chain_of_thought:
            plain = [({"role": "user", "content": f"{text}\n\n{ask}"},) for text in texts]
            return plain, [None] * len(texts), [""] * len(texts)
        openings = [({"role": "user", "content": f"{text}\n\n{THINK}"},) for text in texts]
        seeds = [derive_seed(self.seed, "reason", draw, text) if temperature else 0 for text in texts]
        answers = self.client(
            [
                ChatRequest(turns, self.reasoning_tokens, temperature=temperature, seed=seed)
                for turns, seed in zip(openings, seeds, strict=True)
            ],
            "reason",
        )
        messages = [
            (*opening, {"role": "assistant", "content": answer.text}, {"role": "user", "content": ask})
            for opening, answer in zip(openings, answers, strict=True)
        ]
        return messages, [answer.text for answer in answers], [answer.error for answer in answers]

    # --- verdicts ----------------------------------------------------------------------------------------------------

    def _judgement(self, said: Sequence[tuple[Principle, _Said, _Said]]) -> Judgement:
        one = None if self.averaged else said[0][0].name
        failures = [side for _, a, b in said for side in (a, b) if side.state != "verdict"]
        answered = [(p, a, b) for p, a, b in said if a.state == b.state == "verdict"]
        if 2 * sum(p.weight for p, *_ in answered) <= sum(p.weight for p, *_ in said):
            worst = next((side for side in failures if side.state == "error"), failures[0])
            return Judgement(LabelResult(worst.state, self.name, principle=one, reason=worst.reason))
        both = [(a, b) for _, a, b in answered]
        weights = np.array([principle.weight for principle, *_ in answered])
        weights /= weights.sum()
        first, turned = (float(weights @ np.array([pair[k].first for pair in both])) for k in (0, 1))
        each = {p.name: _both_orders(a.first, b.first) for p, a, b in answered}
        probability = float(weights @ np.array(list(each.values())))
        if self.clamp is not None and probability != 0.5:
            probability = min(max(probability, self.clamp[0]), self.clamp[1])
        return Judgement(
            LabelResult(
                "tie" if probability == 0.5 else "verdict",
                self.name,
                probability=probability,
                principle=one,
                reason=answered[0][1].reason or (DISAGREE if not _agree(first, turned) else None),
                order_effect=(first + turned) / 2 - 0.5,
            ),
            (first, turned),
            each,
        )


def _both_orders(first: float, turned: float) -> float:
    """P(response 0 ≻ response 1) of both orders; one half where they disagree about which is better."""
    return (first + 1 - turned) / 2 if _agree(first, turned) else 0.5


def _agree(first: float, turned: float) -> bool:
    """Whether two orders agree about which response is better; one that is undecided disagrees with none."""
    return (first - 0.5) * (turned - 0.5) <= 0


def parse_vote(text: str) -> float | None:
    """A vote as P(shown first ≻ shown second); None where the text is anything but the JSON asked for.

    It must be the whole text (in a code fence or not): a judge that quotes a response may quote JSON in it.
    """
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    try:
        said = json.loads(fenced[1] if fenced else text)
    except ValueError:
        return None
    if not isinstance(said, dict) or set(said) != {"better"}:
        return None
    return {"1": 1.0, "2": 0.0, "tie": 0.5}.get(str(said["better"]).lower())

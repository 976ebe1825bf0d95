"""A chat model as labeller: which of two responses is better, by a principle, asked in both orders.

Lee et al. 2023 (RLAIF, arXiv:2309.00267): the label is the probability of the answer token among the two, both orders
are asked, optionally after a chain of thought. Bai et al. 2022 (Constitutional AI, arXiv:2212.08073): the principle is
drawn at random, and labels after a chain of thought are clamped. In addition, where the orders disagree about which
response is better the label is one half, and a reply that cannot be read or did not come is not a label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from kleash.chat.answer_text import without_thoughts
from kleash.chat.client import ChatClient
from kleash.chat.judge_prompts import (
    ANSWER,
    ANSWER_TOKENS,
    GENERAL,
    REPAIR,
    SCHEMA,
    THINK,
    VOTE,
    Principle,
    comparison,
)
from kleash.chat.messages import ChatReply, ChatRequest
from kleash.chat.quoting import conversation, response_text, shortened
from kleash.data.group import Group, Message
from kleash.data.shown import shown_prompt
from kleash.errors import GateError
from kleash.evals.judging import same_again
from kleash.labels.constitution import Constitution
from kleash.labels.labeller import LabelResult, Outcome
from kleash.parse import UnreadableError, parse_json
from kleash.run import derive_seed

CLAMP = (0.4, 0.6)
"""Bai et al. 2022, section 4.3: labels after a chain of thought are overconfident; clamped to 40–60 % they work
best."""

VOTE_TOKENS = 48

DISAGREE = "the two orders disagree"

Turns = tuple[Message, ...]


@dataclass(frozen=True)
class BothOrders:
    """P(shown first ≻ shown second) of one pair, asked in both orders."""

    original: float
    """With response 0 shown first."""
    swapped: float
    """With response 1 shown first."""

    @property
    def agree(self) -> bool:
        """Whether the orders agree about which response is better; an undecided order agrees with any."""
        return (self.original - 0.5) * (self.swapped - 0.5) <= 0

    @property
    def mean(self) -> float:
        """P(response 0 ≻ response 1), mean of both orders."""
        return (self.original + 1 - self.swapped) / 2

    @property
    def label(self) -> float:
        """P(response 0 ≻ response 1); one half where the orders disagree about which response is better."""
        return self.mean if self.agree else 0.5

    @property
    def order_effect(self) -> float:
        """P(shown first ≻ shown second), mean of both orders, minus one half."""
        return (self.original + self.swapped) / 2 - 0.5


@dataclass(frozen=True)
class Judgement:
    """The label of a pair, and the answers that it was computed from."""

    result: LabelResult
    orders: BothOrders | None = None
    """Mean over principles, by weight; None where there is no label."""
    principles: Mapping[str, float] = field(default_factory=dict)
    """P(response 0 ≻ response 1) by each principle with an answer in both orders."""
    consistency: float | None = None
    """Probability that the same question gets the same answer again, mean over orders and, by weight, over principles;
    None where it is unknown."""

    @property
    def mean(self) -> float | None:
        """P(response 0 ≻ response 1), mean of both orders, before a disagreement became one half and any clamp."""
        return None if self.orders is None else self.orders.mean


@dataclass(frozen=True)
class _Answer:
    """P(shown first ≻ shown second) of one order of one pair, or why there is none."""

    first: float | None = None
    outcome: Outcome = "preference"
    reason: str | None = None
    votes: tuple[int, int, int] | None = None
    """Where `first` is the mean of votes: how many were for the first, for the second, and for a tie."""

    @property
    def consistency(self) -> float | None:
        """Probability that the same question gets the same answer again; None where it is unknown, as from one vote."""
        if self.first is None:
            return None
        if self.votes is None:
            return self.first**2 + (1 - self.first) ** 2
        return same_again(self.votes)


@dataclass(frozen=True)
class _Comparison:
    """One pair under one principle, with the answer of each order."""

    principle: Principle
    original: _Answer
    swapped: _Answer

    @property
    def orders(self) -> BothOrders | None:
        if self.original.first is None or self.swapped.first is None:
            return None
        return BothOrders(self.original.first, self.swapped.first)

    @property
    def consistency(self) -> float | None:
        """Mean of both orders; None where one is unknown."""
        if self.original.consistency is None or self.swapped.consistency is None:
            return None
        return (self.original.consistency + self.swapped.consistency) / 2


@dataclass(frozen=True)
class _Thread:
    """The turns before an answer, with the judge's reasoning where it reasons first."""

    turns: Turns
    reason: str | None = None
    error: str = ""
    """Why there is no reasoning, where there should be."""


class Judge:
    """A `Labeller` on a chat model.

    Args:
        client: the chat model.
        constitution: principles to compare by; None: one general rule.
        principles: one drawn for each pair, or all, averaged by weight.
        chain_of_thought: reason first, then answer.
        reasoning_tokens: longest reasoning.
        clamp: least and greatest probability of a label; None: `CLAMP` after a chain of thought, otherwise none.
        answers: from log-probabilities of the answer tokens, or from votes; auto tests which of them the server
            supports.
        votes: answers sampled for each order where there are no log-probabilities.
        max_characters: a longer response loses its end, a longer prompt its beginning.
        seed: of drawn principles and votes.
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
        self._schema: Mapping[str, Any] | None = None  # None: not known yet; empty: the server takes none

    def compare(self, groups: Sequence[Group]) -> list[LabelResult]:
        """See `Labeller`."""
        return [judgement.result for judgement in self.judge(groups)]

    def judge(self, groups: Sequence[Group], *, by: Sequence[str | None] | None = None) -> list[Judgement]:
        """One judgement per group of two responses.

        Args:
            groups: of two responses each.
            by: names of the principles to judge by, in place of those that would be drawn.

        Raises:
            GateError, MachineError, InputError: as `ChatClient`.
        """
        principles = [self._principles(group, by[row] if by else None) for row, group in enumerate(groups)]
        prompts = [
            self._prompt(group, principle, swapped)
            for group, chosen in zip(groups, principles, strict=True)
            for principle in chosen
            for swapped in (False, True)
        ]
        answers = iter(self._answers(prompts))
        return [
            self._judgement([_Comparison(principle, next(answers), next(answers)) for principle in chosen])
            for chosen in principles
        ]

    def drawn(self, group: Group) -> Principle:
        """The principle that a pair is judged by where one is drawn; the same in either order of its responses."""
        texts = sorted(response.text for response in group.responses)
        return self.constitution.draw((self.seed, group.prompt_text, *texts))

    def _principles(self, group: Group, name: str | None) -> tuple[Principle, ...]:
        if self.averaged:
            return self.constitution.principles
        named = [principle for principle in self.constitution.principles if principle.name == name]
        return tuple(named) or (self.drawn(group),)

    def _prompt(self, group: Group, principle: Principle, swapped: bool) -> str:
        first, second = (shortened(response_text(response), self.max_characters) for response in group.responses)
        prompt = shortened(conversation(shown_prompt(group)), self.max_characters, end=True)
        return comparison(prompt, *((second, first) if swapped else (first, second)), principle)

    # --- requests ----------------------------------------------------------------------------------------------------

    def ready(self) -> str:
        """How answers are read, `logprobs` or `votes`; asks the server once where the settings leave it open.

        Raises:
            GateError: the first request gets no reply.
        """
        if self.answers == "auto":
            self.answers = "logprobs" if self._reports_logprobs() else "votes"
        if self.answers == "votes" and self._schema is None:
            self._schema = SCHEMA if self._takes_schema() else {}
        return self.answers

    def _reports_logprobs(self) -> bool:
        reply = self._first_reply(ChatRequest(_user("Reply with 1."), max_tokens=1, options=ANSWER_TOKENS))
        return not reply.refused and reply.has_logprobs

    def _takes_schema(self) -> bool:
        request = ChatRequest(_user('Reply with {"better": "1"}.'), max_tokens=VOTE_TOKENS, schema=SCHEMA)
        return not self._first_reply(request).refused

    def _first_reply(self, request: ChatRequest) -> ChatReply:
        (reply,) = self.client([request])
        if reply.error and not reply.refused:
            raise GateError(f"{self.name} gave no reply to the first request: {reply.error}; check the server")
        return reply

    def _answers(self, prompts: Sequence[str]) -> list[_Answer]:
        return self._by_logprobs(prompts) if self.ready() == "logprobs" else self._by_votes(prompts)

    def _by_logprobs(self, prompts: Sequence[str]) -> list[_Answer]:
        threads = self._threads(prompts, ANSWER, temperature=0.0)
        replies = self.client([ChatRequest(thread.turns, options=ANSWER_TOKENS) for thread in threads], "judge")
        return [_token_answer(reply, thread) for reply, thread in zip(replies, threads, strict=True)]

    def _by_votes(self, prompts: Sequence[str]) -> list[_Answer]:
        """The mean of the votes on each prompt; at least half of them must be valid."""
        draws = [self._vote(prompts, draw) for draw in range(self.votes)]
        return [self._mean_vote(votes) for votes in zip(*draws, strict=True)]

    def _mean_vote(self, votes: Sequence[_Answer]) -> _Answer:
        values = [vote.first for vote in votes if vote.first is not None]
        if 2 * len(values) <= self.votes:
            return next(vote for vote in votes if vote.first is None)
        reason = next((vote.reason for vote in votes if vote.first is not None and vote.reason), None)
        counts = (values.count(1.0), values.count(0.0), values.count(0.5))
        return _Answer(float(np.mean(values)), reason=reason, votes=counts)

    def _vote(self, prompts: Sequence[str], draw: int) -> list[_Answer]:
        """One vote on each prompt; a reply that is not the JSON asked for may be repaired once."""
        # a model that thinks in each reply thinks before the JSON, too
        longest = VOTE_TOKENS + (self.reasoning_tokens if self.chain_of_thought else 0)

        def request(turns: Turns) -> ChatRequest:
            seed = derive_seed(self.seed, "vote", draw, turns)
            return ChatRequest(turns, longest, schema=self._schema or None, temperature=1.0, seed=seed)

        threads = self._threads(prompts, VOTE, temperature=1.0, draw=draw)
        replies = self.client([request(thread.turns) for thread in threads], "judge")
        unparsable = [row for row, reply in enumerate(replies) if not reply.error and parse_vote(reply.text) is None]
        repairs = [
            (*threads[row].turns, _turn("assistant", replies[row].text), _turn("user", REPAIR)) for row in unparsable
        ]
        for row, reply in zip(unparsable, self.client([request(turns) for turns in repairs], "repair"), strict=True):
            replies[row] = reply
        return [_vote_answer(reply, thread) for reply, thread in zip(replies, threads, strict=True)]

    def _threads(self, prompts: Sequence[str], question: str, *, temperature: float, draw: int = 0) -> list[_Thread]:
        """The turns up to the question: the question at once, or after the model's own reasoning."""
        if not self.chain_of_thought:
            return [_Thread(_user(f"{prompt}\n\n{question}")) for prompt in prompts]
        openings = [_user(f"{prompt}\n\n{THINK}") for prompt in prompts]
        seeds = [derive_seed(self.seed, "reason", draw, prompt) if temperature else 0 for prompt in prompts]
        replies = self.client(
            [
                ChatRequest(turns, self.reasoning_tokens, temperature=temperature, seed=seed)
                for turns, seed in zip(openings, seeds, strict=True)
            ],
            "reason",
        )
        return [
            _Thread((*opening, _turn("assistant", reply.text), _turn("user", question)), reply.text, reply.error)
            for opening, reply in zip(openings, replies, strict=True)
        ]

    # --- judgements --------------------------------------------------------------------------------------------------

    def _judgement(self, comparisons: Sequence[_Comparison]) -> Judgement:
        """The label of a pair; none where principles of half the weight or more have no answer in both orders."""
        name = None if self.averaged else comparisons[0].principle.name
        answered = [comparison for comparison in comparisons if comparison.orders is not None]
        judged = [(comparison.principle, comparison.orders) for comparison in answered if comparison.orders is not None]
        weight = sum(comparison.principle.weight for comparison in comparisons)
        if 2 * sum(principle.weight for principle, _ in judged) <= weight:
            failure = _failure(comparisons)
            return Judgement(LabelResult(failure.outcome, self.name, principle=name, reason=failure.reason))
        weights = np.array([principle.weight for principle, _ in judged])
        weights /= weights.sum()
        orders = BothOrders(
            float(weights @ np.array([pair_orders.original for _, pair_orders in judged])),
            float(weights @ np.array([pair_orders.swapped for _, pair_orders in judged])),
        )
        labels = {principle.name: pair_orders.label for principle, pair_orders in judged}
        probability = self._clamped(float(weights @ np.array(list(labels.values()))))
        reason = answered[0].original.reason
        result = LabelResult.of(
            probability,
            self.name,
            principle=name,
            reason=reason or (None if orders.agree else DISAGREE),
            order_effect=orders.order_effect,
        )
        again = [comparison.consistency for comparison in answered]
        consistency = None if None in again else float(weights @ np.array(again, dtype=np.float64))
        return Judgement(result, orders, labels, consistency)

    def _clamped(self, probability: float) -> float:
        """A tie stays a tie."""
        if self.clamp is None or probability == 0.5:
            return probability
        return min(max(probability, self.clamp[0]), self.clamp[1])


def _token_answer(reply: ChatReply, thread: _Thread) -> _Answer:
    """P(first) among the two answer tokens."""
    if reply.error or thread.error:
        return _Answer(outcome="error", reason=reply.error or thread.error)
    shares = reply.shares(ANSWER_TOKENS)
    if shares is None:
        return _Answer(outcome="unparsable", reason=f"neither 1 nor 2 was likely; the reply begins with {reply.text!r}")
    return _Answer(shares[0], reason=thread.reason)


def _vote_answer(reply: ChatReply, thread: _Thread) -> _Answer:
    if thread.error or reply.error:
        return _Answer(outcome="error", reason=thread.error or reply.error)
    vote = parse_vote(reply.text)
    if vote is None:
        return _Answer(outcome="unparsable", reason=reply.text[:200])
    return _Answer(vote, reason=thread.reason)


def _failure(comparisons: Sequence[_Comparison]) -> _Answer:
    """The first error, otherwise the first answer that could not be read."""
    failures = [
        answer
        for comparison in comparisons
        for answer in (comparison.original, comparison.swapped)
        if answer.first is None
    ]
    return next((answer for answer in failures if answer.outcome == "error"), failures[0])


def _turn(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _user(text: str) -> Turns:
    return (_turn("user", text),)


def parse_vote(text: str) -> float | None:
    """A vote as P(shown first ≻ shown second); None where the text is not exactly the requested JSON.

    The JSON must be the whole text (in a code fence or not) after its thoughts: a judge that quotes a response may
    quote JSON in it.
    """
    text = without_thoughts(text).strip()
    fence = re.fullmatch(r"```(?:json)?(.*)```", text, re.DOTALL)
    try:
        vote = parse_json(fence[1] if fence else text)
    except UnreadableError:
        return None
    if not isinstance(vote, dict) or set(vote) != {"better"}:
        return None
    return {"1": 1.0, "2": 0.0, "tie": 0.5}.get(str(vote["better"]).lower())

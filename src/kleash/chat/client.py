"""Chat client with a response cache, retries with backoff, and a spending limit.

An answer is kept as soon as it is there, under the hash of the question and of who was asked, so an interrupted run
goes on where it was. A failed attempt is made again after the time that the server asks for, else after half a second,
one, two, …, with jitter. What is still without answer then is an `error` of its question; a server that cannot be
reached at all ends the run, since there is nobody to ask.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from threading import Condition, Event
from typing import Any, Protocol, runtime_checkable

from kleash.chat.messages import Chat, ChatReply, ChatRequest, Retryable
from kleash.errors import GateError, MachineError
from kleash.progress import Progress

ATTEMPTS = 6
FIRST_WAIT = 0.5
"""Seconds before the second attempt, where nobody says how long to wait; each further wait is twice as long."""
LONGEST_WAIT = 300.0
"""Seconds: who asks for more has no answer for us today."""
OVERHEAD = 64
"""Tokens that a template may put around the messages."""


@runtime_checkable
class ResponseCache(Protocol):
    """Where answers are kept."""

    def recall(self, key: str) -> tuple[ChatReply, float] | None:
        """The answer to a question and what it cost; None where there is none."""
        ...

    def keep(self, key: str, model: str, question: ChatRequest, answer: ChatReply, cost: float) -> None:
        """Keep a question with its answer, or with its error."""
        ...


@dataclass
class Usage:
    """What asking took, in all."""

    questions: int = 0
    kept: int = 0
    """Of them, answered before."""
    attempts: int = 0
    """Calls made; of a model in this process, batches."""
    errors: int = 0
    """Questions that stayed without an answer; those that could not be taken aside."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """What the answers cost, those kept from before included."""
    spent: float = 0.0
    """Of it, in this run; with attempts that may have been charged and brought nothing."""
    seconds: float = 0.0
    """Of waiting for answers, all workers together."""


class ChatClient:
    """A chat model with retries, a response cache and a spending limit.

    Args:
        chat: who is asked.
        cache: where answers are kept; None keeps none.
        price: money for a million tokens of prompt and of answer.
        budget: money that the answers may cost, those kept from before included; None: no limit. A question is not
            asked if it could cost more than is left: its bytes bound its tokens.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        cache: ResponseCache | None = None,
        price: tuple[float, float] = (0.0, 0.0),
        budget: float | None = None,
    ) -> None:
        self.chat, self.cache, self.price, self.budget = chat, cache, price, budget
        self.usage = Usage()
        self._reserved = 0.0
        self._lost = 0.0
        self._budget_lock = Condition()
        self._stop = Event()

    def __call__(self, questions: Sequence[ChatRequest], title: str = "ask") -> list[ChatReply]:
        """One answer a question, in their order.

        Raises:
            GateError: the budget is reached; what was answered is kept.
            MachineError: there is nobody to ask; what was answered is kept.
            InputError: nobody can be asked like this.
        """
        keys = [question.key(self.chat.identity) for question in questions]
        found = {key: answer for key in dict.fromkeys(keys) if (answer := self._recall(key)) is not None}
        self.usage.questions += len(questions)
        self.usage.kept += sum(key in found for key in keys)
        # of one length together, so that a batch has little padding
        missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in found}
        todo = sorted(missing, key=lambda key: sum(len(str(turn["content"])) for turn in missing[key].messages))
        blocks = [todo[start : start + self.chat.block] for start in range(0, len(todo), self.chat.block)]
        self._stop.clear()
        pool = ThreadPoolExecutor(self.chat.workers)
        try:
            with Progress(len(todo), title) as progress:
                running = {pool.submit(self._ask, block, [missing[key] for key in block]): block for block in blocks}
                for future in as_completed(running):
                    found |= zip(running[future], future.result(), strict=True)
                    progress.update(progress.step + len(running[future]), cost=self.usage.cost)
        finally:
            self._stop.set()  # an interrupted run waits for what is under way, and for nothing else
            pool.shutdown(cancel_futures=True)
        return [found[key] for key in keys]

    def figures(self) -> dict[str, Any]:
        """What asking took so far."""
        return asdict(replace(self.usage, spent=self.usage.spent + self._lost))

    def _recall(self, key: str) -> ChatReply | None:
        kept = self.cache.recall(key) if self.cache is not None else None
        if kept is None:
            return None
        answer, cost = kept
        self._count(answer, cost)
        return answer

    def _ask(self, keys: Sequence[str], questions: Sequence[ChatRequest]) -> list[ChatReply]:
        failure = Retryable("not asked")
        for attempt in range(1, ATTEMPTS + 1):
            got = self._attempt(keys, questions)
            if not isinstance(got, Retryable):
                return got
            failure, wait = got, got.after
            if wait is None:
                wait = FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            if attempt == ATTEMPTS or wait > LONGEST_WAIT or self._stop.wait(wait):
                break
        if failure.unreachable:
            raise MachineError(
                f"{failure}: cannot be reached; start the server, then run the same command again: what was answered "
                "is kept"
            )
        return self._keep(keys, questions, [ChatReply(error=str(failure)) for _ in questions])

    def _attempt(self, keys: Sequence[str], questions: Sequence[ChatRequest]) -> list[ChatReply] | Retryable:
        """One call, with the most that it can cost set aside meanwhile."""
        bound = sum(self._bound(question) for question in questions)
        self._reserve(bound)
        lost = 0.0
        try:
            return self._keep(keys, questions, self.chat.ask(questions))
        except Retryable as failure:
            lost = bound if failure.charged else 0.0
            return failure
        finally:
            with self._budget_lock:
                self._reserved -= bound
                self._lost += lost
                self._budget_lock.notify_all()

    def _keep(
        self, keys: Sequence[str], questions: Sequence[ChatRequest], answers: Sequence[ChatReply]
    ) -> list[ChatReply]:
        for key, question, answer in zip(keys, questions, answers, strict=True):
            cost = self._cost(answer.prompt_tokens, answer.completion_tokens)
            if self.cache is not None:
                self.cache.keep(key, self.chat.name, question, answer, cost)
            with self._budget_lock:
                self._count(answer, cost)
                self.usage.spent += cost
                self.usage.errors += bool(answer.error) and not answer.refused
                self.usage.seconds += answer.seconds
        return list(answers)

    def _count(self, answer: ChatReply, cost: float) -> None:
        self.usage.prompt_tokens += answer.prompt_tokens
        self.usage.completion_tokens += answer.completion_tokens
        self.usage.cost += cost

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.price[0] + completion_tokens * self.price[1]) / 1e6

    def _bound(self, question: ChatRequest) -> float:
        """The most that a question can cost: no tokenizer makes more tokens than there are bytes."""
        size = sum(len(str(turn["content"]).encode()) + OVERHEAD for turn in question.messages)
        return self._cost(size, question.max_tokens)

    def _reserve(self, bound: float) -> None:
        """Take the most that a question can cost out of the budget, as soon as what is under way leaves enough."""
        with self._budget_lock:
            while self.budget is not None and self.usage.cost + self._lost + self._reserved + bound > self.budget:
                if not self._reserved or self._stop.is_set():
                    raise GateError(
                        f"the budget of {self.budget:g} is reached: {self.usage.cost + self._lost:.4g} spent, and the "
                        "next question may cost more than is left; raise --budget and run the same command again: "
                        "what was answered is kept"
                    )
                self._budget_lock.wait(1.0)
            self._reserved += bound
            self.usage.attempts += 1

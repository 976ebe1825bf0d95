"""Chat client with a response cache, retries with backoff, and a spending limit.

A reply is cached as soon as it arrives, under the hash of the request and of the model, so an interrupted run continues
where it stopped. A failed attempt is repeated after the time that the server asks for, otherwise after 0.5, 1, 2, …
seconds, with jitter. A request that still has no reply then gets an `error`; a server that cannot be reached at all
ends the run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from threading import Condition, Event

from kleash.chat.messages import Chat, ChatReply, ChatRequest, Retryable
from kleash.chat.response_cache import ResponseCache
from kleash.errors import GateError, MachineError
from kleash.progress import Progress

ATTEMPTS = 6
FIRST_WAIT = 0.5
"""Seconds before the second attempt where the server names no time; each further wait is twice as long."""
LONGEST_WAIT = 300.0
"""Seconds. A server that asks for more is given up."""
TEMPLATE_TOKENS = 64
"""Tokens that a chat template may add to each message."""


@dataclass
class Usage:
    """Totals over all requests of a client."""

    questions: int = 0
    """Requests."""
    kept: int = 0
    """Requests whose reply came from the cache."""
    attempts: int = 0
    """Calls made; for a model in this process, batches."""
    errors: int = 0
    """Requests that got no reply; those that the server rejected are not counted."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """Cost of the replies, cached ones included."""
    spent: float = 0.0
    """Cost in this run, with failed attempts that may have been billed."""
    seconds: float = 0.0
    """Seconds spent waiting for replies, summed over workers."""


class ChatClient:
    """Chat client with a response cache, retries with backoff, and a spending limit.

    Args:
        chat: the model.
        cache: where replies are kept; None keeps none.
        price: cost of a million tokens of prompt and of reply.
        budget: most that the replies may cost, cached ones included; None: no limit. A request is not sent if it could
            cost more than what is left of the budget: its bytes bound its tokens.
        spent_before: what earlier runs cost, where the budget counts that in place of the cached replies of this one.
        remedy: what to do when the budget is reached, for the message.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        cache: ResponseCache | None = None,
        price: tuple[float, float] = (0.0, 0.0),
        budget: float | None = None,
        spent_before: float | None = None,
        remedy: str = "raise --budget and run the same command again",
    ) -> None:
        self.chat, self.cache, self.price, self.budget = chat, cache, price, budget
        self.spent_before, self.remedy = spent_before, remedy
        self._usage = Usage()
        self._running: list[float] = []  # the most that each running call can cost
        self._wasted = 0.0  # failed attempts that may have been billed
        self._lock = Condition()
        self._stop = Event()

    def __call__(self, requests: Sequence[ChatRequest], title: str = "ask") -> list[ChatReply]:
        """One reply per request, in their order.

        Raises:
            GateError: the budget is reached; replies so far are cached.
            MachineError: the server cannot be reached; replies so far are cached.
            InputError: the settings are wrong, so no request will get a reply.
        """
        keys = [request.key(self.chat.identity) for request in requests]
        replies = {key: reply for key in dict.fromkeys(keys) if (reply := self._cached(key)) is not None}
        self._usage.questions += len(requests)
        self._usage.kept += sum(key in replies for key in keys)
        # sorted by length, so that a batch has little padding
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in replies}
        todo = sorted(missing, key=lambda key: sum(len(str(turn["content"])) for turn in missing[key].messages))
        blocks = [todo[start : start + self.chat.block] for start in range(0, len(todo), self.chat.block)]
        self._stop.clear()
        pool = ThreadPoolExecutor(self.chat.workers)
        try:
            with Progress(len(todo), title) as progress:
                running = {pool.submit(self._send, block, [missing[key] for key in block]): block for block in blocks}
                for future in as_completed(running):
                    replies |= zip(running[future], future.result(), strict=True)
                    progress.update(progress.step + len(running[future]), cost=self._usage.cost)
        finally:
            self._stop.set()  # an interrupted run waits only for running requests
            pool.shutdown(cancel_futures=True)
        return [replies[key] for key in keys]

    @property
    def usage(self) -> Usage:
        """The totals so far, as a copy."""
        return replace(self._usage, spent=self._usage.spent + self._wasted)

    def _cached(self, key: str) -> ChatReply | None:
        entry = self.cache.get(key) if self.cache is not None else None
        if entry is None:
            return None
        reply, cost = entry
        self._count(reply, cost)
        return reply

    def _send(self, keys: Sequence[str], requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """Replies to one block of requests, with retries."""
        failure = Retryable("not sent")
        for attempt in range(1, ATTEMPTS + 1):
            result = self._attempt(keys, requests)
            if not isinstance(result, Retryable):
                return result
            failure, wait = result, result.after
            if wait is None:
                wait = FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            if attempt == ATTEMPTS or wait > LONGEST_WAIT or self._stop.wait(wait):
                break
        if failure.unreachable:
            raise MachineError(
                f"{failure}: cannot be reached; start the server, then run the same command again (replies so far are "
                "cached)"
            )
        return self._store(keys, requests, [ChatReply(error=str(failure)) for _ in requests])

    def _attempt(self, keys: Sequence[str], requests: Sequence[ChatRequest]) -> list[ChatReply] | Retryable:
        """One call; its maximum cost is reserved while it runs."""
        bound = sum(self._bound(request) for request in requests)
        self._reserve(bound)
        wasted = 0.0
        try:
            return self._store(keys, requests, self.chat.ask(requests))
        except Retryable as failure:
            wasted = bound if failure.charged else 0.0
            return failure
        finally:
            with self._lock:
                self._running.remove(bound)
                self._wasted += wasted
                self._lock.notify_all()

    def _store(
        self, keys: Sequence[str], requests: Sequence[ChatRequest], replies: Sequence[ChatReply]
    ) -> list[ChatReply]:
        for key, request, reply in zip(keys, requests, replies, strict=True):
            cost = self._cost(reply.prompt_tokens, reply.completion_tokens)
            if self.cache is not None:
                self.cache.put(key, self.chat.name, request, reply, cost)
            with self._lock:
                self._count(reply, cost)
                self._usage.spent += cost
                self._usage.errors += bool(reply.error) and not reply.refused
                self._usage.seconds += reply.seconds
        return list(replies)

    def _count(self, reply: ChatReply, cost: float) -> None:
        self._usage.prompt_tokens += reply.prompt_tokens
        self._usage.completion_tokens += reply.completion_tokens
        self._usage.cost += cost

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.price[0] + completion_tokens * self.price[1]) / 1e6

    def _bound(self, request: ChatRequest) -> float:
        """The most that a request can cost: no tokenizer makes more tokens than there are bytes."""
        size = sum(len(str(turn["content"]).encode()) + TEMPLATE_TOKENS for turn in request.messages)
        return self._cost(size, request.max_tokens)

    def _counted(self) -> float:
        """What counts towards the budget."""
        before = self._usage.cost if self.spent_before is None else self.spent_before + self._usage.spent
        return before + self._wasted

    def _reserve(self, bound: float) -> None:
        """Reserve the maximum cost of a call, as soon as the running calls leave enough of the budget.

        Raises:
            GateError: no call is running and the rest of the budget is still too small.
        """
        with self._lock:
            while self.budget is not None and self._counted() + sum(self._running) + bound > self.budget:
                if not self._running or self._stop.is_set():
                    raise GateError(
                        f"the budget of {self.budget:g} is reached: {self._counted():.4g} spent, and the next request "
                        f"may cost more than the rest; {self.remedy} (replies so far are cached)"
                    )
                self._lock.wait(1.0)
            self._running.append(bound)
            self._usage.attempts += 1

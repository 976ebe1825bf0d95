"""Answers of a chat model kept in the label store: the `ResponseCache` of `chat.client`."""

from __future__ import annotations

from dataclasses import asdict

from kleash.chat.messages import ChatReply, ChatRequest
from kleash.labels.store import Call, Store


class StoreCache:
    """Judge calls of a store. Answers are recalled; errors are kept to be looked at, and asked again."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def recall(self, key: str) -> tuple[ChatReply, float] | None:
        """See `ResponseCache`."""
        call = self.store.call(key)
        if call is None or call.state != "answered":
            return None
        return ChatReply(**call.response), call.cost

    def keep(self, key: str, model: str, question: ChatRequest, answer: ChatReply, cost: float) -> None:
        """See `ResponseCache`."""
        self.store.keep_call(
            Call(
                key=key,
                model=model,
                request=question.request(),
                state="error" if answer.error else "answered",
                response=asdict(answer),
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                cost=cost,
                seconds=answer.seconds,
            )
        )

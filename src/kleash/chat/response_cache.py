"""Where replies of a chat model are kept, so that no request is paid for twice."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from kleash.chat.messages import ChatReply, ChatRequest


@runtime_checkable
class ResponseCache(Protocol):
    """Replies by the key of their request (`ChatRequest.key`)."""

    def get(self, key: str) -> tuple[ChatReply, float] | None:
        """The reply to a request and what it cost; None where there is none."""
        ...

    def put(self, key: str, model: str, request: ChatRequest, reply: ChatReply, cost: float) -> None:
        """Keep a request with its reply, or with its error."""
        ...

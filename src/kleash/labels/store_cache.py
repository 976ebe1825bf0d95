"""A response cache in the label store."""

from __future__ import annotations

from dataclasses import asdict

from kleash.chat.messages import ChatReply, ChatRequest
from kleash.io import Json
from kleash.labels.store import Call, Store

COLUMN_OF = {"has_logprobs": "told"}
"""Fields of a reply with another name in the store."""


class StoreCache:
    """A `ResponseCache` on a store. Errors are stored for inspection but not returned: the request is repeated."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def get(self, key: str) -> tuple[ChatReply, float] | None:
        """See `ResponseCache`."""
        call = self.store.call(key)
        if call is None or call.state != "answered":
            return None
        return _from_json(call.response), call.cost

    def put(self, key: str, model: str, request: ChatRequest, reply: ChatReply, cost: float) -> None:
        """See `ResponseCache`."""
        self.store.save_call(
            Call(
                key=key,
                model=model,
                request=request.to_json(),
                state="error" if reply.error else "answered",
                response=_to_json(reply),
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                cost=cost,
                seconds=reply.seconds,
            )
        )


def _to_json(reply: ChatReply) -> Json:
    return {COLUMN_OF.get(name, name): value for name, value in asdict(reply).items()}


def _from_json(values: Json) -> ChatReply:
    field_of = {column: name for name, column in COLUMN_OF.items()}
    return ChatReply(**{field_of.get(name, name): value for name, value in values.items()})

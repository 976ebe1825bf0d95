"""The chat model of a stage, with a label store as its response cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from kleash.chat.client import ChatClient
from kleash.chat.messages import Chat
from kleash.content import Fingerprints, text_hash
from kleash.labels.open_store import open_store
from kleash.models.compute import DType

if TYPE_CHECKING:
    from kleash.labels.store import Store


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """Which chat model to use, and how."""

    model: str
    """A folder or a hub name; with `endpoint`, the server's name of the model."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server; None: the model runs in this process."""
    price: tuple[float, float] = (0.0, 0.0)
    """Price of a million tokens of prompt, and of reply."""
    budget: float | None = None
    """Spending limit."""
    concurrency: int = 8
    """Requests to an endpoint at the same time."""
    timeout: float = 120.0
    """Seconds until a request to an endpoint is given up."""
    rows_at_once: int = 8
    """Requests in one forward pass of a model in this process."""
    dtype: DType = "float32"
    """Of a model in this process."""
    device: str = "auto"
    """Of a model in this process."""

    @classmethod
    def names(cls) -> set[str]:
        """Names of the settings."""
        return {field.name for field in fields(cls)}


def live_fingerprint(chat: Chat | None) -> Fingerprints:
    """What a live model is known by, in place of `model`; nothing where there is none."""
    if chat is None:
        return {}
    known_by = json.dumps(dict(chat.identity), sort_keys=True, default=str)
    return {"model": {"path": known_by, "sha256": text_hash(known_by)}}


@contextmanager
def cached_chat(
    settings: ChatSettings, store: str | Path, chat: Chat | None = None
) -> Iterator[tuple[ChatClient, Store]]:
    """A client whose replies are cached in a label store, and that store; closed at the end.

    Args:
        settings: of the model and its client.
        store: where replies are cached, as `open_store`.
        chat: a live model in place of `settings.model`.
    """
    with open_store(store) as labels:
        from kleash.labels.store_cache import StoreCache

        live = chat or _load(settings)
        yield ChatClient(live, cache=StoreCache(labels), price=settings.price, budget=settings.budget), labels


def _load(settings: ChatSettings) -> Chat:
    if settings.endpoint is not None:
        from kleash.chat.openai_endpoint import Endpoint

        return Endpoint(settings.endpoint, settings.model, timeout=settings.timeout, workers=settings.concurrency)
    from kleash.chat.in_process import LocalChat

    return LocalChat.load(settings.model, device=settings.device, dtype=settings.dtype, block=settings.rows_at_once)

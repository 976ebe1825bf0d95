"""What stages that ask a chat model are told, and the model that comes of it: behind an endpoint or in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kleash.chat.client import ChatClient
from kleash.chat.messages import Chat
from kleash.errors import GateError
from kleash.evals.preference_report import wilson
from kleash.labels.open_store import open_store
from kleash.stages.data_configs import ChatClientConfig
from kleash.stages.files import beside

if TYPE_CHECKING:
    from kleash.labels.store import Store

GROUPS_AT_ONCE = 64
"""Groups between two looks at the failures."""


@contextmanager
def chat_client(config: ChatClientConfig, chat: Chat | None = None) -> Iterator[tuple[ChatClient, Store]]:
    """The model to ask, with its response cache and its spending limit, and the store behind it.

    Args:
        config: the settings.
        chat: a live model in place of `config.model`.
    """
    if chat is None and config.endpoint is not None:
        from kleash.chat.openai_endpoint import Endpoint

        chat = Endpoint(config.endpoint, config.model, timeout=config.timeout, workers=config.concurrency)
    elif chat is None:
        from kleash.chat.in_process import LocalChat

        chat = LocalChat.load(config.model, device=config.device, dtype=config.dtype, block=config.rows_at_once)
    with open_store(config.store or beside(config.out, "calls", ending=".db")) as store:
        from kleash.labels.store_cache import StoreCache

        yield ChatClient(chat, cache=StoreCache(store), price=config.price, budget=config.budget), store


def stop_above(most: float, failed: int, done: int, total: int, reason: str) -> None:
    """End a run as soon as it is clear that too many rows fail: for sure in the end, or by the interval so far.

    Raises:
        GateError: naming a reason.
    """
    if failed > most * total or (failed and wilson(failed, done)[0] > most):
        raise GateError(
            f"{failed} of the first {done} rows of {total} failed, and at most {most:.0%} may: {reason}; mend that and "
            "run the same command again (what was answered is kept), or raise --max-failures"
        )

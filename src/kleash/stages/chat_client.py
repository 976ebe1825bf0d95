"""What stages that ask a chat model are told, and the model that comes of it: behind an endpoint or in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from kleash.chat.client import ChatClient
from kleash.chat.messages import Chat
from kleash.config import Config
from kleash.errors import GateError
from kleash.evals.preference_report import wilson
from kleash.labels.open_store import open_store
from kleash.models.load import DType
from kleash.run import fingerprint
from kleash.stages.files import beside

if TYPE_CHECKING:
    from kleash.labels.store import Store

GROUPS_AT_ONCE = 64
"""Groups between two looks at the failures."""

NOT_IDENTITY = {
    "out", "store", "price", "budget", "concurrency", "timeout", "rows_at_once", "device", "force", "max_failures",
}  # fmt: skip
"""Settings that change no answer."""


class ChatClientConfig(Config):
    """Which chat model to ask, and how much of it."""

    model: str
    """Who is asked: a folder or a hub name; with `endpoint`, what the server calls it."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server, up to `/v1`; its key is read from OPENAI_API_KEY. Null: the model runs
    in this process."""
    data: str
    """Rows to work on: a .jsonl, .jsonl.gz, .json or .parquet file, a saved `datasets` folder, or a hub name."""
    out: Path
    """File to write: .jsonl, .jsonl.gz, .json or .parquet. The same command run again goes on where it was."""
    store: str | None = None
    """Label store that keeps every answer, so that none is paid for twice: a path or a database URL. Null: a file
    beside `out`."""
    mix_in: str | None = None
    """Rows that are written after the results as they stand: Bai et al. mix helpfulness labels by people into
    harmlessness labels by a judge, and helpful demonstrations into revisions."""
    max_rows: int | None = Field(None, ge=1)
    """At most so many rows of the data."""
    price: tuple[float, float] = (0.0, 0.0)
    """Money for a million tokens of prompt and of answer."""
    budget: float | None = Field(None, gt=0)
    """Money that all answers may cost, those from before an interruption included. Nothing is asked that could exceed
    it. Needs `price`."""
    max_failures: float = Field(0.1, ge=0, le=1)
    """Share of rows that may stay without a result; the run stops as soon as it is clear that there are more."""
    concurrency: int = Field(8, ge=1)
    """Requests to an endpoint at the same time."""
    timeout: float = Field(120.0, gt=0)
    """Seconds until a request is given up and made again."""
    rows_at_once: int = Field(8, ge=1)
    """Questions in one pass of a model in this process. Changes memory and speed."""
    seed: int = 0
    """Of draws: principles, votes, samples."""
    dtype: DType = "float32"
    """What a model in this process computes in."""
    device: str = "auto"
    """`cpu`, `cuda`, …, of a model in this process; auto takes a GPU where there is one."""

    @model_validator(mode="after")
    def _budget_has_prices(self) -> ChatClientConfig:
        if self.budget is not None and not any(self.price):
            raise ValueError("'budget' is money, so it needs 'price': what a million tokens of prompt and answer cost")
        return self

    def identity(self) -> dict[str, Any]:
        """What the file depends on: the settings that change an answer, and the hashes of data and model."""
        made_from = {"data": self.data, "mix_in": self.mix_in, "model": self.model if self.endpoint is None else None}
        return self.model_dump(mode="json", exclude=NOT_IDENTITY) | {
            f"sha256 of {role}": fingerprint(path)["sha256"] for role, path in made_from.items() if path is not None
        }


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

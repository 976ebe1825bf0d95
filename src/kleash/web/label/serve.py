"""Label: people compare responses in a browser, one pair a screen.

    kleash label --data samples.jsonl --store labels.db

Serves until it is stopped; each vote is stored as it comes. The module does not import torch, so that the first pair is
on screen in seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import webbrowser
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from kleash.config import Columns, Config, DataRef, PathText
from kleash.data.row_format import RowFormat
from kleash.errors import DataError, InputError
from kleash.labels.open_store import extra_installed, open_store
from kleash.parse import UnreadableError, parse_json
from kleash.web.common.listen import in_url, is_loopback, listen

if TYPE_CHECKING:
    from kleash.labels.store import Store


class LabelConfig(Config):
    """Serve pairs to annotators and take their votes. Each person has a personal link. The admin's page creates links,
    shows the agreement, and exports the labels.
    """

    store: PathText = "labels.db"
    """Label store: path of an SQLite file, created if missing, or a PostgreSQL URL."""
    data: tuple[DataRef, ...] = ()
    """Rows with two or more responses, whose pairs are added to the store; their labels are not shown. A column
    `uncertainty` decides which pairs come first. Without data the pairs of the store are served."""
    columns: Columns | None = None
    """Columns of the data whose names kleash does not know, as `prompt=question,response_0=first`."""
    practice: DataRef | None = None
    """Preferences with a known answer: each annotator begins with them and sees the answer after each vote."""
    guidelines: Path | None = None
    """Guidelines for annotators, a Markdown file. Each vote stores the version that it was made under."""
    overlap: int = Field(1, ge=1)
    """People who compare each pair. Agreement can be measured from 2 on."""
    order: Literal["uncertain", "random"] = "uncertain"
    """Most uncertain pairs first, or at random; without a column `uncertainty` both are random."""
    audit_share: float = Field(0.1, ge=0, le=1)
    """Share of pairs drawn at random independently of the order, as a check of the others."""
    repeat_share: float = Field(0.05, ge=0, le=1)
    """Share of showings that repeat an earlier pair unannounced, sides swapped, to measure self-agreement."""
    goal: int = Field(0, ge=0)
    """Pairs in a session, shown as a goal; 0: none."""
    tags: tuple[str, ...] = ("correct", "helpful", "clear", "harmless")
    """Reasons that annotators can select."""
    ties: Literal["half", "davidson", "drop"] = "half"
    """Ties in the admin's export: one half, by Davidson's model, or left out."""
    host: str = "127.0.0.1"
    """Address to listen on. An address that other machines can reach needs `public_url`."""
    port: int = Field(8017, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    public_url: str | None = None
    """Address at which people open the page from elsewhere, `https://…` behind a proxy that encrypts. Without it the
    server answers only this machine."""
    proxy: str | None = None
    """Address or network of the proxy in front, such as `127.0.0.1`: its `X-Forwarded-For` says who asks, so that one
    person who tries many links slows down only themselves. Null: forwarded addresses are not believed."""
    open: bool = False
    """Open the annotator's link in a browser."""
    seed: int = 0
    """Seed of the random order and sides."""

    @model_validator(mode="after")
    def _check_addresses(self) -> LabelConfig:
        if self.public_url is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines; give --public-url with the address that "
                "people will open, or leave --host out"
            )
        parts = urlsplit(self.public_url or "http://localhost")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError(f"public_url is {self.public_url}, but should be like https://label.example.org")
        return self

    @field_validator("proxy")
    @classmethod
    def _is_network(cls, proxy: str | None) -> str | None:
        try:
            ip_network(proxy or "127.0.0.1")
        except ValueError:
            raise ValueError("an address or a network, as 127.0.0.1 or 10.0.0.0/8") from None
        return proxy


def run(config: LabelConfig) -> None:
    """Serve until Ctrl-C.

    Raises:
        DataError: a file of rows or guidelines cannot be read.
        InputError: the store cannot be opened, its file of links is damaged, or the port is taken.
        ConfigError: the extra `feedback` is not installed.
    """
    with extra_installed("kleash label"):
        from kleash.labels.queue import Queue, QueueSettings
        from kleash.web.common.server import Limits, serve
        from kleash.web.label.app import Site, build_app
    with listen(config.host, config.port) as listener, open_store(config.store) as store:
        add_rows(store, config.data, columns=config.columns, practice=config.practice, guidelines=config.guidelines)
        settings = QueueSettings(
            overlap=config.overlap, order=config.order, audit_share=config.audit_share,
            repeat_share=config.repeat_share, seed=config.seed,
        )  # fmt: skip
        url = (config.public_url or f"http://{in_url(config.host)}:{listener.getsockname()[1]}").rstrip("/")
        links = load_links(store, config.store)
        site = Site(
            url=url,
            hosts=frozenset({"127.0.0.1", "localhost", "[::1]", str(urlsplit(url).hostname)}),
            secret=links["secret"],
            tags=config.tags,
            goal=config.goal,
            ties=config.ties,
        )
        print(f"annotator  {url}/join/{links['annotator']}\nadmin      {url}/join/{links['admin']}", flush=True)
        print("whoever has a link is that person; Ctrl-C stops, votes are saved as they come", file=sys.stderr)
        if config.open:
            webbrowser.open(f"{url}/join/{links['annotator']}")
        serve(build_app(Queue(store, settings), site), listener, Limits(proxy=config.proxy))
    print(f"stopped; the labels are in {config.store.rpartition('@')[2]}", file=sys.stderr)


def add_rows(
    store: Store,
    data: tuple[str, ...] = (),
    *,
    columns: Mapping[str, str] | None = None,
    practice: str | None = None,
    guidelines: Path | None = None,
) -> None:
    """Add pairs, practice pairs and guidelines to a store.

    Raises:
        DataError: a file cannot be read; the message names it.
    """
    for source in data:
        _add_pairs(store, source, RowFormat(columns))
    if practice is not None:
        from kleash.data.formats import read_groups

        try:
            store.add_tasks(read_groups(practice), kind="practice")
        except DataError as error:
            raise DataError(f"{practice}: {error}") from None
    if guidelines is not None:
        try:
            store.set_guidelines(guidelines.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise DataError(f"{guidelines}: {reason}; give a Markdown file of guidelines") from None


def load_links(store: Store, where: str) -> dict[str, str]:
    """The secret that signs cookies, and the tokens of the first two links; the same each time the store is served.

    They are in a file next to the store that only its owner can read; the store has only the hashes of tokens.
    """
    path = Path(f"{where}.links")
    if "://" in where:
        path = Path(f"labels-{hashlib.sha256(where.encode()).hexdigest()[:8]}.links")
    links = _read_links(path) if path.exists() else {"secret": secrets.token_urlsafe(32)}
    before = dict(links)
    for role in ("annotator", "admin"):
        if store.annotator_of(links.get(role, "")) is None:
            links[role] = store.invite(role=role).token
    if links != before:
        _write_private(path, json.dumps(links))
    return links


def _read_links(path: Path) -> dict[str, str]:
    try:
        links = parse_json(path.read_bytes())
    except UnreadableError:
        links = None
    if (
        not isinstance(links, dict)
        or not {"secret"} <= links.keys()
        or not all(isinstance(v, str) for v in links.values())
    ):
        raise InputError(f"{path}: is damaged; delete it, then people need new links, which the admin's page makes")
    return links


def _write_private(path: Path, text: str) -> None:
    """Replace a file that only its owner can read, so that a kill leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _add_pairs(store: Store, source: str, row_format: RowFormat) -> None:
    from kleash.data.formats import read_groups

    groups = list(read_groups(source, row_format=row_format))
    values = [group.columns.get("uncertainty") for group in groups]
    uncertainties = [float(value) for value in values if isinstance(value, int | float)]
    try:
        new = store.add_tasks(groups, uncertainty=uncertainties if len(uncertainties) == len(groups) else None)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    print(f"{source}: {len(groups)} rows, {new} new pairs", file=sys.stderr)

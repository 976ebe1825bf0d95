"""Label: people compare responses in a browser, one pair a screen.

    kleash label --data samples.jsonl --store labels.db

Serves until it is stopped; what was voted is in the store as it comes. It loads no torch, so that the first pair is on
screen in seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import sys
import webbrowser
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from kleash.config import Config
from kleash.errors import ConfigError, DataError, InputError

if TYPE_CHECKING:
    from kleash.labels.store import Store


class LabelConfig(Config):
    """Serve pairs to annotators and take their votes. Each person has a link of their own; an admin's link leads to the
    page that makes more of them, shows how far people agree, and exports.
    """

    store: str = "labels.db"
    """Where the labels are: the path of an SQLite file, made if missing, or a PostgreSQL URL."""
    data: tuple[str, ...] = ()
    """Rows with two or more responses, whose pairs are added to the store; labels of theirs are not shown. A column
    `uncertainty` says which to ask first. Without any, what the store holds is served."""
    practice: str | None = None
    """Preferences whose answer is known: each annotator begins with them and is told the answer after each vote."""
    guidelines: Path | None = None
    """What annotators are told, a Markdown file. Votes remember the version they were made under."""
    overlap: int = Field(1, ge=1)
    """People who compare each pair. From 2 on agreement can be measured."""
    order: Literal["uncertain", "random"] = "uncertain"
    """Most uncertain pairs first, or at random; without a column `uncertainty` both are random."""
    audit_share: float = Field(0.1, ge=0, le=1)
    """Share of pairs that are drawn at random whatever the order, to check the chosen ones against."""
    repeat_share: float = Field(0.05, ge=0, le=1)
    """Share of showings that repeat an earlier pair, its sides swapped, unannounced: how steady a person is."""
    goal: int = Field(0, ge=0)
    """Pairs in a sitting, shown as a goal; 0: none."""
    tags: tuple[str, ...] = ("correct", "helpful", "clear", "harmless")
    """What may be named as having decided."""
    ties: Literal["half", "davidson", "drop"] = "half"
    """How the admin's export counts ties: one half, by Davidson's model, or not at all."""
    host: str = "127.0.0.1"
    """Address to listen on. One that other machines can reach needs `public_url`."""
    port: int = Field(8017, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    public_url: str | None = None
    """Address at which people open it from elsewhere, `https://…` behind a proxy that encrypts. Without it the server
    answers to this machine alone."""
    open: bool = False
    """Open the annotator's link in a browser."""
    seed: int = 0
    """Of the random order and sides."""

    @model_validator(mode="after")
    def _shut_unless_told(self) -> LabelConfig:
        if self.public_url is None and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines; give --public-url with the address that "
                "people will open, or leave --host out"
            )
        parts = urlsplit(self.public_url or "http://localhost")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError(f"public_url is {self.public_url}, but should be like https://label.example.org")
        return self


def run(config: LabelConfig) -> None:
    """Serve until Ctrl-C.

    Raises:
        DataError: a file of rows or guidelines that cannot be read.
        InputError: the store cannot be opened, or the port is taken.
        ConfigError: the extra `feedback` is not installed.
    """
    try:
        import uvicorn

        from kleash.labels.queue import Queue, QueueSettings
        from kleash.labels.store import Store
        from kleash.web.app import Site, build_app
    except ModuleNotFoundError as error:
        raise ConfigError(f"labelling needs {error.name}; pip install 'kleash[feedback]'") from None
    with _listen(config) as listener:
        store = Store.open(config.store)
        _fill(store, config)
        settings = QueueSettings(
            overlap=config.overlap, order=config.order, audit_share=config.audit_share,
            repeat_share=config.repeat_share, seed=config.seed,
        )  # fmt: skip
        port = listener.getsockname()[1]
        url = (config.public_url or f"http://{_bracketed(config.host)}:{port}").rstrip("/")
        hosts = {"127.0.0.1", "localhost", "[::1]", str(urlsplit(url).hostname)}
        links = _links(store, config.store)
        site = Site(
            url=url,
            hosts=frozenset(hosts),
            secret=links["secret"],
            tags=config.tags,
            goal=config.goal,
            ties=config.ties,
        )
        app = build_app(Queue(store, settings), site)
        print(f"annotator  {url}/join/{links['annotator']}\nadmin      {url}/join/{links['admin']}", flush=True)
        print("whoever has a link is that person; Ctrl-C stops, votes are saved as they come", file=sys.stderr)
        if config.open:
            webbrowser.open(f"{url}/join/{links['annotator']}")
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none",
                timeout_graceful_shutdown=2,
            )
        )  # fmt: skip
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # how it is meant to end
        finally:
            store.close()
    print(f"stopped; the labels are in {config.store.rpartition('@')[2]}", file=sys.stderr)


def _listen(config: LabelConfig) -> socket.socket:
    """A socket that takes connections already: a link that was printed can be opened at once."""
    try:
        return socket.create_server(
            (config.host, config.port), family=socket.AF_INET6 if ":" in config.host else socket.AF_INET
        )
    except OSError as error:
        raise InputError(
            f"{config.host}:{config.port} cannot be listened on ({error.strerror}); give another --port, 0 for a free "
            "one"
        ) from None


def _fill(store: Store, config: LabelConfig) -> None:
    from kleash.data.formats import read_groups

    for source in config.data:
        groups = list(read_groups(source))
        told = [group.columns.get("uncertainty") for group in groups]
        uncertain = [float(value) for value in told if isinstance(value, int | float)]
        try:
            new = store.add_tasks(groups, uncertainty=uncertain if len(uncertain) == len(groups) else None)
        except DataError as error:
            raise DataError(f"{source}: {error}") from None
        print(f"{source}: {len(groups)} rows, {new} new pairs", file=sys.stderr)
    if config.practice is not None:
        try:
            store.add_tasks(read_groups(config.practice), kind="practice")
        except DataError as error:
            raise DataError(f"{config.practice}: {error}") from None
    if config.guidelines is not None:
        try:
            store.set_guidelines(config.guidelines.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise DataError(f"{config.guidelines}: {reason}; give a Markdown file of guidelines") from None


def _links(store: Store, where: str) -> dict[str, str]:
    """The secret that signs cookies and the tokens of the first two links, the same each time the store is served.

    They lie in a file beside the store that its owner alone may read: the store itself knows a token's hash alone.
    """
    path = Path(f"{where}.links")
    if "://" in where:
        path = Path(f"labels-{hashlib.sha256(where.encode()).hexdigest()[:8]}.links")
    links: dict[str, str] = json.loads(path.read_text()) if path.exists() else {"secret": secrets.token_urlsafe(32)}
    before = dict(links)
    for role in ("annotator", "admin"):
        if store.annotator_of(links.get(role, "")) is None:
            links[role] = store.invite(role=role).token
    if links != before:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(links, file)
    return links


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

"""A labelling server on loopback and a real Chromium."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from kleash.data.group import Group, Response
from kleash.labels.queue import Queue, QueueSettings
from kleash.labels.store import Store
from kleash.web.common.listen import listen
from kleash.web.common.server import Limits, server_of
from kleash.web.label.app import Site, build_app
from tests.programs import needs


@dataclass
class Answer:
    """What came back from the server."""

    status: int
    headers: dict[str, str]
    body: bytes
    cookies: list[str] = field(default_factory=list)

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A server that runs, and its store."""

    url: str
    store: Store
    queue: Queue

    def link(self, role: str = "annotator", name: str = "") -> str:
        return f"{self.url}/join/{self.store.invite(name, role).token}"

    def ask(
        self, method: str, path: str, body: Any = None, *, cookie: str = "", headers: dict[str, str] | None = None
    ) -> Answer:
        """One request, sent exactly as given."""
        host = self.url.removeprefix("http://")
        with closing(HTTPConnection(host, timeout=20)) as connection:
            sent = dict(headers or {})
            if cookie:
                sent["cookie"] = cookie
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, data, sent)
            response: HTTPResponse = connection.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            cookies = response.headers.get_all("set-cookie") or []
            return Answer(response.status, told, response.read(), cookies)

    def person(self, role: str = "annotator") -> Person:
        """Somebody who opened a link."""
        invitation = self.store.invite(role=role)
        answer = self.ask("GET", f"/join/{invitation.token}")
        cookie = answer.cookies[0].partition(";")[0]
        page = self.ask("GET", answer.headers["location"], cookie=cookie).body.decode()
        return Person(self, invitation.annotator, cookie, page.split('data-csrf="')[1].partition('"')[0])


@dataclass
class Person:
    """A signed-in client without a browser."""

    site: Running
    id: int
    cookie: str
    csrf: str

    def get(self, path: str) -> Answer:
        return self.site.ask("GET", path, cookie=self.cookie)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        sent = {"content-type": "application/json", "x-csrf": self.csrf} | headers
        return self.site.ask("POST", path, body, cookie=self.cookie, headers=sent)


Serve = Callable[..., Running]


def pairs_of(count: int) -> list[Group]:
    """Pairs that can be told apart at a glance."""
    return [Group(f"Question {i}?", (Response(f"good answer {i}"), Response(f"bad answer {i}"))) for i in range(count)]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers in this process; they stop with the test."""
    running: list[tuple[uvicorn.Server, threading.Thread, Store]] = []

    def start(
        groups: Sequence[Group] = (),
        *,
        practice: Sequence[Group] = (),
        guidelines: str = "",
        goal: int = 0,
        limits: Limits = Limits(),  # noqa: B008
        **settings: Any,
    ) -> Running:
        store = Store.open(tmp_path / f"labels{len(running)}.db")
        store.add_tasks(groups)
        store.add_tasks(practice, kind="practice")
        if guidelines:
            store.set_guidelines(guidelines)
        queue = Queue(store, QueueSettings(**({"audit_share": 0.0, "repeat_share": 0.0} | settings)))
        listener = listen("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        site = Site(url=url, hosts=frozenset({"127.0.0.1"}), secret="secret", tags=("correct", "clear"), goal=goal)
        app = build_app(queue, site)
        server = server_of(app, limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread, store))
        return Running(url, store, queue)

    yield start
    for server, thread, store in running:
        server.should_exit = server.force_exit = True
        thread.join(10)
        store.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, one for all tests."""
    path = needs("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
        )
        yield browser
        browser.close()


@dataclass
class Seen:
    """The unexpected actions of a page."""

    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", self._dialog)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.accept()


Browse = Callable[..., Any]


@pytest.fixture
def browse(chromium: Any) -> Iterator[Browse]:
    """Open a separate page, with its own cookies; `page.seen` records its actions."""
    contexts = []

    def new(url: str | None = None, *, width: int = 1280, height: int = 800, **settings: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, **settings)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.seen = Seen()
        page.seen.watch(page)
        if url is not None:
            page.goto(url)
        return page

    yield new
    for context in contexts:
        context.close()

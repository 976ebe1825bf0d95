"""Fifty people at once, and a server that is killed again and again.

`pytest -m slow -s tests/web/test_load.py` prints how long a vote took.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kleash.data.group import Group, Response
from kleash.labels.store import Store

from ..labels.conftest import clear, postgres  # noqa: F401

PEOPLE, OVERLAP, VOTES, KILLS = 50, 5, 5000, 10


class Server:
    """`kleash label` as a separate process, always on the same port."""

    def __init__(self, store: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [
            sys.executable, "-m", "kleash", "label", "--store", store, "--port", str(self.port), "--overlap",
            str(OVERLAP), "--repeat-share", "0",
        ]  # fmt: skip
        self.folder, self.kills = folder, 0
        self.start()

    def start(self) -> None:
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.kills += 1


class Client(threading.Thread):
    """One person, whose browser sends a vote until it is acknowledged, always under the same key."""

    def __init__(self, port: int, token: str, seed: int, done: list[str]) -> None:
        super().__init__(daemon=True)
        self.port, self.token, self.rng, self.done = port, token, random.Random(seed), done
        self.seconds: list[float] = []
        self.repeated = 0
        self.failures: Counter[str] = Counter()

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[Any, bytes]:
        """One request, sent again until the server answers."""
        while True:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
            with suppress(OSError, HTTPException), closing(connection):
                started = time.perf_counter()
                connection.request(method, path, None if body is None else json.dumps(body).encode(), headers or {})
                response = connection.getresponse()
                read = response.read()
                if response.status < 400:
                    self.seconds.append(time.perf_counter() - started) if body is not None else None
                    return response, read
                self.failures[f"{response.status} {read[:80]!r}"] += 1
            time.sleep(self.rng.uniform(0.1, 0.5))

    def run(self) -> None:
        response, _ = self.ask("GET", f"/join/{self.token}")
        cookie = {"cookie": response.headers["set-cookie"].partition(";")[0]}
        page = self.ask("GET", "/", headers=cookie)[1].decode()
        sent = cookie | {"content-type": "application/json", "x-csrf": page.split('data-csrf="')[1].partition('"')[0]}
        while pairs := json.loads(self.ask("GET", "/api/pairs?count=2", headers=cookie)[1])["pairs"]:
            for pair in pairs:
                key = f"{self.rng.getrandbits(96):024x}"
                body = {"key": key, "assignment": pair["id"], "choice": self.rng.choice(["left", "right", "tie"])}
                reply = json.loads(self.ask("POST", "/api/vote", body, sent)[1])
                self.repeated += reply["repeated"]
                self.done.append(key)


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "labels.db")
        return
    url = request.getfixturevalue("postgres")
    clear(url)
    yield url


@pytest.mark.slow
def test_every_acknowledged_vote_is_there_once_whenever_the_server_is_killed(where: str, tmp_path: Path) -> None:
    store = Store.open(where)
    store.add_tasks(Group(f"prompt {i}", (Response(f"one {i}"), Response(f"two {i}"))) for i in range(VOTES // OVERLAP))
    tokens = [store.invite().token for _ in range(PEOPLE)]
    server = Server(where, tmp_path)
    acknowledged: list[str] = []
    clients = [Client(server.port, token, seed, acknowledged) for seed, token in enumerate(tokens)]
    try:
        for client in clients:
            client.start()
        for kill in range(1, KILLS + 1):
            while len(acknowledged) < kill * VOTES // (KILLS + 1) and any(client.is_alive() for client in clients):
                time.sleep(0.01)
            server.kill()
            server.start()
        for client in clients:
            client.join(900)
    finally:
        server.kill()
    votes = store.votes()
    stored = Counter(vote.key for vote in votes)
    assert server.kills == KILLS + 1 and not any(client.is_alive() for client in clients)
    assert len(acknowledged) == len(set(acknowledged)) and all(stored[key] == 1 for key in acknowledged)
    assert stored.keys() == set(acknowledged)  # and nothing that nobody was told of
    # a pair may have been given out twice while a lease hung between two servers, never counted twice for a person
    people = Counter(vote.task for vote in votes if vote.counts)
    assert len(people) == VOTES // OVERLAP and set(people.values()) == {OVERLAP}
    seconds = np.array([second for client in clients for second in client.seconds])
    failures = sum((client.failures for client in clients), Counter())
    print(
        f"\n{where.partition(':')[0]}: {len(acknowledged)} votes by {PEOPLE} people, {KILLS} kills, "
        f"{sum(client.repeated for client in clients)} sent again after they were counted; a vote took "
        f"{np.median(seconds) * 1000:.0f} ms (median), {np.quantile(seconds, 0.99) * 1000:.0f} ms (p99); "
        f"refused: {dict(failures)}; load {os.getloadavg()[0]:.1f}"
    )
    store.close()

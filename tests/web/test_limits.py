"""Clients that do not end their requests, that are too many, or that write into the log."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kleash.cli import _run
from kleash.data.formats import write_groups
from kleash.labels.queue import Assignment
from kleash.labels.store import Store
from kleash.web.common import security, server
from kleash.web.common.server import BoundedLog, Limits, connections_of, printable
from kleash.web.label.serve import load_links

from .conftest import Running, Serve, pairs_of

HALF_HEAD = b"POST /api/vote HTTP/1.1\r\nHost: 127.0.0.1\r\nX-"


def connect(site: Running) -> socket.socket:
    host, port = site.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def read_all(connection: socket.socket) -> bytes:
    """What the server sends until it ends the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.mark.parametrize("half", ["nothing", "line ends", "a head", "a body", "a body of a stranger", "a second head"])
def test_a_client_that_never_ends_its_request_is_disconnected(
    serve: Serve, half: str, caplog: pytest.LogCaptureFixture
) -> None:
    site = serve(pairs_of(2), limits=Limits(request_seconds=0.5, idle_seconds=1))
    person = site.person()
    signed = f"cookie: {person.cookie}\r\nx-csrf: {person.csrf}\r\n"
    body = (
        "POST /api/vote HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{}content-length: 99\r\n\r\n{{"
    )
    sent = {
        "nothing": b"",
        "line ends": b"\r\n\r\n",
        "a head": HALF_HEAD,
        "a body": body.format(signed).encode(),
        "a body of a stranger": body.format("").encode(),
        "a second head": b"GET /nowhere HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" + HALF_HEAD,
    }[half]
    with connect(site) as connection:
        connection.sendall(sent)
        answer = read_all(connection)
    assert (b"401" in answer) == (half in ("a second head", "a body of a stranger"))
    assert person.get("/api/pairs").status == 200 and site.store.votes() == []
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_those_who_hold_too_many_connections_make_room_for_others(serve: Serve) -> None:
    site = serve(pairs_of(2), limits=Limits(connections=10, request_seconds=1000))
    person = site.person()
    with ExitStack() as stack:
        halves = [stack.enter_context(connect(site)) for _ in range(40)]
        for half in halves:
            half.sendall(HALF_HEAD)
            assert person.get("/api/pairs").status == 200
        # those that came first were disconnected first
        assert [read_all(half) for half in halves[:25]] == [b""] * 25


def test_where_every_connection_is_served_a_new_one_is_told_to_come_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = serve(pairs_of(2), limits=Limits(connections=3))
    person = site.person()
    serving, go_on, following = threading.Semaphore(0), threading.Event(), site.queue.next

    def slow(*arguments: int) -> list[Assignment]:
        serving.release()
        assert go_on.wait(60)
        return following(*arguments)

    monkeypatch.setattr(site.queue, "next", slow)
    request = f"GET /api/pairs HTTP/1.1\r\nhost: 127.0.0.1\r\ncookie: {person.cookie}\r\nconnection: close\r\n\r\n"
    with ExitStack() as stack:
        held = [stack.enter_context(connect(site)) for _ in range(3)]
        for connection in held:
            connection.sendall(request.encode())
            assert serving.acquire(timeout=60)  # nobody waits for a client: none of these can make room
        refused = [read_all(stack.enter_context(connect(site))) for _ in range(5)]
        go_on.set()
        answers = [read_all(connection) for connection in held]
    assert refused == [server.BUSY] * 5
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)  # and none was cut off
    assert person.get("/api/pairs").status == 200


def test_connections_leave_room_for_the_files_of_the_store() -> None:
    for files in (64, 256, 512, 1024, 4096, 10**6):
        assert 16 <= connections_of(files) <= server.MOST_CONNECTIONS
        assert files < 700 or connections_of(files) + server.FILES_OF_STORE + 4 * server.BACKLOG < files


@contextmanager
def files_allowed(number: int) -> Iterator[None]:
    """So many open files of this process, where the system allows them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(number, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_half_requests_than_a_process_has_files_shut_nobody_out_and_leave_a_short_log(tmp_path: Path) -> None:
    write_groups(pairs_of(2), tmp_path / "pairs.jsonl")
    command = [sys.executable, "-m", "kleash", "label", "--data", "pairs.jsonl", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (700, 700)),
    )  # fmt: skip
    assert process.stdout is not None
    link = process.stdout.readline().split()[1]
    host, port = link.split("/")[2].split(":")
    with files_allowed(2000), ExitStack() as stack:
        for _ in range(800):
            half = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            half.sendall(HALF_HEAD)
        with socket.create_connection((host, int(port)), timeout=60) as ours:
            ours.sendall(b"GET /join/nobody HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
            assert b" 401 " in read_all(ours).splitlines()[0]
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors and len(errors) < 2000, errors[:2000]


def test_a_client_can_neither_fill_the_log_nor_write_into_it(capsys: pytest.CaptureFixture[str]) -> None:
    log = BoundedLog(sys.stderr)
    for number in range(10_000):
        log.handle(logging.makeLogRecord({"msg": f"number {number} \x1b[2J\u202eodd\nfake line " + "x" * 10_000}))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 * server.LINES and sum(map(len, lines)) < 1.01 * server.LINES * server.LINE_CHARACTERS
    assert lines[0] == "number 0 \\x1b[2J\\u202eodd" and lines[1].startswith("    fake line")
    log._bucket.levels.clear()
    log.handle(logging.makeLogRecord({"msg": "the next"}))
    assert capsys.readouterr().err == f"({10_000 - server.LINES} records left out) the next\n"


@pytest.mark.parametrize("text", ["plain", "Ω 😀", "a\nb"])
def test_what_can_be_printed_stays_as_it_is(text: str) -> None:
    assert printable(text) == text.replace("\n", "\n    ")


@pytest.mark.parametrize("proxy", [None, "127.0.0.1", "10.0.0.0/8"])
def test_forwarded_addresses_are_believed_only_of_the_proxy_that_is_named(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, proxy: str | None
) -> None:
    monkeypatch.setattr(security, "JOIN_BURST", 3.0)
    monkeypatch.setattr(security, "JOIN_RATE", 0.001)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    site = serve(limits=Limits(proxy=proxy))
    tries = [site.ask("GET", f"/join/{i}", headers={"x-forwarded-for": f"10.1.1.{i}"}).status for i in range(6)]
    assert tries == [401] * 6 if proxy == "127.0.0.1" else [401] * 3 + [429] * 3
    mine = [site.ask("GET", f"/join/{i}", headers={"x-forwarded-for": "10.1.2.3"}).status for i in range(4)]
    assert mine[-1] == 429


def test_a_proxy_is_an_address(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for proxy in ("*", "everybody", "127.0.0.1.1"):
        assert _run(["label", "--store", str(tmp_path / "l.db"), "--proxy", proxy]) == 2
        assert "should be an address or a network" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "1e3", "²", "٣", "", "0", "25", "9999", "1" * 9, "0x10", "1_0"])
def test_a_number_in_a_query_is_bounded(serve: Serve, number: str) -> None:
    from urllib.parse import quote

    person = serve(pairs_of(40)).person()
    answer = person.get(f"/api/pairs?count={quote(number)}")
    assert answer.status == 200 and len(answer.json()["pairs"]) <= 25


def test_a_kill_while_links_are_written_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, file = str(tmp_path / "labels.db"), tmp_path / "labels.db.links"
    store = Store.open(where)
    links = load_links(store, where)

    def killed(_: int) -> None:
        raise KeyboardInterrupt

    for person in store.annotators():
        store.revoke(person.id)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            load_links(store, where)
    assert json.loads(file.read_text()) == links
    again = load_links(store, where)
    assert again["secret"] == links["secret"] and again["admin"] != links["admin"]
    assert json.loads(file.read_text()) == again and file.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in tmp_path.glob(".*")) == []
    store.close()


@pytest.mark.parametrize("text", ["", '{"secret": "x', "[]", '{"secret": 1}', '{"admin": "x"}', "\udcff"])
def test_a_damaged_file_of_links_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    where = str(tmp_path / "labels.db")
    (tmp_path / "labels.db.links").write_bytes(text.encode(errors="surrogateescape"))
    assert _run(["label", "--store", where, "--port", "0"]) == 2

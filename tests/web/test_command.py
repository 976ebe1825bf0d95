from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kleash.cli import _run
from kleash.data.formats import write_groups
from kleash.errors import ConfigError
from kleash.labels.store import Store
from kleash.web.label.serve import LabelConfig, add_rows, load_links

from .conftest import pairs_of


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "labels.example.org"])
def test_a_host_that_others_can_reach_needs_to_be_meant(host: str) -> None:
    with pytest.raises(ConfigError, match=r"reached from other machines; give --public-url"):
        LabelConfig.make({"host": host})
    assert LabelConfig.make({"host": host, "public_url": "https://labels.example.org"}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_this_machine_needs_no_permission(host: str) -> None:
    assert LabelConfig.make({"host": host}).public_url is None


@pytest.mark.parametrize("url", ["labels.example.org", "ftp://a.b", "https://", "https://a.b/path"])
def test_a_public_address_is_an_address(url: str) -> None:
    with pytest.raises(ConfigError, match=r"should be like https://label"):
        LabelConfig.make({"public_url": url})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "responses": ["b"]}], r"pairs.jsonl: row 1 has 1 responses"),
        ([{"prompt": "a"}], r"pairs.jsonl: row 1 has 0 responses"),
        ([{"query": "a"}], r"pairs.jsonl row 1"),
    ],
)
def test_rows_that_cannot_be_compared_end_in_one_line(
    write: Any, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], message: str
) -> None:
    data = write("pairs.jsonl", rows)
    assert _run(["label", "--data", str(data), "--store", str(data.parent / "l.db"), "--port", "0"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and "Traceback" not in output.err
    line = output.err.strip().splitlines()[-1]
    assert line.startswith("kleash: ")
    import re

    assert re.search(message, line), line


def test_a_port_in_use_is_an_error_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert _run(["label", "--port", str(port), "--store", str(tmp_path / "l.db")]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert not (tmp_path / "l.db").exists()


def test_the_same_store_has_the_same_links_that_nobody_else_may_read(tmp_path: Path) -> None:
    where = str(tmp_path / "labels.db")
    store = Store.open(where)
    links = load_links(store, where)
    assert load_links(store, where) == links and len(store.annotators()) == 2
    file = tmp_path / "labels.db.links"
    assert file.stat().st_mode & 0o077 == 0 and json.loads(file.read_text()) == links
    (me,) = [person for person in store.annotators() if person.role == "annotator"]
    store.revoke(me.id)
    again = load_links(store, where)
    assert again["annotator"] != links["annotator"] and again["admin"] == links["admin"]
    store.close()


def test_the_most_uncertain_come_first_where_the_rows_say_so(tmp_path: Path) -> None:
    from dataclasses import replace

    from kleash.labels.queue import Queue, QueueSettings

    groups = [replace(group, columns={"uncertainty": i % 5 / 10}) for i, group in enumerate(pairs_of(5))]
    write_groups(groups, tmp_path / "pairs.jsonl")
    store = Store.open(tmp_path / "labels.db")
    add_rows(store, (str(tmp_path / "pairs.jsonl"),))
    queue = Queue(store, QueueSettings(audit_share=0, repeat_share=0))
    person = store.invite().annotator
    assert [pair.prompt for pair in queue.next(person, 5)] == [f"Question {i}?" for i in (4, 3, 2, 1, 0)]
    store.close()


def test_serving_the_page_does_not_import_torch() -> None:
    code = (
        "import sys, kleash.cli, kleash.web.label.serve, kleash.web.label.app, kleash.data.formats\n"
        "print([name for name in ('torch', 'transformers', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

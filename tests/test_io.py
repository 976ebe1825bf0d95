"""Files are written whole or not at all, and read as they were written."""

from __future__ import annotations

import ast
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kleash.errors import DataError, MachineError
from kleash.io import clear_copies, clear_leftovers, read_json, read_jsonl, write_folder, write_json, write_text

BREAKS = "\u2028\u2029\x85\x1c\x1d\x1e\x0b\x0c\r"
"""What Unicode, `str.splitlines` or text mode takes for the end of a line."""


def killed_at(call: int, work: Callable[[], None]) -> bool:
    """Do some work in a child that is killed before its n-th change of the file system; whether it came so far."""
    child = os.fork()
    if child == 0:
        changes = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"}
        count = [0]

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event in changes:
                count[0] += 1
                if count[0] == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def fill(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a").write_text(content)
        (folder / "b").mkdir()
        (folder / "b" / "c").write_text(content)

    return write


def content(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("a", "b/c")]


def test_a_folder_killed_anywhere_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    states = []
    for call in range(1, 100):
        place = tmp_path / str(call)
        write_folder(place / "state", fill("old"))
        came_so_far = killed_at(call, lambda place=place: write_folder(place / "state", fill("new")))
        clear_leftovers(place)
        assert sorted(os.listdir(place)) == ["state"], "a copy was left"
        assert content(place / "state") in (["old"] * 2, ["new"] * 2)
        states.append(content(place / "state")[0])
        if not came_so_far:
            break
    assert {"old", "new"} == set(states) and len(states) > 10, "the kills were not spread over the whole write"


def test_a_file_killed_anywhere_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for call in range(1, 20):
        write_text(file, "old")
        came_so_far = killed_at(call, lambda: write_text(file, "new"))
        assert file.read_text() in ("old", "new")
        if not came_so_far:
            break
    clear_copies(file)
    assert os.listdir(tmp_path) == ["a.json"]


def test_copies_of_a_process_that_runs_are_left_to_it(tmp_path: Path) -> None:
    running, dead = tmp_path / f".rows.jsonl.{os.getppid()}.tmp", tmp_path / ".rows.summary.json.4194304.tmp"
    running.touch(), dead.touch()
    clear_copies(tmp_path / "rows.jsonl")
    assert running.exists() and not dead.exists()


def test_leftovers_of_another_run_below_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "member").mkdir()
    for file in (
        tmp_path / "member" / "run.json",
        tmp_path / "member" / ".run.json.1.tmp",
        tmp_path / ".run.json.1.tmp",
    ):
        file.touch()
    (tmp_path / "mine.tmp").touch()
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".run.json.1.tmp", "member", "mine.tmp", "run.json"]


def test_only_a_line_feed_ends_a_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    text = f"a{BREAKS}b"
    file.write_bytes(f'{{"text": "{text[:3]}"}}\n{{"text": "c"}}\n'.encode())
    assert read_jsonl(file) == [{"text": text[:3]}, {"text": "c"}]


def test_no_module_splits_lines_anywhere_else() -> None:
    """`str.splitlines` splits at characters that a model may say; where a text is split, `"\\n"` is named."""
    source = Path(__file__).parents[1] / "src"
    calls = [
        f"{file.relative_to(source)}:{node.lineno}"
        for file in source.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "splitlines"
    ]
    assert calls == []


def test_a_last_line_that_is_incomplete_is_passed_over_and_any_other_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for end in ('{"a": 2', '{"a": {"b": 1}', "\xff", ""):
        file.write_text('{"a": 1}\n' + end, encoding="latin-1")
        assert read_jsonl(file) == [{"a": 1}]
    for line in ("", "{", "1", "[]", '{"a": ' + "1" * 5000 + "}", "null"):
        file.write_text('{"a": 1}\n' + line + '\n{"a": 2}\n')
        with pytest.raises(DataError, match=r"rows\.jsonl line 2 is not") as caught:
            read_jsonl(file)
        assert "\n" not in str(caught.value)


def test_a_file_of_json_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for text in (b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * 5000):
        file.write_bytes(text)
        with pytest.raises(DataError, match=r"a\.json (is not JSON|holds a).*; delete it or restore it") as caught:
            read_json(file)
        assert "\n" not in str(caught.value)


def test_a_folder_that_was_taken_away_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (lambda path: write_json(path, {}), lambda path: write_folder(path, lambda folder: None)):
        with pytest.raises(MachineError, match=r"restore what was moved or deleted, or choose another place, then run"):
            write(tmp_path / "file" / "below")
    with pytest.raises(MachineError, match=r"a\.json: No such file or directory; restore"):
        read_json(tmp_path / "a.json")

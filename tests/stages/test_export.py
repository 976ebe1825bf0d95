from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kleash.cli import main
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference, Response
from kleash.errors import DataError
from kleash.labels.open_store import open_store
from kleash.stages.export import ExportConfig, run


@pytest.fixture
def store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """A store of forty labels, made by the command."""
    rows = [Group(f"p{i}", (Response("good"), Response("bad")), Preference(1.0)) for i in range(40)]
    write_groups(rows, tmp_path / "old.jsonl")
    with pytest.raises(SystemExit) as done:
        main(["import", "--store", str(tmp_path / "labels.db"), "--data", str(tmp_path / "old.jsonl")])
    assert done.value.code == 0 and "40 new pairs, 40 new votes" in capsys.readouterr().out
    return str(tmp_path / "labels.db")


def test_labels_go_from_file_to_store_to_file_by_command(store: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as done:
        main(["export", "--store", store, "--out", str(tmp_path / "out"), "--test-share", "0.25"])
    assert done.value.code == 0
    train, test = (list(read_groups(tmp_path / "out" / f"{name}.jsonl")) for name in ("train", "test"))
    assert len(train) + len(test) == 40 and 3 <= len(test) <= 18
    assert all(row.responses[0].text == "good" for row in train + test)


def test_an_export_is_not_written_again_and_other_settings_are_refused(store: str, tmp_path: Path) -> None:
    config = ExportConfig(store=store, out=tmp_path / "out")
    before = (run(config) / "train.jsonl").stat().st_mtime_ns
    assert (run(config) / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="other settings"):
        run(config.model_copy(update={"ties": "drop"}))


def test_an_export_into_the_folder_of_another_store_is_refused(store: str, tmp_path: Path) -> None:
    config = ExportConfig(store=store, out=tmp_path / "out")
    run(config)
    other = str(tmp_path / "other.db")
    with pytest.raises(SystemExit):
        main(["import", "--store", other, "--data", str(tmp_path / "old.jsonl"), "--annotator", "somebody else"])
    with pytest.raises(DataError, match=r"out holds an export of another store than .*other\.db; delete it"):
        run(config.model_copy(update={"store": other}))
    with pytest.raises(DataError, match="other settings"):
        run(config.model_copy(update={"kind": ("person",)}))
    (tmp_path / "out" / "train.jsonl").write_text("")
    with pytest.raises(DataError, match=r"train\.jsonl was changed since it was exported"):
        run(config)


def test_the_command_says_what_it_wrote_and_what_not_each_time(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_groups([Group("q", (Response("a"), Response("b")))], tmp_path / "more.jsonl")
    words = ["export", "--store", store, "--out", str(tmp_path / "out"), "--json"]
    for arguments in (["import", "--store", store, "--data", str(tmp_path / "more.jsonl")], words, words):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        output = capsys.readouterr()
        assert done.value.code == 0
        if arguments is words:
            line = "train.jsonl 40 rows, of 41 pairs; pairs left out: 1 no votes; votes left out: none"
            assert caplog.messages[-1] == f"{tmp_path / 'out'}: {line}"
            results = json.loads(output.out)["results"]
            assert (results["pairs"], results["left_out"], results["votes_left_out"]) == (41, {"no votes": 1}, {})


@pytest.mark.parametrize(
    ("until", "message"),
    [
        ("0", "'until' is '0', but should be greater than or equal to 1"),
        ("-1", "greater than or equal to 1"),
        (str(2**31), "less than 2147483648"),
        ("9" * 400, "'until' is"),
        ("half", "a valid integer"),
        ("41", "until is 41, and the last vote of the store is 40; give that, or leave it out"),
    ],
)
def test_until_is_a_vote_of_the_store(
    until: str, message: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["export", "--store", store, "--out", str(tmp_path / "out"), f"--until={until}"])
    line = capsys.readouterr().err
    assert done.value.code == 2 and message in line and line.count("\n") == 1 and len(line) < 500
    assert not (tmp_path / "out" / "labels.json").exists()


def test_an_export_up_to_a_vote_has_no_later_one(store: str, tmp_path: Path) -> None:
    run(ExportConfig(store=store, out=tmp_path / "out", until=25))
    assert len(list(read_groups(tmp_path / "out" / "train.jsonl"))) == 25
    run(ExportConfig(store=store, out=tmp_path / "all", until=40))
    assert len(list(read_groups(tmp_path / "all" / "train.jsonl"))) == 40


def test_an_empty_store_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = tmp_path / "new.db", tmp_path / "out"
    for made, message in ((False, "there is no such label store"), (True, "has no labels yet")):
        if made:
            with open_store(store):
                pass
        with pytest.raises(SystemExit) as done:
            main(["export", "--store", str(store), "--out", str(out)])
        assert done.value.code == 2 and message in capsys.readouterr().err
        assert store.exists() == made, "a store that is only read is not made"


def test_without_the_extra_a_command_names_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['sqlalchemy'] = None; from kleash.cli import main; main(sys.argv[1:])"
    (tmp_path / "l.db").touch()
    command = [sys.executable, "-c", code, "export", "--store", str(tmp_path / "l.db"), "--out", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "needs sqlalchemy; pip install 'kleash[feedback]'" in done.stderr

"""Rows in every format that people bring, and the files of a folder of data."""

from __future__ import annotations

import codecs
import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from kleash.data.formats import read_groups
from kleash.data.group import Group, Response, Scores
from kleash.errors import DataError

ROWS = [{"prompt": "Name a colour", "response": "Blue.\u2028Or é."}, {"prompt": "A fruit, red", "response": 'A "fig"'}]
GROUPS = [Group(row["prompt"], (Response(row["response"]),)) for row in ROWS]


def pretty(rows: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in rows)


def table(separator: str) -> str:
    cells = [["prompt", "response"], *([row["prompt"], row["response"]] for row in ROWS)]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in cells]
    return "".join(separator.join(row) + "\r\n" for row in quoted)


def arrow(path: Path, writer: Callable[..., Any]) -> None:
    data = pa.Table.from_pylist(ROWS)
    with writer(str(path), data.schema) as file:
        file.write_table(data)


TEXTS = {
    "lines.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "lines.json": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "list.json": json.dumps(ROWS, ensure_ascii=False),
    "indented.json": json.dumps(ROWS, indent=2),
    "objects.json": pretty(ROWS),
    "objects.jsonl": pretty(ROWS),
    "list.jsonl": json.dumps(ROWS, indent=1),
    "table.csv": table(","),
    "table.tsv": table("\t"),
}


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("packed", [False, True], ids=["", "gz"])
@pytest.mark.parametrize("name", TEXTS)
def test_the_same_rows_come_out_of_every_text_file(name: str, packed: bool, mark: bytes, tmp_path: Path) -> None:
    content = mark + TEXTS[name].encode()
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert list(read_groups(path)) == GROUPS


def test_the_same_rows_come_out_of_every_arrow_file(tmp_path: Path) -> None:
    data = pa.Table.from_pylist(ROWS)
    pq.write_table(data, tmp_path / "rows.parquet")
    pyarrow.feather.write_feather(data, str(tmp_path / "rows.feather"))
    arrow(tmp_path / "file.arrow", pa.ipc.new_file)
    arrow(tmp_path / "stream.arrow", pa.ipc.new_stream)
    for name in ("rows.parquet", "rows.feather", "file.arrow", "stream.arrow"):
        assert list(read_groups(tmp_path / name)) == GROUPS, name


def test_one_object_over_several_lines_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    path.write_text(json.dumps(ROWS[0], indent=4))
    assert list(read_groups(path)) == GROUPS[:1]


def test_cells_are_text_but_for_what_cannot_be_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,response,score,number\n1,007,0.5,3\n"[{""role"": ""user"", ""content"": ""Hi""}]",Yo,1,\n')
    first, second = read_groups(path)
    assert first == Group("1", (Response("007"),), Scores((0.5,)), {"number": "3"})
    assert second == Group(({"role": "user", "content": "Hi"},), (Response("Yo"),), Scores((1.0,)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short.csv", b"prompt,response\na,b\nc\n", r"short\.csv row 2: 1 cells under 2 columns"),
        ("twice.csv", b"prompt,prompt\na,b\n", "two columns 'prompt'"),
        ("quote.csv", b'prompt,response\na,"b" c\n', "is not CSV"),
        ("repr.csv", b"prompt,response\n\"[{'role': 'user'}]\",b\n", r"repr\.csv row 1: 'prompt' is not JSON"),
        ("latin.csv", "prompt\né\n".encode("latin-1"), "not UTF-8"),
        ("semicolon.csv", b"prompt;response\na;b\n", r"fits the columns 'prompt;response'"),
        ("header.csv", b"prompt,response\n", "holds no rows"),
        ("no.arrow", b"ARROW1 and then nothing", "no.arrow is not an Arrow file"),
        ("no.feather", b"", "empty"),
        ("half.json", b'{\n "prompt": "a",\n', "half.json is not JSON"),
        ("two.json", b'{\n "prompt": "a"\n}\n{\n "prompt" "b"\n}', r"not JSON .*line 5"),
        ("deep.jsonl", b"[" * 100_000, "not JSON"),
        ("digits.json", b'[{"prompt": "a", "n": ' + b"9" * 10_000 + b"}]", "not JSON"),
        ("pointer.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_groups(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert name.partition(".")[0] in str(caught.value)


# --- folders ---------------------------------------------------------------------------------------------------------


def shards(folder: Path, *names: str) -> None:
    """A Parquet file of one row for each name, whose prompt is the name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([{"prompt": name}]), folder / name)


def prompts(folder: Path, split: str | None = None) -> list[Any]:
    return [group.prompt for group in read_groups(folder, split=split)]


def test_a_cloned_repository_is_read_by_the_names_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kleash")
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("the hub was asked"))
    train = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    shards(tmp_path, *train, "data/test-00000-of-00001.parquet", ".git/lfs/objects/train.parquet")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Rows\n")
    assert prompts(tmp_path) == train
    assert f"split train, read from {', '.join(train)}" in caplog.text
    assert prompts(tmp_path, "test") == ["data/test-00000-of-00001.parquet"]
    with pytest.raises(DataError, match="has no split 'dev'; it has: test, train"):
        prompts(tmp_path, "dev")


def test_the_head_of_the_readme_says_which_files_a_split_has(tmp_path: Path) -> None:
    shards(tmp_path, "data/train_sft-0.parquet", "data/train_prefs-0.parquet", "data/train_prefs-1.parquet")
    files = "configs:\n- config_name: default\n  data_files:\n"
    parts = "  - split: train_prefs\n    path: data/train_prefs-*\n  - split: train_sft\n    path: data/train_sft-*\n"
    (tmp_path / "README.md").write_text(f"\ufeff---\n{files}{parts}---\nText\n", encoding="utf-8")
    assert prompts(tmp_path, "train_prefs") == ["data/train_prefs-0.parquet", "data/train_prefs-1.parquet"]
    with pytest.raises(DataError, match="has no split 'train'; it has: train_prefs, train_sft; name a file in it"):
        prompts(tmp_path)
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: a\n- config_name: b\n---\n")
    with pytest.raises(DataError, match=r"several configs \(a, b\)"):
        prompts(tmp_path)
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: gone/*.parquet\n---\n")
    with pytest.raises(DataError, match="no file of the split 'train'"):
        prompts(tmp_path)
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(DataError, match=r"README\.md: invalid YAML"):
        prompts(tmp_path)


def test_a_folder_from_which_no_rows_follow_is_refused(tmp_path: Path) -> None:
    for name in ("run.json", "metrics.jsonl", "config.json"):
        (tmp_path / name).write_text("{}\n")
    with pytest.raises(DataError, match="is a folder, but not one that `datasets` saved, nor one of files of rows"):
        prompts(tmp_path)
    both = tmp_path / "both"
    shards(both, "rows.parquet")
    (both / "rows.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match="in several formats"):
        prompts(both)
    (both / "rows.parquet").unlink()
    assert prompts(both) == ["a"]

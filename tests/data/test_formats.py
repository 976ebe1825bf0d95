"""Reading and writing files: every schema, every format, and the errors of wrong rows."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kleash.data import formats
from kleash.data.formats import parse_row, read_groups, to_row, write_groups, write_rows
from kleash.data.group import Group, Preference, Ranking, Response, Scores
from kleash.errors import DataError, SavingError

U, A, B = ({"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B")))
U2 = {"role": "user", "content": "Q2"}
S = {"role": "system", "content": "S"}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- schemas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "group"),
    [
        ({"prompt": "Q"}, Group("Q")),
        ({"prompt": [S, U]}, Group((S, U))),
        ({"prompt": "Q", "answer": "4", "n": 1}, Group("Q", columns={"answer": "4", "n": 1})),
        ({"prompt": "Q", "response": "A"}, Group("Q", (Response("A"),))),
        ({"prompt": "Q", "completion": "A"}, Group("Q", (Response("A"),))),
        ({"prompt": "Q", "response": ""}, Group("Q", (Response(""),))),
        ({"prompt": "", "response": "A"}, Group("", (Response("A"),))),
        ({"prompt": [U], "response": "A"}, Group((U,), (Response("A"),))),
        ({"prompt": [U], "response": [A, U2, B]}, Group((U,), (Response((A, U2, B)),))),
        ({"prompt": "Q", "response": "A", "finished": False}, Group("Q", (Response("A", finished=False),))),
        ({"prompt": "Q", "response": "A", "score": 0}, Group("Q", (Response("A"),), Scores((0.0,)))),
        ({"prompt": "Q", "response": "A", "score": [0.5]}, Group("Q", (Response("A"),), Scores((0.5,)))),
        ({"prompt": "Q", "responses": ["A"]}, Group("Q", (Response("A"),))),
        (
            {"prompt": "Q", "responses": ["A", "B"], "finished": [True, False]},
            Group("Q", (Response("A"), Response("B", finished=False))),
        ),
        (
            {"prompt": "Q", "responses": ["A", "B"], "scores": [1, -2]},
            Group("Q", (Response("A"), Response("B")), Scores((1.0, -2.0))),
        ),
        (
            {"prompt": "Q", "responses": ["A", "B"], "ranks": [1, 0], "annotator": "me"},
            Group("Q", (Response("A"), Response("B")), Ranking((1, 0), "me")),
        ),
        (
            {"prompt": "Q", "responses": ["A", "B"], "probability": 0.25},
            Group("Q", (Response("A"), Response("B")), Preference(0.25)),
        ),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, Group("Q", (Response("A"), Response("B")), Preference())),
        ({"prompt": "Q", "chosen": "A", "rejected": "A"}, Group("Q", (Response("A"), Response("A")), Preference())),
        (
            {"prompt": [U], "chosen": [A], "rejected": [B], "chosen_probability": 0.5, "annotator": "me", "id": 7},
            Group((U,), (Response((A,)), Response((B,))), Preference(0.5, "me"), {"id": 7}),
        ),
        # whole conversations: split before the first turn that differs
        (
            {"chosen": [S, U, A, U2, B], "rejected": [S, U, A, U2, A]},
            Group((S, U, A, U2), (Response((B,)), Response((A,))), Preference()),
        ),
        ({"chosen": [U, A], "rejected": [U, A]}, Group((U,), (Response((A,)), Response((A,))), Preference())),
        (
            {"chosen": [U, A], "rejected": [U, A, U2, B]},
            Group((U,), (Response((A,)), Response((A, U2, B))), Preference()),
        ),
        # as UltraFeedback has them, the question given a second time
        (
            {"prompt": "Q", "chosen": [U, A], "rejected": [U, B]},
            Group((U,), (Response((A,)), Response((B,))), Preference()),
        ),
        # as HH-RLHF has them: parted after the speaker's mark, although "A" is shared as well
        (
            {"chosen": "\n\nHuman: Q\n\nAssistant: All", "rejected": "\n\nHuman: Q\n\nAssistant: Any"},
            Group("\n\nHuman: Q\n\nAssistant:", (Response(" All"), Response(" Any")), Preference()),
        ),
        ({"messages": [S, U, A, U2, B]}, Group((S, U), (Response((A, U2, B)),))),
        ({"messages": [S, U]}, Group((S, U))),
        ({"messages": [U, A], "prompt": "Q"}, Group((U,), (Response((A,)),))),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, A]},
            Group((U,), (Response((A,)),)),
        ),
        # null is absent
        (
            {"prompt": "Q", "response": "A", "score": None, "messages": None, "answer": None},
            Group("Q", (Response("A"),)),
        ),
    ],
)
def test_the_kind_of_a_row_follows_from_its_columns(row, group):
    assert parse_row(row) == group


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "rejected": "B"}, "'chosen' is missing; a preference row needs prompt, chosen and rejected"),
        ({"prompt": "Q", "chosen": "B"}, "'rejected' is missing"),
        ({"chosen": "A", "rejected": "B"}, "'prompt' is missing; a preference row needs"),
        ({"body": "Q"}, r"none of the known schemas fits the columns 'body'; a row has one of: messages"),
        (
            {"query": "Q", "answer": "A"},
            r"columns 'answer', 'query'.*--columns prompt=…,response=…",
        ),
        (["Q"], "a row is an object with named columns, got a list"),
        ("Q", "got text"),
        ({"prompt": 3}, "'prompt' is a number; it must be text or a list of turns"),
        ({"prompt": []}, "'prompt' has no turns"),
        ({"prompt": ["Q"]}, r"'prompt\[0\]' is text; a turn is an object"),
        ({"prompt": [{"content": "Q"}]}, r"'prompt\[0\]' has no role"),
        ({"messages": [{"from": "human", "text": "Q"}]}, r"has no role.*'from', 'text'"),
        ({"messages": [{"from": "alien", "value": "Q"}]}, "from 'alien'; known speakers: human"),
        ({"messages": [{"role": "human", "content": "Q"}]}, 'role "human"; known roles: system, .*assistant'),
        ({"messages": [U, {"role": "assistant"}]}, r"'messages\[1\]' has no content"),
        ({"messages": [{"role": "user", "content": 3}]}, r"'messages\[0\]' has a wrong content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not text"),
        ({"messages": [A]}, "begins with the assistant"),
        ({"messages": "Q"}, "'messages' is text; it must be a list"),
        ({"messages": [U, A], "prompt": "other"}, "'prompt' is not what 'messages' begins with"),
        ({"prompt": "Q", "chosen": "A", "rejected": [B]}, "'chosen' and 'rejected' are of different kinds"),
        ({"prompt": "Q", "chosen": [A], "rejected": [B]}, "'prompt' is text and 'chosen' a list of turns"),
        ({"prompt": [U], "response": [U2]}, "'response' begins with a turn by 'user'"),
        ({"prompt": "other", "chosen": [U, A], "rejected": [U, B]}, "'prompt' is not what"),
        ({"chosen": [U, A], "rejected": [U2, B]}, "share no first turn"),
        (
            {"chosen": [U, A, U, A], "rejected": [U, A, U2, B]},
            r"'chosen\[2\]' is the first turn to differ and is by 'user'",
        ),
        ({"prompt": "Q", "responses": []}, "at least one"),
        ({"prompt": "Q", "responses": "A"}, "'responses' must be a list"),
        ({"prompt": [U], "responses": ["A", [B]]}, "'responses' are of different kinds"),
        ({"prompt": "Q", "responses": ["A", 3]}, r"'responses\[1\]' is a number"),
        ({"prompt": "Q", "response": "A", "completion": "A"}, "ambiguous"),
        ({"prompt": "Q", "response": "A", "score": float("nan")}, "'score' holds NaN; it must be a finite number"),
        ({"prompt": "Q", "response": "A", "score": float("inf")}, "finite"),
        ({"prompt": "Q", "response": "A", "score": 10**400}, "finite"),
        ({"prompt": "Q", "response": "A", "score": "1"}, "finite number"),
        ({"prompt": "Q", "response": "A", "score": True}, "finite number"),
        ({"prompt": "Q", "responses": ["A", "B"], "scores": [1]}, "'scores' has 1 values for 2 responses"),
        ({"prompt": "Q", "responses": ["A", "B"], "ranks": [0, 0.5]}, "'ranks' must be whole numbers"),
        ({"prompt": "Q", "responses": ["A", "B"], "ranks": [0, -1]}, "'ranks' must be whole numbers"),
        ({"prompt": "Q", "responses": ["A", "B"], "ranks": [0, 1], "scores": [0, 1]}, "more than one label"),
        ({"prompt": "Q", "responses": ["A"], "probability": 0.5}, "compares two responses"),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B", "chosen_probability": 1.5},
            r"1.5; a probability lies in \[0, 1\]",
        ),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "probability": -0.1}, "probability lies in"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "probability": 1, "chosen_probability": 1}, "one of them"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "finished": [True]}, "'finished' must be"),
        ({"prompt": "Q", "response": "A", "finished": "no"}, "'finished' must be"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "annotator": 3}, "'annotator' must be text"),
        ({"prompt": "Q\ud83d"}, "lone surrogate"),
    ],
)
def test_a_wrong_row_is_named_with_what_would_be_right(row, message, tmp_path):
    path = lines(tmp_path / "data.jsonl", {"prompt": "fine"}, row)
    with pytest.raises(DataError, match=rf"^data\.jsonl row 2: .*{message}") as caught:
        list(read_groups(path))
    assert "\n" not in str(caught.value)


# --- files -----------------------------------------------------------------------------------------------------------


def test_rows_come_before_the_broken_one_is_met(tmp_path):
    path = lines(tmp_path / "data.jsonl", {"prompt": "1"}, {"prompt": "2"})
    with path.open("a") as file:
        file.write('\n{"prompt": "4"\n')
    groups = read_groups(path)
    assert [next(groups).prompt, next(groups).prompt] == ["1", "2"]
    with pytest.raises(DataError, match=r"data\.jsonl row 4: not JSON .*one object a line"):  # as an editor counts
        next(groups)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"   \n"])
def test_an_empty_file_is_an_error(content, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.jsonl .*at least one"):
        list(read_groups(path))


def test_a_list_and_lines_both_stand_in_json(tmp_path):
    path = tmp_path / "data.json"
    for text in ('[{"prompt": "1"},\n {"prompt": "2"}]', '{"prompt": "1"}\n{"prompt": "2"}\n'):
        path.write_text(text)
        assert [group.prompt for group in read_groups(path)] == ["1", "2"]
    path.write_text('[{"prompt": "1"}, {"prompt": 2}]')
    with pytest.raises(DataError, match=r"data\.json row 2: 'prompt' is a number"):
        list(read_groups(path))
    for text, message in (('[{"prompt": "1"}', "not JSON"), ("[]", "no rows")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            list(read_groups(path))


def test_broken_files_are_named(tmp_path):
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "1"}\n' * 100)[:-20])
    (tmp_path / "no.jsonl.gz").write_bytes(b'{"prompt": "1"}\n')
    (tmp_path / "no.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    (tmp_path / "data.xls").write_text("prompt\nQ\n")
    for name, message in (
        *(("cut.jsonl.gz", "broken gzip"), ("no.jsonl.gz", "broken gzip"), ("no.parquet", "not a Parquet file")),
        *(("latin.jsonl", "UTF-8|not JSON"), ("data.xls", "ending that kleash does not read; known: .jsonl")),
    ):
        with pytest.raises(DataError, match=message) as caught:
            list(read_groups(tmp_path / name))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_F17_a_path_that_does_not_exist_opens_no_connection(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("the hub was asked"))
    (tmp_path / "data").mkdir()
    for name in (
        "nowhere.jsonl",
        "no/where.jsonl",
        "./no/where",
        "data/train",
        "trian",
        "~/x/y",
        "/x/y",
        "a/b/c",
        "a/b.csv",
    ):
        with pytest.raises(DataError, match="there is no file or folder"):
            read_groups(name)  # at once, and not at the first row


def test_a_hub_name_asks_the_hub_and_its_refusal_is_one_line(monkeypatch):
    asked = []

    def load(*name, split, streaming):
        asked.append((*name, split, streaming))
        if name[0] == "no/where":
            raise FileNotFoundError("Dataset 'no/where'\ndoes not exist")
        return iter([{"prompt": "Q", "response": None}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_groups("owner/name:config", split="test")) == [Group("Q")]
    assert asked == [("owner/name", "config", "test", True)]
    with pytest.raises(DataError, match="no/where is not a path here, and the hub has no such dataset") as caught:
        list(read_groups("no/where"))
    assert "\n" not in str(caught.value)


def test_a_saved_folder_is_read_by_split(tmp_path):
    data = datasets.Dataset.from_list([{"prompt": "1", "extra": None}, {"prompt": "2", "extra": 3}])
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "two"))
    datasets.DatasetDict({"dev": data.select([1])}).save_to_disk(str(tmp_path / "three"))
    assert list(read_groups(tmp_path / "one")) == [Group("1"), Group("2", columns={"extra": 3})]
    assert len(list(read_groups(tmp_path / "two"))) == 2
    assert list(read_groups(tmp_path / "two", split="test")) == [Group("1")]
    assert [group.prompt for group in read_groups(tmp_path / "three")] == ["2"]
    with pytest.raises(DataError, match="no split 'dev'; it has: train, test"):
        read_groups(tmp_path / "two", split="dev")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="not one that `datasets` saved"):
        read_groups(tmp_path / "other")


def test_a_parquet_row_is_counted_over_row_groups(tmp_path):
    path = tmp_path / "data.parquet"
    table = pa.table({"prompt": ["x"] * 1250, "score": [1.0] * 1150 + [float("nan")] * 100, "response": ["y"] * 1250})
    pq.write_table(table, path, row_group_size=350)
    with pytest.raises(DataError, match=r"data\.parquet row 1151: 'score' holds NaN"):
        list(read_groups(path))


# --- writing ---------------------------------------------------------------------------------------------------------

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".parquet", "")

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
number = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def rows_of_groups(draw: st.DrawFn, *, nested: bool) -> dict[str, Any]:
    """What `built` makes a group of; apart from it, since a strategy may not run the type checker's random samples."""
    turns = draw(st.booleans())
    plain = not turns or draw(st.booleans())
    texts = draw(st.lists(text, max_size=4))
    size = len(texts)
    annotator = draw(st.none() | text)
    labels: list[tuple[type, tuple[Any, ...]] | None] = [None]
    if size:
        labels.append((Scores, (tuple(draw(st.lists(number, min_size=size, max_size=size))),)))
        labels.append((Ranking, (tuple(draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))), annotator)))
    if size == 2:
        labels += [(Preference, (draw(st.floats(0, 1)), annotator))] * 2
    extra = {"answer": text, "row": st.integers(-(2**53), 2**53), "hard": st.booleans()}
    if nested:  # JSON holds what Arrow cannot: a column of many kinds
        extra["any"] = st.recursive(
            st.booleans() | number | text, lambda x: st.lists(x) | st.dictionaries(text, x), max_leaves=4
        )
    return {
        "turns": turns,
        "plain": plain,
        "prompt": draw(text),
        "answers": [(answer, draw(st.booleans()), draw(st.booleans())) for answer in texts],
        "label": draw(st.sampled_from(labels)),
        "columns": draw(st.fixed_dictionaries({}, optional=extra)),
    }


def built(spec: dict[str, Any]) -> Group:
    def response(answer: str, long: bool, finished: bool) -> Response:
        turns = ({"role": "assistant", "content": answer}, *((U2, A) if long else ()))
        return Response(answer if spec["plain"] else turns, finished=finished)

    prompt = ({"role": "user", "content": spec["prompt"]},) if spec["turns"] else spec["prompt"]
    label = None if spec["label"] is None else spec["label"][0](*spec["label"][1])
    return Group(prompt, tuple(response(*answer) for answer in spec["answers"]), label, spec["columns"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


@settings(max_examples=50, deadline=None)
@given(specs=st.lists(rows_of_groups(nested=True), min_size=1, max_size=3))
def test_rows_written_as_json_are_read_back(folder, specs):
    written = [built(spec) for spec in specs]
    for ending in (".jsonl", ".jsonl.gz", ".json"):
        path = folder / f"any{ending}"
        assert write_groups(written, path) == len(written)
        assert list(read_groups(path)) == written


@pytest.mark.parametrize(("ending", "examples"), [(".parquet", 40), ("", 8)])
def test_rows_written_as_arrow_are_read_back(folder, ending, examples):
    @settings(max_examples=examples, deadline=None)
    @given(st.lists(rows_of_groups(nested=False), min_size=1, max_size=6))
    def check(specs: list[dict[str, Any]]) -> None:
        # A column of Arrow has one type: text or turns, a number or a list of them.
        alike = [spec for spec in specs if (spec["turns"], spec["plain"]) == (specs[0]["turns"], specs[0]["plain"])]
        scored = {len(spec["answers"]) == 1 for spec in alike if spec["label"] and spec["label"][0] is Scores}
        written = [built(spec) for spec in (alike if len(scored) < 2 else alike[:1])]
        path = folder / f"arrow{ending}"
        assert write_groups(written, path) == len(written)
        assert list(read_groups(path)) == written

    check()


def test_arrow_s_refusal_names_the_column(tmp_path):
    mixed = [Group("Q", columns={"n": 1}), Group("Q", columns={"n": "one"})]
    with pytest.raises(DataError, match=r"column 'n' mixes types.*write .jsonl"):
        write_groups(mixed, tmp_path / "data.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failure_while_writing_leaves_what_was_there(ending, tmp_path):
    path = tmp_path / f"data{ending}"
    write_groups([Group("old")], path)

    def failing():
        yield Group("new")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_groups(failing(), path)
    assert [group.prompt for group in read_groups(path)] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    write_groups([Group("new")], path)
    assert [group.prompt for group in read_groups(path)] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_that_were_written_otherwise_do_not_take_the_place_of_the_old_ones(ending, tmp_path, monkeypatch):
    path = tmp_path / f"data{ending}"
    write_rows([{"prompt": "old"}], path)
    write_lines = formats._write_lines

    def write_other_lines(rows, file, *, compress):
        write_lines([row | {"n": 99} for row in rows], file, compress=compress)

    monkeypatch.setattr(formats, "_write_lines", write_other_lines)

    def changing():
        row = {"prompt": "Q", "n": 1}
        yield row
        row["n"] = 2  # before the file as a whole is written

    with pytest.raises(SavingError, match=r"what was written holds 1 rows that are not the 1 in memory") as error:
        write_rows(changing(), path)
    assert "\n" not in str(error.value)
    assert [group.prompt for group in read_groups(path)] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_number_that_a_column_of_fractions_cannot_hold_is_not_lost_silently(tmp_path):
    rows = [{"prompt": "Q", "n": 2**60 + 1}, {"prompt": "Q", "n": 0.5}]
    with pytest.raises((SavingError, DataError)):
        write_rows(rows, tmp_path / "data.parquet")
    assert write_rows(rows, tmp_path / "data.jsonl") == 2


def test_what_arrow_holds_otherwise_and_readers_take_as_equal_is_written(tmp_path):
    rows = [{"prompt": "Q", "n": 1, "info": {"a": None}}, {"prompt": "Q", "n": 0.5, "info": {"b": (1, 2)}}]
    assert write_rows(rows, tmp_path / "data.parquet") == 2


def test_a_written_file_may_be_read_by_others(tmp_path):
    mask = os.umask(0o022)
    try:
        write_groups([Group("Q")], tmp_path / "data.jsonl")
    finally:
        os.umask(mask)
    assert (tmp_path / "data.jsonl").stat().st_mode & 0o777 == 0o644


def test_equal_groups_give_equal_bytes(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_groups([Group("Q", (Response("A"),))], tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_sampled_ids_are_written_as_text():
    sampled = Response(ids=(1, 2), decode=lambda ids: "-".join(map(str, ids)), finished=False)
    assert to_row(Group("Q", (sampled,))) == {"prompt": "Q", "response": "1-2", "finished": [False]}


def test_a_column_that_would_be_read_as_something_else_is_refused(tmp_path):
    for columns in ({"chosen": "x", "rejected": "y"}, {"prompt": "x"}, {"score": 1.0}):
        with pytest.raises(DataError, match="rename it"):
            write_groups([Group("Q", (Response("A"),), columns=columns)], tmp_path / "data.jsonl")
    group = parse_row({"prompt": "Q", "chosen": "A", "rejected": "B", "score": [1, 2]})  # kept as a column, no clash
    assert parse_row(to_row(group)) == group
    with pytest.raises(DataError, match="does not write"):
        write_groups([group], tmp_path / "data.csv")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_damaged_parquet_file_is_one_line(share: float, tmp_path: Path) -> None:
    file = tmp_path / "data.parquet"
    write_groups([Group("a", (Response("b" * 100),))] * 50, file)
    content = file.read_bytes()
    for damaged in (content[: int(share * len(content))] + b"PAR1", content[: int(share * len(content))], b"PAR1"):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"data\.parquet .*write it again|is empty") as caught:
            list(read_groups(file))
        assert "\n" not in str(caught.value)


def test_rows_nested_deep_or_with_digits_by_the_thousand_are_one_line(tmp_path: Path) -> None:
    for row in ('{"a":' * 3000 + "1" + "}" * 3000, '{"prompt": "a", "n": ' + "1" * 5000 + "}"):
        for name, text in (("data.jsonl", f'{{"prompt": "a"}}\n{row}\n'), ("data.json", f"[{row}]")):
            (tmp_path / name).write_text(text)
            with pytest.raises(DataError, match=name) as caught:
                list(read_groups(tmp_path / name))
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 400

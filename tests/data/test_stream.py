"""Rows that are read while they are trained on."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from kleash.data.group import EncodedGroup, EncodedResponse, Group
from kleash.data.read import read_encoded
from kleash.data.row_format import AS_IT_IS
from kleash.data.split import comparison, demonstration
from kleash.data.stream import Source, Stream, batches
from kleash.errors import DataError

Counts = dict[str, int]


def encode(groups: Sequence[Group], first: bool) -> tuple[list[EncodedGroup], Counts]:
    """Rows whose response begins with `drop` are left out."""
    kept = [group for group in groups if not group.responses[0].text.startswith("drop")]
    rows = [EncodedGroup((1,), (EncodedResponse((2,), (True,)),), group) for group in kept]
    return rows, {"read": len(groups), "used": len(rows)}


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def demonstrations(count: int, *, drop: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"Q{n}", "response": f"drop {n}" if drop and n % drop == 1 else f"A{n}"} for n in range(count)]


def stream(data: Path, *, block: int = 10, seed: int = 0, held_out_by: int | None = None) -> Stream:
    source = Source(str(data), demonstration, None, AS_IT_IS, held_out_by)
    return Stream(source, encode, seed=seed, note=lambda counts: None, block=block)


def texts(groups: Sequence[EncodedGroup]) -> list[str]:
    return [group.source.responses[0].text for group in groups]


@pytest.mark.parametrize("count", [7, 20, 43])
def test_each_epoch_has_every_row_once_in_another_order_and_under_the_same_number(tmp_path: Path, count: int) -> None:
    rows = stream(write(tmp_path / "rows.jsonl", demonstrations(count, drop=4)))
    used = [row["response"] for row in demonstrations(count, drop=4) if not row["response"].startswith("drop")]
    epochs = [rows.take(len(used)) for _ in range(3)]
    assert [sorted(texts(groups)) for _, groups in epochs] == [sorted(used)] * 3
    assert len({tuple(texts(groups)) for _, groups in epochs}) == 3
    assert len({tuple(sorted(zip(numbers, texts(groups), strict=True))) for numbers, groups in epochs}) == 1
    assert sorted(epochs[0][0]) == list(range(len(used)))


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_a_stream_continues_at_the_same_row_from_every_position(tmp_path: Path, ending: str) -> None:
    rows, file = demonstrations(43, drop=4), tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=7)
    elif ending == "csv":
        file.write_text("prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in rows))
    else:
        write(file, rows)
    whole = stream(file)
    states, steps = [], []
    for _ in range(30):
        states.append(json.loads(json.dumps(whole.state_dict())))  # as it is kept in a state
        steps.append(whole.take(3))
    for start in range(0, 30, 4):
        resumed = stream(file)
        resumed.load_state_dict(states[start])
        assert [resumed.take(3) for _ in range(start, 30)] == steps[start:]
        assert resumed.state_dict() == whole.state_dict()
        assert resumed.used == whole.used


def test_the_held_out_part_depends_on_the_prompt_only_and_no_prompt_is_in_both(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n % 200}", "response": f"A{n}"} for n in range(600)]
    train, held_out = [], []
    for order in range(3):
        random.Random(order).shuffle(rows)
        file = write(tmp_path / f"{order}.jsonl", rows)
        source = Source(str(file), demonstration, None, AS_IT_IS, held_out_by=7)
        held_out.append({group.prompt for group in source.first_held_out(1000)})
        train.append({group.prompt for _, group in source.train()})
    assert held_out[0] == held_out[1] == held_out[2]
    assert train[0] == train[1] == train[2]
    assert not train[0] & held_out[0]
    assert len(train[0] | held_out[0]) == 200
    assert 5 <= len(held_out[0]) <= 40


def test_the_held_out_rows_are_found_at_the_beginning(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", demonstrations(1000))
    file.write_text(file.read_text() + "a damaged row\n")
    assert len(Source(str(file), demonstration, None, AS_IT_IS, held_out_by=0).first_held_out(20)) == 20


def peak(rows: int, path: Path) -> int:
    """The most bytes allocated while a stream goes over a file twice, its held-out rows among them."""
    text = "word " * 2000
    file = write(path / f"{rows}.jsonl", [{"prompt": f"Q{n}", "response": f"{n} {text}"} for n in range(rows)])
    tracemalloc.start()
    try:
        endless = stream(file, block=10, held_out_by=0)
        endless.source.first_held_out(5)
        for _ in range(2 * rows // 20):
            endless.take(20)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    few, many = peak(40, tmp_path), peak(240, tmp_path)  # in memory 200 rows more are 2 MB
    assert many < few + 200_000


def test_a_source_without_a_row_to_train_on_is_an_error_and_no_loop(tmp_path: Path) -> None:
    rows = stream(write(tmp_path / "rows.jsonl", [{"prompt": f"Q{n}", "response": "drop"} for n in range(25)]))
    with pytest.raises(DataError, match="no row is left to train on"):
        rows.take(1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.json", json.dumps(demonstrations(3)), "list.json can only be read at once, not streamed"),
        ("mixture.yaml", "parts:\n- data: rows.jsonl\n", "a mixture is not streamed"),
        ("pairs.jsonl", json.dumps({"prompt": "Q", "chosen": "A", "rejected": "B"}), None),
        ("many.jsonl", json.dumps({"prompt": "Q", "responses": ["A", "B"]}), "many.jsonl row 1: has 2 responses"),
    ],
)
def test_what_cannot_be_streamed_is_named(tmp_path: Path, name: str, content: str, message: str | None) -> None:
    (tmp_path / name).write_text(content)
    if message is None:
        assert len(stream(tmp_path / name)) == 1
    else:
        with pytest.raises(DataError, match=message):
            stream(tmp_path / name)


def test_unpaired_rows_are_not_paired_and_those_labelled_false_are_no_demonstrations(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": f"A{n}", "label": n % 2 == 0} for n in range(10)]
    file = tmp_path / "unpaired.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sorted(texts(stream(file).take(5)[1])) == ["A0", "A2", "A4", "A6", "A8"]
    with pytest.raises(DataError, match=r"row 1: is unpaired, and pairing it by its prompt takes all rows; leave"):
        list(Source(str(file), comparison, None, AS_IT_IS, None).train())


def test_what_is_cut_and_left_out_is_counted_over_all_blocks(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kleash.data.stream.BLOCK", 4)
    rows = [{"prompt": "a", "chosen": "b" if n % 3 else "c", "rejected": "c"} for n in range(9)]
    counts: dict[str, Any] = {}
    train, held_out = read_encoded(
        str(write(tmp_path / "rows.jsonl", rows)), str(write(tmp_path / "eval.jsonl", rows[1:3])), tiny_tokenizer,
        usable=comparison, max_length=None, seed=0, note=lambda section, **parts: counts.update(parts), streaming=True,
    )  # fmt: skip
    assert isinstance(train, Stream)
    assert len(held_out) == counts["held_out"]["used"] == 2
    train.take(6)
    assert counts["train"] == {
        "read": 9, "used": 6, "cut": 0, "prompt_too_long": 0, "equal_scores": 0, "equal_responses": 3,
    }  # fmt: skip


def test_rows_in_memory_and_streamed_come_in_steps_of_the_same_size(tmp_path: Path) -> None:
    rows = stream(write(tmp_path / "rows.jsonl", demonstrations(30)))
    for source in (rows, list(rows)):
        assert [len(groups) for _, groups in islice(batches(source, batch_size=8, seed=0), 5)] == [8] * 5

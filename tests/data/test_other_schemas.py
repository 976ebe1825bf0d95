"""Rows as other tools write them, names for their columns, and rows that fit two schemas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from kleash.config import parse_columns
from kleash.data.chat import encode_all
from kleash.data.formats import read_groups, read_rows, write_groups
from kleash.data.group import Group, Preference, Ranking, Response
from kleash.data.row_format import RowFormat
from kleash.data.split import demonstration, prompt_only
from kleash.errors import ConfigError, DataError
from kleash.stages import STAGES

Write = Callable[[str, list[dict[str, Any]]], Path]

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}
CHAT = Group((U,), (Response((A,)),))
TEXT = Group("Hi", (Response("Yo"),))
PAIR = Group("Hi", (Response("Yo"), Response("Go")), Preference())
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}


@pytest.mark.parametrize(
    ("row", "group"),
    [
        # ShareGPT
        ({"conversations": [HUMAN, GPT]}, CHAT),
        ({"conversation": [HUMAN, GPT]}, CHAT),
        ({"messages": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Yo"}]}, CHAT),
        ({"conversations": [U, A]}, CHAT),
        ({"conversations": [{"from": "system", "value": "Be brief."}, HUMAN, GPT], "id": 3},
         Group((SYSTEM, U), (Response((A,)),), columns={"id": 3})),
        ({"conversations": [HUMAN, GPT], "system": "Be brief."}, Group((SYSTEM, U), (Response((A,)),))),
        ({"conversations": [HUMAN, {"from": "function_call", "value": '{"name": "f"}'},
                            {"from": "observation", "value": "3"}, GPT]},
         Group((U,), (Response((CALL, {"role": "tool", "content": "3"}, A)),))),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "Go"}},
         Group((U,), (Response((A,)), Response(({"role": "assistant", "content": "Go"},))), Preference())),
        # Alpaca
        ({"instruction": "Hi", "input": "", "output": "Yo"}, TEXT),
        ({"instruction": "Hi", "output": "Yo"}, TEXT),
        ({"instruction": "Say", "input": "Hi", "output": "Yo"}, Group("Say\nHi", (Response("Yo"),))),
        ({"instruction": "Hi", "input": "", "output": "Yo", "history": [], "system": ""},
         Group("Hi", (Response("Yo"),), columns={"system": ""})),
        ({"instruction": "Hi", "output": "Yo", "system": "Be brief."}, Group((SYSTEM, U), (Response("Yo"),))),
        ({"instruction": "Hi", "output": "Yo", "history": [["Hi", "Yo"]]}, Group((U, A, U), (Response("Yo"),))),
        ({"instruction": "Hi", "chosen": "Yo", "rejected": "Go"}, PAIR),
        # question and answer
        ({"question": "Hi", "answer": "Yo"}, Group("Hi", (Response("Yo"),), columns={"answer": "Yo"})),
        ({"question": "Hi", "answer": 3}, Group("Hi", columns={"answer": 3})),
        ({"question": "Hi", "chosen": "Yo", "rejected": "Go"}, PAIR),
        # RewardBench 2
        ({"prompt": "Hi", "chosen": ["Yo"], "rejected": ["Go"], "subset": "Math"},
         Group("Hi", PAIR.responses, Preference(), {"subset": "Math"})),
        ({"prompt": "Hi", "chosen": ["a", "b"], "rejected": ["c", "d"]},
         Group("Hi", tuple(map(Response, "abcd")), Ranking((0, 0, 1, 1)))),
        # several responses and which is better
        ({"prompt": "Hi", "response_0": "Yo", "response_1": "Go", "better_response_id": 0},
         Group("Hi", PAIR.responses, Preference(1.0))),
        ({"prompt": "Hi", "response_1": "Yo", "response_2": "Go", "preference": 2},
         Group("Hi", PAIR.responses, Preference(0.0))),
        ({"question": "Hi", "answer_a": "Yo", "answer_b": "Go", "winner": "tie"},
         Group("Hi", PAIR.responses, Preference(0.5))),
        ({"prompt": "Hi", "response_a": "Yo", "response_b": "Go", "winner": "model_b"},
         Group("Hi", PAIR.responses, Preference(0.0))),
        ({"prompt": "Hi", "response_0": "Yo", "response_1": "Go"}, Group("Hi", PAIR.responses)),
        ({"prompt": "Hi", "response_0": "a", "response_1": "b", "response_2": "c", "better_response_id": 1},
         Group("Hi", tuple(map(Response, "abc")), Ranking((1, 0, 1)))),
        ({"conversation_a": [U, A], "conversation_b": [U, {**A, "content": "Go"}], "winner": "model_b"},
         Group((U,), (Response(({**A, "content": "Go"},)), Response((A,))), Preference())),
        # text
        ({"text": "Once upon"}, Group("", (Response("Once upon"),))),
    ],
)  # fmt: skip
def test_rows_of_other_tools_are_read(row: dict[str, Any], group: Group, write: Write) -> None:
    assert list(read_groups(write("rows.jsonl", [row]))) == [group]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 2},
            "must name one of response_0",
        ),
        ({"conversations": [HUMAN, {"from": "function_call", "value": "f(3)"}]}, "not JSON with name and arguments"),
        ({"instruction": "Hi", "output": "Yo", "history": ["Hi"]}, "'history' must be a list of pairs"),
        ({"prompt": "Hi", "chosen": [], "rejected": ["a"]}, "'chosen' has no turns"),
        ({"conversations": [GPT]}, "begins with the assistant"),
    ],
)
def test_a_wrong_row_of_another_tool_is_named(row: dict[str, Any], message: str, write: Write) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl row 1: .*{message}") as caught:
        list(read_groups(write("rows.jsonl", [row])))
    assert "\n" not in str(caught.value)


# --- a row that fits two schemas -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "choices"),
    [
        ({"messages": [U, A], "prompt": "Hi", "response": "Go"},
         ("messages=messages", "prompt=prompt,response=response")),
        ({"messages": [U, A], "conversations": [HUMAN]*3}, ("messages=messages", "conversations=conversations")),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b", "messages": [U, A]}, ("messages=messages",)),
        ({"prompt": "Hi", "question": "Ho", "answer": "3"}, ("prompt=prompt", "question=question,answer=answer")),
        ({"instruction": "Hi", "output": "Yo", "text": "### Hi: Yo"},
         ("instruction=instruction,output=output", "text=text")),
        ({"prompt": "Hi", "response": "Yo", "instruction": "Hi", "output": "Go"}, ("prompt=prompt,response=response",)),
    ],
)  # fmt: skip
def test_a_row_that_fits_two_schemas_with_other_words_stops_and_each_choice_works(
    row: dict[str, Any], choices: tuple[str, ...], write: Write, tmp_path: Path
) -> None:
    data = write("rows.jsonl", [row])
    with pytest.raises(DataError, match=r"row 1: the columns fit two schemas with different words") as caught:
        list(read_groups(data))
    for choice in choices:
        assert f"--columns {choice}" in str(caught.value)
        (group,) = read_groups(data, row_format=RowFormat(parse_columns(choice)))
        write_groups([group], tmp_path / "again.jsonl")
        assert list(read_groups(tmp_path / "again.jsonl")) == [group]


@pytest.mark.parametrize(
    ("row", "group"),
    [
        ({"messages": [U, A], "prompt": "Hi", "response": "Yo"}, CHAT),
        ({"messages": [U, A], "conversations": [HUMAN, GPT]}, CHAT),
        ({"messages": [U, A], "prompt": "Hi"}, CHAT),
        ({"prompt": "Hi", "chosen": "Yo", "rejected": "Go", "messages": [U, A]}, PAIR),
        ({"prompt": "Hi", "question": "Hi", "answer": "3"}, Group("Hi", columns={"answer": "3"})),
        ({"messages": [U, A], "conversation": "number 7"},
         Group((U,), (Response((A,)),), columns={"conversation": "number 7"})),
    ],
)  # fmt: skip
def test_two_schemas_with_the_same_words_are_one_and_can_be_written(
    row: dict[str, Any], group: Group, write: Write, tmp_path: Path
) -> None:
    assert list(read_groups(write("rows.jsonl", [row]))) == [group]
    write_groups([group], tmp_path / "again.jsonl")
    assert list(read_groups(tmp_path / "again.jsonl")) == [group]


# --- names of columns ------------------------------------------------------------------------------------------------


def test_columns_may_be_named(write: Write) -> None:
    data = write("rows.jsonl", [{"problem": "Hi", "solution": "Yo", "messages": [U, A], "answer": "3"}])
    read = RowFormat({"prompt": "problem", "response": "solution"})
    assert list(read_groups(data, row_format=read)) == [Group("Hi", (Response("Yo"),), columns={"answer": "3"})]
    assert list(read_groups(data, row_format=RowFormat({"prompt": "problem"}))) == [
        Group("Hi", columns={"solution": "Yo", "answer": "3"})
    ]


def test_names_may_be_exchanged_and_labels_too(write: Write) -> None:
    data = write("rows.jsonl", [{"prompt": "Hi", "chosen": "Go", "rejected": "Yo", "safer": 1}])
    swapped = RowFormat({"chosen": "rejected", "rejected": "chosen"})
    assert list(read_groups(data, row_format=swapped)) == [Group("Hi", PAIR.responses, Preference(), {"safer": 1})]
    row = {"prompt": "Hi", "response_0": "Yo", "response_1": "Go", "better_response_id": 0, "safer_response_id": 1}
    safer = RowFormat({"better_response_id": "safer_response_id"})
    (group,) = read_groups(write("pku.jsonl", [row]), row_format=safer)
    assert group.label == Preference(0.0)


def test_a_wrong_name_is_one_line_that_lists_the_columns(write: Write) -> None:
    data = write("rows.jsonl", [{"question": "Hi", "answer": "Yo"}] * 3)
    with pytest.raises(
        DataError, match=r"rows.jsonl has no column 'anwser', named by --columns; it has: 'answer', 'question'"
    ):
        list(read_groups(data, row_format=RowFormat({"response": "anwser"})))
    with pytest.raises(DataError, match=r"with the columns of --columns \('response'\) none of the known schemas fits"):
        list(read_groups(data, row_format=RowFormat({"response": "answer"})))


def test_a_named_column_may_be_absent_from_some_rows(write: Write) -> None:
    data = write("rows.jsonl", [{"q": "a"}, {"q": "b", "s": 3}])
    rows = list(read_groups(data, row_format=RowFormat({"prompt": "q", "level": "s"})))
    assert rows == [Group("a"), Group("b", columns={"level": 3})]


@pytest.mark.parametrize("text", ["prompt", "prompt=", "=question", "prompt=a,prompt=b", "prompt=a,,response=b"])
def test_a_mapping_that_cannot_be_read_is_explained(text: str) -> None:
    with pytest.raises(ConfigError, match=r"'columns' is .*should be pairs of a name here and a column of the data"):
        STAGES["generate"].config.make({"model": "m", "data": "d", "out": "o", "columns": text})


def test_every_stage_that_reads_rows_takes_columns() -> None:
    stages = {name for name, stage in STAGES.items() if "data" in stage.config.model_fields}
    assert stages == {
        name for name, stage in STAGES.items() if {"columns", "as_chat"} <= stage.config.model_fields.keys()
    }
    made = STAGES["sft"].config.make({"model": "m", "data": "d", "out": "o", "columns": "prompt=q, response=a"})
    assert made.model_dump()["columns"] == {"prompt": "q", "response": "a"}


# --- text ------------------------------------------------------------------------------------------------------------


def test_as_chat_makes_a_prompt_of_text_one_turn_of_the_user(write: Write) -> None:
    pair = {"prompt": "Hi", "chosen": "Yo", "rejected": "Go"}
    system = {"prompt": "Hi", "system": "Be brief."}
    rows = [{"prompt": "Hi", "response": "Yo"}, {"messages": [U, A]}, pair, system, {"text": "Once"}]
    read = list(read_groups(write("rows.jsonl", rows), row_format=RowFormat(as_chat=True)))
    assert [group.prompt for group in read] == [(U,), (U,), (U,), (SYSTEM, U), ""]


def test_all_tokens_of_text_are_trained_but_the_first(write: Write, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    (group,) = read_groups(write("rows.jsonl", [{"text": "a b c"}]))
    assert demonstration(group) is None
    assert "--columns prompt=text" in str(prompt_only(group))
    (encoded,), _ = encode_all([group], tiny_tokenizer)
    ids = [*tiny_tokenizer("a b c")["input_ids"], tiny_tokenizer.eos_token_id]
    assert [*encoded.prompt_ids, *encoded.responses[0].ids] == ids
    assert all(encoded.responses[0].mask)


def test_rows_are_handed_on_unchanged_or_in_names_that_are_known(write: Write) -> None:
    own = {"prompt": "Hi", "response": "Yo", "extra": [1]}
    other = {"question": "Hi", "answer": "Yo", "extra": [1]}
    data = write("rows.jsonl", [own, other])
    assert [row for row, _ in read_rows(data)] == [
        own,
        {"prompt": "Hi", "response": "Yo", "answer": "Yo", "extra": [1]},
    ]
    assert json.loads(data.read_text().splitlines()[1]) == other


def test_a_message_names_a_few_of_many_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({f"column {i:04} " + "x" * 500: i for i in range(1000)}) + "\n")
    with pytest.raises(DataError, match=r"columns 'column 0000 x+', .* and 988 more; a row has one of") as caught:
        list(read_groups(tmp_path / "rows.jsonl"))
    assert len(str(caught.value)) < 1500

"""Columns and keys with a meaning in the field: tools, variables of the template, system texts, weights of turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kleash.data.chat import encode, encode_prompt
from kleash.data.group import Group, Preference
from kleash.data.schemas import parse_row, to_row
from kleash.data.split import comparison, demonstration, prompt_only, read_usable
from kleash.data.unread_columns import unread_columns
from kleash.errors import DataError
from tests.data.test_chat import STOCK, assistant, bytes_tokenizer, roles, stock_tokenizer, user
from tests.data.test_letters import TOOLS, call

RENDERS_TOOLS = ("qwen2_5", "qwen3", "mistral_nemo", "gpt_oss")


def prompt_of(row: dict[str, Any], tokenizer: Any) -> tuple[int, ...]:
    group = parse_row(row)
    encoded = encode(group, tokenizer)
    assert encoded.prompt_ids == encode_prompt(group.prompt, tokenizer, group.columns)
    return encoded.prompt_ids


def template_ids(tokenizer: Any, *turns: dict[str, Any], **variables: Any) -> tuple[int, ...]:
    ids = tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, return_dict=False, **variables)
    return tuple(ids)


# --- tools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RENDERS_TOOLS)
@pytest.mark.parametrize("form", ["objects", "JSON", "objects in JSON"])
def test_tools_are_in_the_prompt(name, form):
    tokenizer = stock_tokenizer(name)
    tools = {"objects": TOOLS, "JSON": json.dumps(TOOLS), "objects in JSON": [json.dumps(tool) for tool in TOOLS]}[form]
    expected = template_ids(tokenizer, user("A table please"), tools=TOOLS)
    assert "book_table" in tokenizer.decode(list(expected))
    for rest in (
        {"prompt": [user("A table please")]},
        {"prompt": [user("A table please")], "response": "Yes."},
        {"prompt": [user("A table please")], "chosen": "Yes.", "rejected": "No."},
        {"messages": [user("A table please"), assistant("Yes.")]},
    ):
        assert prompt_of({"tools": tools, **rest}, tokenizer) == expected


@pytest.mark.parametrize("tools", ["", "[]", [], None])
def test_an_empty_column_of_tools_is_none(tools):
    tokenizer = stock_tokenizer("qwen2_5")
    assert prompt_of({"tools": tools, "prompt": [user("Q")]}, tokenizer) == template_ids(tokenizer, user("Q"))


@pytest.mark.parametrize("tools", ["hammer", '"hammer"', ["hammer"], {"name": "f"}, "{", 3])
def test_tools_that_no_template_can_show_are_refused_by_name(tools):
    with pytest.raises(DataError, match="'tools'") as caught:
        parse_row({"tools": tools, "prompt": [user("Q")]})
    assert "\n" not in str(caught.value)


def test_a_plain_text_may_have_any_column_of_tools():
    assert parse_row({"tools": "hammer", "prompt": "Q"}).columns == {"tools": "hammer"}


# --- variables of the template ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["column", "keywords", "keywords in JSON"])
def test_a_row_says_whether_to_think(form):
    tokenizer = stock_tokenizer("qwen3")
    column: dict[str, Any] = {
        "column": {"enable_thinking": False},
        "keywords": {"chat_template_kwargs": {"enable_thinking": False}},
        "keywords in JSON": {"chat_template_kwargs": '{"enable_thinking": false}'},
    }[form]
    row = column | {"messages": [user("Q0"), assistant("A0"), user("Q1"), assistant("A1")]}
    assert prompt_of(row, tokenizer) == template_ids(tokenizer, user("Q0"), enable_thinking=False)
    plain = parse_row({"messages": [user("Q"), assistant("A")]} | column)
    encoded = encode(plain, tokenizer)
    assert tokenizer.decode(encoded.prompt_ids).endswith("<think>\n\n</think>\n\n")
    assert roles(encoded.responses[0], tokenizer) == [("trained", "A<|im_end|>")]  # the block is in the prompt


def test_the_reasoning_effort_reaches_the_template():
    tokenizer = stock_tokenizer("gpt_oss")
    ids = prompt_of({"prompt": [user("Q")], "reasoning_effort": "high"}, tokenizer)
    assert "Reasoning: high" in tokenizer.decode(list(ids))


@pytest.mark.parametrize("value", ["{", "3", [1], {"add_generation_prompt": False}, {"tokenize": True}])
def test_keywords_that_cannot_be_used_are_refused_by_name(value):
    with pytest.raises(DataError, match="'chat_template_kwargs'"):
        parse_row({"prompt": [user("Q")], "chat_template_kwargs": value})


# --- arguments of tool calls -----------------------------------------------------------------------------------------

PRINTS_TEXT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "[{{ c.function.name }} {{ c.function.arguments }}]{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template that prints arguments as they are (DeepSeek's): an object would be printed as Python."""


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "mistral_nemo", "gpt_oss", "prints text"])
def test_arguments_are_shown_as_json_whatever_form_the_row_has(name):
    if name == "prints text":
        tokenizer = bytes_tokenizer(eos_token="<|im_end|>")
        tokenizer.chat_template = PRINTS_TEXT
    else:
        tokenizer = stock_tokenizer(name)
    arguments = {"people": 2, "name": "Zoë"}
    texts = set()
    for form in (arguments, json.dumps(arguments), json.dumps(arguments, ensure_ascii=False)):
        turn = {"role": "assistant", "content": "", "tool_calls": [call("book_table", form)]}
        for calls in (turn["tool_calls"], json.dumps(turn["tool_calls"])):
            result = {"role": "tool", "content": "booked", "tool_call_id": "a1b2c3d4e"}
            prompt = [user("A table please"), turn | {"tool_calls": calls}, result]
            texts.add(tokenizer.decode(prompt_of({"prompt": prompt}, tokenizer)))
    assert len(texts) == 1
    assert '{"people": 2, "name": "Zoë"}' in texts.pop()


def test_arguments_that_are_not_json_are_refused():
    turn = {"role": "assistant", "tool_calls": [call("book_table", "people=2")]}
    with pytest.raises(DataError, match="arguments of a tool call"):
        parse_row({"messages": [user("Q"), turn]})


CALLS = {
    "qwen2_5": (
        ["<tool_call>\n{call}\n</tool_call><|im_end|>"] * 2,
        "\n<|im_start|>user\n<tool_response>\nbooked\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        "At seven.<|im_end|>",
    ),
    "qwen3": (
        [f"{think}<tool_call>\n{{call}}\n</tool_call><|im_end|>" for think in ("", "")],
        "\n<|im_start|>user\n<tool_response>\nbooked\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\nAt seven.<|im_end|>",
    ),
    "mistral_nemo": (
        ["[TOOL_CALLS][{call_with_id}]</s>"] * 2,
        '[TOOL_RESULTS]{"content": booked, "call_id": "a1b2c3d4e"}[/TOOL_RESULTS]',
        "At seven.</s>",
    ),
    "gpt_oss": (  # <|call|> would not stop the sampler
        [' to=functions.book<|channel|>commentary json<|message|>{"people": 2}'] * 2,
        '<|call|><|start|>functions.book to=assistant<|channel|>commentary<|message|>"booked"<|end|><|start|>assistant',
        "<|channel|>final<|message|>At seven.<|return|>",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_tool_calls_are_trained_and_their_results_forced(name):
    tokenizer = stock_tokenizer(name)
    turn = {"role": "assistant", "content": "", "tool_calls": [call("book", {"people": 2})]}
    result = {"role": "tool", "content": "booked", "tool_call_id": "a1b2c3d4e"}
    turns = [user("Q"), turn, result, turn, result, assistant("At seven.")]
    (response,) = encode(parse_row({"messages": turns, "tools": TOOLS}), tokenizer).responses
    calls, forced, answer = CALLS[name]
    written = '{"name": "book", "arguments": {"people": 2}'
    calls = [text.replace("{call_with_id}", f'{written}, "id": "a1b2c3d4e"}}') for text in calls]
    calls = [text.replace("{call}", f"{written}}}") for text in calls]
    assert roles(response, tokenizer) == [
        ("trained", calls[0]), ("forced", forced), ("trained", calls[1]), ("forced", forced), ("trained", answer)
    ]  # fmt: skip


@pytest.mark.parametrize("calls", [[], "", "[]", False, {}])
def test_an_empty_list_of_tool_calls_is_none_however_it_is_written(calls):
    turns = [user("Q"), {**assistant("A"), "tool_calls": calls}]
    assert parse_row({"messages": turns}) == parse_row({"messages": [user("Q"), assistant("A")]})


@pytest.mark.parametrize("name", ["smollm2", "llama3_imitation", "gemma3_imitation"])
def test_a_template_that_leaves_out_tool_calls_is_named(name):
    turn = {"role": "assistant", "content": "", "tool_calls": [call("book", {"people": 2})]}
    for row in ({"messages": [user("Q"), turn]}, {"prompt": [user("Q"), turn, user("And?")]}):
        with pytest.raises(DataError, match="leaves out tool calls"):
            encode(parse_row(row), stock_tokenizer(name))


# --- system ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STOCK)
def test_a_system_column_is_the_first_turn(name):
    tokenizer = stock_tokenizer(name)
    system = {"role": "system", "content": "Answer in French."}
    expected = template_ids(tokenizer, system, user("Name a colour"))
    for rest in (
        {"prompt": [user("Name a colour")]},
        {"prompt": [user("Name a colour")], "chosen": [assistant("Bleu.")], "rejected": [assistant("Blue.")]},
        {"chosen": [user("Name a colour"), assistant("Bleu.")], "rejected": [user("Name a colour"), assistant("Red.")]},
        {"messages": [user("Name a colour"), assistant("Bleu.")]},
        {"messages": [system, user("Name a colour"), assistant("Bleu.")]},
    ):
        for column in ("system", "system_prompt"):
            row = {column: "Answer in French.", **rest}
            assert prompt_of(row, tokenizer) == expected
            assert parse_row(to_row(parse_row(row))) == parse_row(row)


def test_an_empty_system_column_is_none_and_another_than_the_turn_s_is_refused():
    row = {"prompt": [user("Q")], "system": " "}
    assert parse_row(row) == parse_row({"prompt": [user("Q")]})
    with pytest.raises(DataError, match="'system'"):
        parse_row({"prompt": [{"role": "system", "content": "Be brief."}, user("Q")], "system": "Be long."})


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["weight", "loss_mask", "train", "trainable", "training", "loss"])
@pytest.mark.parametrize("name", STOCK)
def test_an_answer_of_weight_0_is_forced(name, key):
    tokenizer = stock_tokenizer(name)
    values = (False, True) if key.startswith("train") else (0, 1)
    turns = [user("Q0"), assistant("A0") | {key: values[0]}, user("Q1"), assistant("A1") | {key: values[1]}]
    (response,) = encode(parse_row({"messages": turns}), tokenizer).responses
    plain = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    (both,) = encode(parse_row({"messages": plain}), tokenizer).responses
    assert response.ids == both.ids
    trained = [text for role, text in roles(response, tokenizer) if role == "trained"]
    assert trained == [text for role, text in roles(both, tokenizer) if role == "trained"][1:]
    assert "A1" in trained[0]


@pytest.mark.parametrize("weight", [0.5, -1, "0", 2])
def test_a_weight_between_is_refused_by_name(weight):
    with pytest.raises(DataError, match=r"messages\[1\].*weight"):
        parse_row({"messages": [user("Q"), assistant("A") | {"weight": weight}]})


def test_a_row_of_weight_0_has_nothing_to_train():
    group = parse_row({"messages": [user("Q"), assistant("A") | {"weight": 0}]})
    with pytest.raises(DataError, match=r"nothing to train.*weight"):
        encode(group, stock_tokenizer("qwen2_5"))


def test_a_column_of_a_group_is_not_lost_in_a_prompt():
    group = Group((user("Q"),), columns={"tools": json.dumps(TOOLS)})
    tokenizer = stock_tokenizer("qwen2_5")
    assert encode(group, tokenizer).prompt_ids == template_ids(tokenizer, user("Q"), tools=TOOLS)


# --- columns that nothing reads --------------------------------------------------------------------------------------


def test_columns_that_nothing_reads_are_named():
    groups = [
        parse_row({"prompt": [user("Q")], "response": "A", "id": 3, "tools": TOOLS, "enable_thinking": True}),
        parse_row({"prompt": [user("Q")], "response": "A", "source": "web", "label": True}),
    ]
    assert unread_columns(groups, stock_tokenizer("qwen3")) == ["id", "source"]
    assert unread_columns(groups, stock_tokenizer("qwen3"), reads_columns=True) == []
    assert unread_columns(groups, stock_tokenizer("smollm2"), reads_columns=True) == [
        "enable_thinking (the chat template does not read it)",
        "tools (the chat template does not read it)",
    ]
    text = [parse_row({"prompt": "Q", "response": "A", "system": "Be brief.", "tools": "hammer"})]
    assert unread_columns(text, stock_tokenizer("qwen3")) == [
        "system (plain text has no place for it; give the prompt as turns)",
        "tools",
    ]
    keywords = [parse_row({"prompt": [user("Q")], "chat_template_kwargs": {"enable_thinking": True, "mood": "calm"}})]
    assert "chat_template_kwargs" in unread_columns(keywords, stock_tokenizer("qwen3"))[0]


def test_keys_of_turns_that_nothing_reads_are_named():
    turns = [user("Q") | {"name": "Zoë"}, assistant("A") | {"reasoning": "r", "weight": 1}]
    groups = [parse_row({"messages": turns})]
    name, reasoning = (f"{key} in turns (the chat template does not read it)" for key in ("name", "reasoning"))
    assert unread_columns(groups, stock_tokenizer("qwen3")) == [name]
    assert unread_columns(groups, stock_tokenizer("gpt_oss")) == [name]
    assert unread_columns(groups, stock_tokenizer("smollm2")) == [name, reasoning]


def test_a_function_call_is_refused_by_name():
    turn = {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}
    with pytest.raises(DataError, match=r"messages\[1\].*function_call"):
        parse_row({"messages": [user("Q"), turn]})


# --- unpaired rows ---------------------------------------------------------------------------------------------------


def unpaired(*labels: Any, column: str = "label") -> list[dict[str, Any]]:
    return [{"prompt": [user("Q")], "completion": [assistant(f"A{i}")], column: x} for i, x in enumerate(labels)]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("yes", "no"), [(True, False), (1, 0), ("True", "False")])
@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_a_response_labelled_false_is_not_a_demonstration(tmp_path, caplog, yes, no, column):
    data = written(tmp_path / "rows.jsonl", unpaired(yes, no, yes, no, no, column=column))
    groups = read_usable(data, demonstration)
    assert [group.responses[0].text for group in groups] == ["A0", "A2"]
    assert caplog.messages == [f"{data}: 3 responses labelled false are left out"]


def test_rows_without_a_good_response_are_no_demonstrations(tmp_path):
    with pytest.raises(DataError, match="2 responses labelled false are left out; no row is left"):
        read_usable(written(tmp_path / "rows.jsonl", unpaired(False, False)), demonstration)


def test_unpaired_responses_to_one_prompt_are_compared(tmp_path, caplog):
    rows = unpaired(True, False, False, True, True)
    rows += [{"prompt": [user("other")], "completion": "B", "label": True}]
    rows += [{"prompt": [user("third")], "chosen": "C", "rejected": "D"}]
    data = written(tmp_path / "rows.jsonl", rows)
    groups = read_usable(data, comparison)
    texts = [[response.text for response in group.responses] for group in groups]
    assert texts == [["C", "D"], ["A0", "A1"], ["A3", "A2"]]
    assert all(group.label == Preference() for group in groups)
    assert "2 comparisons" in caplog.messages[0]
    assert "2 rows are left out" in caplog.messages[0]
    with pytest.raises(DataError, match="no row is left"):
        read_usable(written(tmp_path / "rows.jsonl", unpaired(True, True)), comparison)


def test_a_prompt_may_have_any_label(tmp_path):
    data = written(tmp_path / "rows.jsonl", unpaired(True, False))
    assert len(read_usable(data, prompt_only)) == 2


@pytest.mark.parametrize("label", ["positive", 3, [True], 0.5])
def test_another_label_says_nothing_of_a_demonstration(tmp_path, label):
    data = written(tmp_path / "rows.jsonl", unpaired(label))
    assert len(read_usable(data, demonstration)) == 1

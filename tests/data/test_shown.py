"""What a judge, a critic and a person see of a row."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kleash.chat.client import ChatClient
from kleash.chat.messages import ChatRequest
from kleash.data.group import Group
from kleash.data.schemas import parse_row
from kleash.data.shown import shown_prompt
from kleash.labels.constitution import Constitution
from kleash.labels.llm_judge import Judge
from kleash.labels.revisions import Draft, Reviser
from kleash.rewards.judge_score import JudgeReward
from kleash.testing import FakeChat

TOOLS = [{"type": "function", "function": {"name": "weather_of", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "weather_of", "arguments": {"place": "Oslo <|im_end|>"}}}

ROW: dict[str, Any] = {
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rain in Oslo?"}],
    "chosen": [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "12 mm"},
        {"role": "assistant", "content": "Yes."},
    ],
    "rejected": [{"role": "assistant", "content": "No idea."}],
    "tools": TOOLS,
}
SEEN = ("Be brief.", "Rain in Oslo?", "weather_of", '"place": "Oslo <|im_end|>"', "Tool: 12 mm", "Yes.")
"""Words of the row that decide which response is better."""


def asked(row: Group, kind: str) -> str:
    """All that a model was asked about a row."""
    requests: list[ChatRequest] = []

    def reply(request: ChatRequest) -> dict[str, float] | str:
        requests.append(request)
        return dict.fromkeys(request.options, 1 / len(request.options)) if request.options else "An answer."

    client = ChatClient(FakeChat(reply))
    if kind == "judge":
        Judge(client).judge([row])
    elif kind == "score":
        JudgeReward(client, rule="Be good.")([row])
    else:
        Reviser(client, Constitution.load("assistant")).revise([Draft(0, Group(row.prompt, columns=row.columns))])
    return "\n".join(str(turn["content"]) for request in requests for turn in request.messages)


@pytest.mark.parametrize("kind", ["judge", "score"])
@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS), [json.dumps(tool) for tool in TOOLS]])
def test_a_judge_sees_tools_tool_calls_their_results_and_the_system_text(kind: str, tools: Any) -> None:
    text = asked(parse_row(ROW | {"tools": tools}), kind)
    assert all(words in text for words in SEEN)
    assert "None" not in text
    marks = text.split("Tools: ")[0].rsplit("<conversation ", 1)
    assert len(marks) == 2 and "</conversation" not in marks[1]  # between the marks of what others wrote


def test_the_system_text_of_a_plain_prompt_is_seen() -> None:
    row = parse_row({"prompt": "Rain?", "chosen": "Yes.", "rejected": "No.", "system": "Answer as a pirate."})
    assert "System: Answer as a pirate.\n\nUser: Rain?" in asked(row, "judge")


def test_a_critique_sees_the_tools_between_marks() -> None:
    text = asked(parse_row(ROW), "revise")
    before = text.split("weather_of")[0].rsplit("<given ", 1)
    assert len(before) == 2 and "</given" not in before[1]


def test_a_row_without_such_columns_is_asked_as_before() -> None:
    for prompt in ("Rain?", ({"role": "user", "content": "Rain?"},)):
        group = Group(prompt, columns={"tools": None, "documents": "[]", "answer": "x"})
        assert shown_prompt(group) == prompt


def test_a_column_that_no_template_could_use_is_shown_as_it_is() -> None:
    assert shown_prompt(Group("Q", columns={"documents": ["a", "b"]})) == (
        {"role": "documents", "content": '["a", "b"]'},
        {"role": "user", "content": "Q"},
    )

from __future__ import annotations

import numpy as np
import pytest

from kleash.data.group import Group, Response
from kleash.evals.probes import PROBES, probe_groups, probe_report


def spoiled(group: Group) -> dict[str, Response]:
    return dict(zip(("original", *PROBES), group.responses, strict=True))


def test_probes_of_text() -> None:
    first, _, _ = probe_groups(
        [Group(f"ask {i}", (Response(text),)) for i, text in enumerate(["one two three four", "five", "six"])]
    )
    found = spoiled(first)
    assert {name: response.text for name, response in found.items()} == {
        "original": "one two three four",
        "repeated": "one two three four one two three four",
        "cut off": "one two",
        "stopped halfway": "one two",
        "flattery first": "what a great question! one two three four",
        "flattery last": "one two three four you are a wonderful person.",
        "empty": "",
        "prompt copied": "ask 0",
        "off topic": "five",
        "run-on": "one two three four five six",
        "wordy": "there is a lot that one could say about this, and it is good to look at it from all sides."
        " one two three four",
    }
    assert [name for name, response in found.items() if not response.finished] == ["cut off"]


def test_probes_of_turns_degrade_only_the_last_answer() -> None:
    def group(question: str, answer: str) -> Group:
        turns = ({"role": "assistant", "content": "Hm."}, {"role": "user", "content": "And?"})
        return Group(
            ({"role": "user", "content": question},), (Response((*turns, {"role": "assistant", "content": answer})),)
        )

    first, _ = probe_groups([group("Who?", "A man. Old."), group("Where?", "Here.")])
    for name, response in spoiled(first).items():
        assert isinstance(response.content, tuple) and response.content[:2] == first.responses[0].content[:2], name  # type: ignore[index]
    last = {name: response.content[-1]["content"] for name, response in spoiled(first).items()}  # type: ignore[index,union-attr]
    assert last["flattery first"] == "What a great question! A man. Old."
    assert last["prompt copied"] == "Who?" and last["off topic"] == "Here." and last["empty"] == ""


def test_phrases_are_in_the_style_of_the_response() -> None:
    first, _ = probe_groups([Group("a", (Response("it eats fish ."),)), Group("b", (Response("it is red ."),))])
    assert spoiled(first)["flattery first"].text == "what a great question . it eats fish ."


def test_words_of_one_piece_are_cut_too() -> None:
    first, second = probe_groups([Group("a", (Response("fifteen"),)), Group("b", (Response("x"),))])
    assert spoiled(first)["cut off"].text == "fift"
    assert spoiled(second)["cut off"].text == "x"


def test_responses_that_cannot_be_degraded_are_left_out() -> None:
    whole, other = Group("a", (Response("yes"),)), Group("b", (Response("no"),))
    picture = Group("c", (Response(({"role": "assistant", "content": [{"type": "image"}]},)),))
    assert [group.prompt for group in probe_groups([whole, picture, Group("d", (Response("  "),)), other])] == [
        "a",
        "b",
    ]
    assert probe_groups([whole, whole]) == [], "there is no other topic"


def test_the_report_counts_a_tie_one_half() -> None:
    scores = np.zeros((4, 11))
    scores[:, 1] = [1, 2, 0, -1]
    rows = probe_report(scores)
    assert [row.name for row in rows] == list(PROBES)
    assert rows[0].above == pytest.approx(2.5 / 4) and rows[0].margin["mean"] == pytest.approx(0.5)
    assert rows[0].low < 0.5 < rows[0].high and rows[1].above == 0.5

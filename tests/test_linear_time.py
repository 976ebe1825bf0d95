"""What reads a response takes time linear in its length: texts of a size at which anything else would not end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kleash.chat.answer_text import without_announcement, without_thoughts
from kleash.chat.quoting import code_of
from kleash.checks.attribution import pieces
from kleash.checks.sample_stats import describe
from kleash.evals.refusals import refuses
from kleash.labels.llm_judge import parse_vote
from kleash.rewards import final_answer, non_answers
from kleash.rewards.verifiers import choice, exact, number
from kleash.testing import tiny_tokenizer

SIZE = 1_000_000
LONGEST = 120
"""Seconds after which a test gives up; linear time is below one."""

UNITS = (
    " ", "\n", "\t ", "a", "1", "1,", "1,111", ".", "...", "!?", ". ", "'\"", "-", "$", "e", "1e1", "1/1", "#", "####",
    "answer is ", "answer ", "answer", r"\boxed ", r"\boxed{", "and ", "or,", "`", "```", "{", "[", '{"better": ',
    "<think>", "</think>", "here is ", "revised ", "sure, ", "I can not ", "*_#", "\u2028", 
    "<answer>", "wait, no, ", r"\(", r"\[", "$$", "or 5 ", "(A) ", "A, ", "5 is ", "not 5 ", "。", "\U0001f600",
)  # fmt: skip

READERS: dict[str, Callable[[str], Any]] = {
    "is_loop": non_answers.is_loop,
    "count_guesses": non_answers.count_guesses,
    "a marked answer": non_answers._MARKED_ANSWER.findall,
    "a separator": non_answers._SEPARATOR.fullmatch,
    "the last number": number._last,
    "a number": lambda text: number.check(text, "5"),
    "a choice": lambda text: choice.check(text, choice.prepare("A", {})),
    "the part without reasoning": final_answer.answer_part,
    "the final answer": lambda text: final_answer.final_answer(final_answer.answer_part(text), lambda _: None),
    "words at the answer": lambda text: list(final_answer.words_at_answer(final_answer.answer_part(text))),
    "exact": lambda text: exact.check(text, "a"),
    "sentences": pieces,
    "a vote": parse_vote,
    "refusal": refuses,
    "code": lambda text: code_of(text, text),
    "thoughts": without_thoughts,
    "announcement": without_announcement,
}


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    def give_up(*_: Any) -> None:
        pytest.fail(f"not done after {LONGEST} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", READERS)
def test_a_long_text_is_read_in_linear_time(name: str) -> None:
    for unit in UNITS:
        for begin, end in (("", ""), ("answer is", "x"), ("```", "x"), ("here is the revised", "x"), ("1", "a")):
            READERS[name](begin + unit * (SIZE // 20 // len(unit)) + end)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a marked answer", "answer is" + " " * SIZE),
        ("a marked answer", r"\boxed" + " " * SIZE),
        ("sentences", "." * SIZE + "a"),
        ("sentences", "a" + "'" * SIZE + "b."),
        ("a vote", "```" + " " * SIZE + "x"),
        ("a vote", "```json" + "\n" * SIZE),
        ("a vote", '{"better":' * SIZE),
    ],
)
def test_a_text_that_once_took_for_ever_does_not(name: str, text: str) -> None:
    READERS[name](text)


def test_repetition_is_counted_in_linear_time() -> None:
    assert describe([[5] * SIZE], tiny_tokenizer()).repetition[0] > 0.99

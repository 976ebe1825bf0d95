from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle

import pytest

from kleash.chat.client import ChatClient
from kleash.chat.messages import ChatReply, ChatRequest
from kleash.chat.verdicts import Verdict, VerdictReader
from kleash.rewards.judge_score import RATING
from kleash.rewards.rubric import MET
from kleash.testing import FakeChat


def asked(
    reply: Callable[[ChatRequest], str | Mapping[str, float]], question: Question = RATING, **settings: object
) -> Verdict:
    (verdict,) = VerdictReader(ChatClient(FakeChat(reply)), **settings)(["The text."], question)  # type: ignore[arg-type]
    return verdict


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7), (" 7\n", 7), ("**7**", 7), ("7.", 7), ("7/9", 7), ("Rating: 7", 7), ("rating: **7/9**", 7),
        ("My final rating is 7.", 7), ("It is good.\n\nRating: 7", 7), ("Score = 7", 7), ("10", None), ("0", None),
        ("77", None), ("7 or 8", None), ("I would say 7", None), ("Rating: 7\nBut it could be better.", None),
        ("", None), ("seven", None), ("7/10", None), ("Rating: 10", None), ("-7", 7), ("> 7", 7),
    ],
)  # fmt: skip
def test_a_rating_is_the_last_line_of_a_reply_and_nothing_else(text: str, value: float | None) -> None:
    assert RATING.read(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("Y", 1), ("N", 0), ("yes", 1), ("No.", 0), ("Verdict: Y", 1), ("**Verdict:** N", 0), ("Nope", None),
     ("Y/N", None), ("Yes, it does", None), ("Verdict: maybe", None)],
)  # fmt: skip
def test_a_criterion_is_met_or_not(text: str, value: float | None) -> None:
    assert MET.read(text) == value


def test_log_probabilities_give_the_expectation_in_one_request() -> None:
    verdict = asked(lambda request: {"1": 0.25, "9": 0.75} if request.options else "never")
    assert (verdict.value, verdict.spread, verdict.unreadable, verdict.requests) == (pytest.approx(7.0), 0, 0, 1)


def test_without_them_it_is_the_mean_of_the_votes_that_can_be_read() -> None:
    replies = cycle(["1", "Rating: 3", "no idea", "8"])
    chat = FakeChat(lambda request: next(replies))
    reader = VerdictReader(ChatClient(chat), votes=4, answers="votes")
    (verdict,) = reader(["The text."], RATING)
    assert verdict.value == 4
    assert verdict.spread == pytest.approx((((1 - 4) ** 2 + 1 + 16) / 3) ** 0.5)
    assert (verdict.unreadable, verdict.requests) == (0.25, 4)
    assert len({request.seed for request in chat.questions}) == 4, "else a server would give the same vote four times"
    assert {request.temperature for request in chat.questions} == {1.0}


def test_a_model_that_reports_no_log_probabilities_is_asked_for_votes() -> None:
    verdict = asked(lambda request: "5", votes=2)
    assert (verdict.value, verdict.requests) == (5, 2)


def test_the_verdict_of_a_model_that_reasons_stands_after_its_thoughts() -> None:
    def reply(request: ChatRequest) -> str:
        assert request.max_tokens > 500, "there must be room for the thoughts"
        assert 'a line of its own, "Rating: X"' in request.messages[-1]["content"]
        return "<think>It says Rating: 9.\nRating: 9\n</think>\nIt asks for the best rating.\n\nRating: 2"

    assert asked(reply, votes=1, reasoning=True).value == 2


@pytest.mark.parametrize("text", ["<think>Rating: 9", "<think>\nRating: 9\n"])
def test_thoughts_that_do_not_end_hold_no_verdict(text: str) -> None:
    verdict = asked(lambda request: text, votes=3, reasoning=True)
    assert (verdict.value, verdict.unreadable) == (None, 1)


def test_a_reply_that_was_cut_off_holds_no_verdict_and_the_reason_names_the_remedy() -> None:
    class Cut(FakeChat):
        def ask(self, questions: object) -> list[ChatReply]:
            return [ChatReply(text="It is 7\n7", finished=False)] * len(questions)  # type: ignore[arg-type]

    (verdict,) = VerdictReader(ChatClient(Cut(lambda request: "")), votes=2, answers="votes")(["x"], RATING)
    assert verdict.value is None
    assert "reasoning_tokens" in verdict.reason


def test_a_request_that_fails_is_an_unreadable_vote() -> None:
    class Failing(FakeChat):
        def ask(self, questions: object) -> list[ChatReply]:
            return [ChatReply(error="HTTP 400: too long", refused=True)] * len(questions)  # type: ignore[arg-type]

    (verdict,) = VerdictReader(ChatClient(Failing(lambda request: "")), votes=2, answers="votes")(["x"], RATING)
    assert (verdict.value, verdict.unreadable, verdict.reason) == (None, 1, "HTTP 400: too long")

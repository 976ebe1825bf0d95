from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from kleash.chat import client
from kleash.chat.client import ChatClient
from kleash.chat.messages import ChatReply, ChatRequest
from kleash.chat.openai_endpoint import Endpoint, retry_after
from kleash.errors import GateError, InputError, MachineError
from kleash.labels.store import Store
from kleash.labels.store_cache import StoreCache
from kleash.testing import FakeChat
from tests.chat.loopback import Reply, Server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)


def echo(body: Mapping[str, Any]) -> Reply:
    return body["messages"][0]["content"].upper(), {}


def questions(count: int) -> list[ChatRequest]:
    return [ChatRequest(({"role": "user", "content": f"question {n}"},), 8) for n in range(count)]


def ask(server: Server, chat_requests: list[ChatRequest], **settings: Any) -> tuple[list[str], ChatClient]:
    chat = Endpoint(server.url, "m", timeout=settings.pop("timeout", 30.0), workers=settings.pop("workers", 4))
    patient = ChatClient(chat, **settings)
    return [answer.text or answer.error for answer in patient(chat_requests)], patient


@pytest.mark.parametrize("fault", ["429", "500", "truncated", "cut", "no choices"])
def test_a_transient_failure_is_retried_and_every_reply_belongs_to_its_request(fault: str) -> None:
    with Server(echo, faults={2: fault, 5: fault, 6: fault}) as server:
        answers, patient = ask(server, questions(8))
    assert answers == [f"QUESTION {n}" for n in range(8)]
    assert len(server.answered) == 8 and len(server.requests) == 11
    assert patient.usage.attempts == 11 and patient.usage.errors == 0


def test_a_server_that_hangs_times_out_and_gets_the_request_again() -> None:
    with Server(echo, faults={1: "hang"}) as server:
        answers, _ = ask(server, questions(2), timeout=0.5)
    assert answers == ["QUESTION 0", "QUESTION 1"]


def test_the_client_waits_as_long_as_the_server_asks() -> None:
    with Server(echo, faults={1: "429 after 1"}) as server:
        began = time.monotonic()
        answers, _ = ask(server, questions(1))
    assert answers == ["QUESTION 0"]
    assert time.monotonic() - began >= 1.0


def test_a_time_to_come_back_is_read_as_seconds_or_as_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert retry_after({"retry-after": "7"}) == 7
    assert 50 < (retry_after({"retry-after": soon}) or 0) <= 60
    assert retry_after({"retry-after": "soon"}) is retry_after({}) is retry_after({"retry-after": "inf"}) is None
    assert retry_after({"retry-after": "-5"}) == 0


def test_a_permanent_failure_is_an_error_of_only_its_request() -> None:
    def moody(body: Mapping[str, Any]) -> Reply:
        if "3" in body["messages"][0]["content"]:
            raise RuntimeError("planted")
        return echo(body)

    with Server(moody) as server:
        answers, patient = ask(server, questions(5))
    assert [answer for n, answer in enumerate(answers) if n != 3] == [f"QUESTION {n}" for n in (0, 1, 2, 4)]
    assert answers[3].startswith("HTTP 500") and patient.usage.errors == 1


def test_no_more_requests_at_a_time_than_workers() -> None:
    with Server(echo) as server:
        ask(server, questions(30), workers=3)
    assert server.peak <= 3


def test_a_server_that_dies_ends_the_run_and_the_next_run_pays_nothing_twice(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store.db")
    chat_requests = questions(20)
    with Server(echo, dies_after=9) as first, pytest.raises(MachineError, match=r"cannot be reached.*cached"):
        ask(first, chat_requests, cache=StoreCache(store))
    with Server(echo, port=first.port) as second:
        answers, patient = ask(second, chat_requests, cache=StoreCache(store))
    assert answers == [f"QUESTION {n}" for n in range(20)]
    assert len(first.answered) == 9 and len(second.answered) == 11
    assert max(Counter(first.answered + second.answered).values()) == 1
    assert patient.usage.kept == 9
    store.close()


def test_a_failed_request_is_stored_as_a_failure_and_repeated(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store.db")
    question = questions(1)[0]
    with Server(echo, faults={n: "500" for n in range(1, 1 + client.ATTEMPTS)}) as server:
        failed, _ = ask(server, [question], cache=StoreCache(store))
        key = question.key({"endpoint": server.url, "model": "m"})
        failed_call = store.call(key)
        assert failed[0].startswith("HTTP 500") and failed_call is not None and failed_call.state == "error"
        answers, _ = ask(server, [question], cache=StoreCache(store))
        second_call = store.call(key)
        assert answers == ["QUESTION 0"] and second_call is not None and second_call.state == "answered"
    store.close()


def test_equal_requests_are_sent_once_and_another_seed_is_another_request() -> None:
    same = questions(1) * 3
    with Server(echo) as server:
        answers, _ = ask(server, same)
        assert answers == ["QUESTION 0"] * 3 and len(server.requests) == 1
        ask(server, [ChatRequest(same[0].messages, 8, temperature=1.0, seed=seed) for seed in range(3)])
    assert len(server.requests) == 4


def test_a_budget_is_never_exceeded_and_the_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store.db")
    chat_requests = questions(60)

    def spent(server: Server) -> float:
        return sum(3 for _ in server.answered)  # what a question costs: 2 tokens of prompt, 1 of answer

    with Server(echo) as server:
        price = (1e6, 1e6)
        with pytest.raises(GateError, match="budget of 120 is reached"):
            ask(server, chat_requests, cache=StoreCache(store), price=price, budget=120.0)
        assert 0 < spent(server) <= 120
        before = len(server.answered)
        with pytest.raises(GateError, match="budget"):
            ask(server, chat_requests, cache=StoreCache(store), price=price, budget=120.0)
        assert len(server.answered) == before  # what was paid before counts
        answers, patient = ask(server, chat_requests, cache=StoreCache(store), price=price, budget=1000.0)
    assert answers == [f"QUESTION {n}" for n in range(60)]
    assert max(Counter(server.answered).values()) == 1
    assert patient.usage.cost == pytest.approx(3 * 60) and patient.usage.spent == pytest.approx(3 * (60 - before))
    assert store.spent() == pytest.approx(180)
    store.close()


@pytest.mark.parametrize(
    ("price", "budget"), [((10, 10), 0.05), ((0.15, 0.6), 0.0008), ((2.5, 10), 0.013), ((3, 15), 0.02), ((1, 1), 0.005)]
)
def test_a_budget_that_is_reached_ends_the_run_of_many_workers(price: tuple[float, float], budget: float) -> None:
    """A sum of floats that was added to in one order and taken from in another is not 0 at the end."""

    class Busy(FakeChat):
        block, workers = 1, 8

        def ask(self, questions: Sequence[ChatRequest]) -> list[ChatReply]:
            time.sleep(0.001)  # so that calls overlap
            return [replace(reply, prompt_tokens=50, completion_tokens=10) for reply in super().ask(questions)]

    patient = ChatClient(Busy(lambda _: "a reply"), price=price, budget=budget)
    texts = [f"question {'and so on ' * (n % 7)}{n}" for n in range(200)]
    requests = [ChatRequest(({"role": "user", "content": text},), 10) for text in texts]
    asking = ThreadPoolExecutor(1).submit(patient, requests)
    with pytest.raises(GateError, match=r"the budget of .* is reached"):
        asking.result(60)
    assert 0 < patient.usage.cost <= budget


def test_an_attempt_that_may_have_been_charged_counts_against_the_budget() -> None:
    with Server(echo, faults={1: "truncated"}) as server:
        _, patient = ask(server, questions(1), price=(1e6, 1e6), budget=1000.0)
    assert patient.usage.cost == pytest.approx(3)
    assert patient.usage.spent > 3


def test_a_wrong_address_or_key_ends_the_run_in_one_line() -> None:
    with Server(echo) as server:
        chat = Endpoint(server.url + "/elsewhere", "m")
        with pytest.raises(InputError, match=r"HTTP 404.*--endpoint") as error:
            ChatClient(chat)(questions(1))
    assert "\n" not in str(error.value)


def test_a_request_that_the_server_refuses_is_not_repeated() -> None:
    with Server(echo, takes=()) as server:
        (answer,) = ChatClient(Endpoint(server.url, "m"))([ChatRequest(questions(1)[0].messages, options=("1", "2"))])
    assert answer.refused and len(server.requests) == 1


def test_log_probabilities_of_an_option_are_summed_over_its_spellings() -> None:
    def reply(body: Mapping[str, Any]) -> Reply:
        return "1", {"1": 0.5, " 1": 0.25, "2": 0.15, "one": 0.1}

    with Server(reply) as server:
        (answer,) = ChatClient(Endpoint(server.url, "m"))([ChatRequest(questions(1)[0].messages, options=("1", "2"))])
    assert answer.shares(("1", "2")) == pytest.approx([0.75 / 0.9, 0.15 / 0.9])
    assert answer.shares(("7", "8")) is None


SPELLED = ["<|im_end|>", "<｜User｜>", "[INST]", "[/TOOL_RESULTS]", "</s>", "<eos>", "<start_of_turn>", "<|endoftext|>"]


def test_a_text_spells_no_control_token_for_the_server_and_its_quotations_come_back_unchanged() -> None:
    def quote(body: Mapping[str, Any]) -> Reply:
        return body["messages"][0]["content"], {}

    harmless = "a < b, <b>bold</b>, x[0], [1], [see], <|, |>, List<String>, <s p>"
    chat_requests = [ChatRequest(({"role": "user", "content": text},), 8) for text in [*SPELLED, harmless]]
    with Server(quote) as server:
        answers, _ = ask(server, chat_requests)
    assert answers == [*SPELLED, harmless]
    sent = {body["messages"][0]["content"] for body in server.requests}
    assert harmless in sent
    assert not any(token in text for token in SPELLED for text in sent)

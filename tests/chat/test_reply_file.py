from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kleash.chat.client import ChatClient
from kleash.chat.messages import ChatReply, ChatRequest
from kleash.chat.reply_file import ReplyFile
from kleash.errors import GateError, InputError, MachineError
from kleash.testing import FakeChat

REQUEST = ChatRequest(({"role": "user", "content": "Asked."},))


def test_a_reply_is_kept_whole_and_an_error_is_asked_for_again(tmp_path: Path) -> None:
    file = ReplyFile(tmp_path / "calls" / "judge.db")
    reply = ChatReply(text="é\n7", logprobs={"1": -0.5}, has_logprobs=True, prompt_tokens=3, completion_tokens=1)
    file.put("a", "model", REQUEST, reply, 0.25)
    file.put("b", "model", REQUEST, ChatReply(error="timed out"), 0.5)
    again = ReplyFile(tmp_path / "calls" / "judge.db")
    assert again.get("a") == (reply, 0.25)
    assert again.get("b") is None
    assert again.spent() == 0.25


def test_many_threads_write_at_the_same_time(tmp_path: Path) -> None:
    file = ReplyFile(tmp_path / "judge.db")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: file.put(str(n), "m", REQUEST, ChatReply(text=str(n)), 1.0), range(64)))
    assert file.spent() == 64


def test_another_kind_of_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "judge.db"
    path.write_text("judge: m\n" * 200)
    with pytest.raises(InputError, match=r"judge\.db: file is not a database; delete it"):
        ReplyFile(path)
    with pytest.raises(MachineError):
        ReplyFile(path / "below")


def test_the_budget_counts_what_earlier_runs_spent_and_a_kept_reply_is_free(tmp_path: Path) -> None:
    def client(budget: float) -> ChatClient:
        file = ReplyFile(tmp_path / "judge.db")
        # a request of 1 byte, 64 tokens of template and 1 of reply costs at most 66, and here 1
        return ChatClient(
            FakeChat(lambda request: "word"), cache=file, price=(1e6, 1e6), budget=budget, spent_before=file.spent(),
            remedy="raise 'budget' in judge.yaml",
        )  # fmt: skip

    requests = [ChatRequest(({"role": "user", "content": text},)) for text in "abcd"]
    first = client(200)
    first(requests[:3])
    assert ReplyFile(tmp_path / "judge.db").spent() == 3
    second = client(68)
    assert [reply.text for reply in second(requests[:3])] == ["word"] * 3, "paid before, so nothing is asked"
    with pytest.raises(GateError, match=r"budget of 68 is reached: 3 spent, .* raise 'budget' in judge\.yaml"):
        second(requests)
    assert client(69)(requests)[3].text == "word"

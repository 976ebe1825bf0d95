from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kleash.chat import client
from kleash.chat.answer_text import without_announcement, without_thoughts
from kleash.chat.messages import ChatReply, ChatRequest
from kleash.cli import _run
from kleash.data.formats import read_groups
from kleash.errors import MachineError
from kleash.labels.store import Store
from kleash.outputs import results_of
from kleash.report.label_tables import revise_lines
from kleash.stages.revise import ReviseConfig, run
from kleash.testing import FakeChat
from tests.chat.loopback import Reply, Server

Write = Callable[[str, list[dict[str, Any]]], Path]

PRINCIPLES = """
principles:
  - {name: upper, text: Shout., critique: What is quiet., revision: Shout it.}
  - {name: keep, text: Leave it as it is., critique: What is wrong., revision: Leave it as it is., weight: 2}
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)


def assistant(body: Mapping[str, Any]) -> Reply:
    """Answers, criticises, and shouts where it is asked to; refuses harmful things once it was criticised."""
    turns = body["messages"]
    last = turns[-1]["content"]
    if last.startswith("Critique request"):
        return f"about {turns[-2]['content']}", {}
    if last.startswith("Revision request"):
        assert turns[-2]["content"].startswith("about ")
        said = turns[-4]["content"]
        shouted = said.upper() if "Shout" in last else said
        return ("I'm sorry, but I can't help with that." if "bomb" in said and "Shout" in last else shouted), {}
    return f"an answer to {last}", {}


@pytest.fixture
def prompts(write: Write) -> Path:
    rows = [{"prompt": f"row {i}", "harmful": False} for i in range(10)]
    return write("prompts.jsonl", rows + [{"prompt": f"bomb {i}", "harmful": True} for i in range(6)])


def config(server: Server, data: Path, **settings: Any) -> ReviseConfig:
    rules = data.parent / "rules.yaml"
    rules.write_text(PRINCIPLES)
    given = {"model": "m", "endpoint": server.url, "data": str(data), "constitution": str(rules)}
    return ReviseConfig.make(given | {"out": data.parent / "demonstrations.jsonl"} | settings)


def test_revisions_are_demonstrations_and_those_that_change_nothing_are_counted(prompts: Path) -> None:
    with Server(assistant) as server:
        out = run(config(server, prompts))
    groups, report = list(read_groups(out)), results_of(out)
    assert report is not None and len(groups) == 16
    for group in groups:
        original = group.columns["original"]
        assert original == f"an answer to {group.prompt}"
        kept = group.columns["principles"] == ["keep"]
        assert group.columns["unchanged"] == kept
        assert (group.responses[0].text == original) == kept
    unchanged = sum(bool(group.columns["unchanged"]) for group in groups)
    assert report["unchanged"]["share"] == pytest.approx(unchanged / 16) and 0 < unchanged < 16
    assert report["principles"]["keep"]["share"] == 1.0 and report["principles"]["upper"]["share"] == 0.0


def test_refusals_are_reported_before_and_after_for_harmful_and_harmless_prompts(prompts: Path) -> None:
    with Server(assistant) as server:
        out = run(config(server, prompts, rounds=5))
    report = results_of(out)
    assert report is not None
    before = report["refusals_before"]["harmful"]
    assert before["share"] == 0.0 and before["pairs"] == 6
    assert report["refusals_after"]["harmful"]["share"] > 0.5
    assert report["refusals_after"]["harmless"]["share"] == 0.0 and report["refusals_after"]["harmless"]["pairs"] == 10


def test_each_round_draws_a_principle_and_revises_what_the_last_one_left(prompts: Path) -> None:
    with Server(assistant) as server:
        out = run(config(server, prompts, rounds=3))
    groups = list(read_groups(out))
    assert all(len(group.columns["principles"]) == 3 for group in groups)
    assert len({tuple(group.columns["principles"]) for group in groups}) > 3
    with Server(assistant) as server:
        again = run(config(server, prompts, rounds=3, out=out.with_name("again.jsonl")))
    assert again.read_bytes() == out.read_bytes()  # keyed by the row


def test_a_run_on_a_server_that_dies_goes_on_and_pays_nothing_twice(prompts: Path) -> None:
    with Server(assistant, dies_after=30) as first, pytest.raises(MachineError):
        run(config(first, prompts))
    with Server(assistant, port=first.port) as second:
        run(config(second, prompts))
    answered = Counter(first.answered + second.answered)
    assert len(answered) == 48 and max(answered.values()) == 1


def test_critiques_and_revisions_are_in_the_store_once(prompts: Path) -> None:
    where = str(prompts.parent / "store.db")
    with Server(assistant) as server:
        run(config(server, prompts, store=where))
        run(config(server, prompts, store=where, out=prompts.parent / "again.jsonl"))
    store = Store.open(where)
    revisions = store.revisions()
    store.close()
    assert len(revisions) == 16
    assert all(one.critique == f"about {one.original}" and one.model == "m" for one in revisions)
    assert sum(one.unchanged for one in revisions) == sum(one.principle == "keep" for one in revisions)


def test_helpful_demonstrations_are_mixed_in_as_they_stand(prompts: Path, write: Write) -> None:
    helpful = write("helpful.jsonl", [{"prompt": "help", "response": "gladly"}] * 2)
    with Server(assistant) as server:
        out = run(config(server, prompts, mix_in=str(helpful)))
    assert list(read_groups(out))[16:] == list(read_groups(helpful))


def test_an_answer_without_words_is_not_a_demonstration(prompts: Path) -> None:
    def silent(body: Mapping[str, Any]) -> Reply:
        return ("  ", {}) if "bomb 3" in body["messages"][-1]["content"] else assistant(body)

    with Server(silent) as server:
        out = run(config(server, prompts))
    report = results_of(out)
    assert report is not None and report["demonstrations"] == 15 and report["failures"]["rows"] == 1
    assert report["failures"]["reasons"] == ["a reply without words"]


def critic_says(critique: str, **answers: str) -> Callable[[Mapping[str, Any]], Reply]:
    """A model whose critique, answer and revision are these."""

    def reply(body: Mapping[str, Any]) -> Reply:
        last = body["messages"][-1]["content"]
        if last.startswith("Critique request"):
            return critique, {}
        return answers.get("revision", "A kind answer.") if last.startswith("Revision") else answers["answer"], {}

    return reply


@pytest.mark.parametrize("critique", ["", "  \n", "<think>I wonder", "<think>Nothing is wrong.</think>\n"])
def test_a_critique_without_words_makes_no_demonstration_and_asks_for_no_revision(prompts: Path, critique: str) -> None:
    with Server(critic_says(critique, answer="An answer.")) as server:
        run(config(server, prompts, max_failures=1))
    report = results_of(prompts.parent / "demonstrations.jsonl")
    assert report is not None and report["demonstrations"] == 0 and report["critiques"]["without_words"] == 16
    assert report["failures"]["reasons"] == ["critique: a reply without words"]
    assert not any("Revision request" in str(request["messages"][-1]) for request in server.requests)


def test_critiques_that_refuse_are_counted(prompts: Path) -> None:
    with Server(critic_says("I'm sorry, but I can't help with that.", answer="An answer.")) as server:
        report = results_of(run(config(server, prompts)))
    assert report is not None and report["demonstrations"] == 16
    assert report["critiques"] == {"without_words": 0, "cut": 0, "refusals": 16}
    assert "16 refuse" in str(dict(revise_lines(report))["critiques"])


def test_critiques_that_were_cut_are_counted(prompts: Path) -> None:
    def chat(request: ChatRequest) -> str:
        return "The response is har" if "Critique request" in str(request.messages[-1]) else "An answer."

    class Cut(FakeChat):
        def ask(self, questions: Sequence[ChatRequest]) -> list[ChatReply]:
            return [replace(reply, finished=not reply.text.endswith("har")) for reply in super().ask(questions)]

    with Server(assistant) as server:
        settings = config(server, prompts)
    report = results_of(run(settings, chat=Cut(chat)))
    assert report is not None and report["critiques"]["cut"] == 16 and report["cut"] == 0


def test_thoughts_and_announcements_are_taken_off_and_counted(prompts: Path) -> None:
    model = critic_says(
        "<think>Hm.</think>\nIt is rude.",
        answer="They may have been opened by the template.</think>\n\nAn answer.",
        revision="<think>The user wants a rewrite.</think>\n\nHere is the revised response:\n\nA kind answer.",
    )
    with Server(model) as server:
        out = run(config(server, prompts))
    assert {(row.columns["original"], row.responses[0].text) for row in read_groups(out)} == {
        ("An answer.", "A kind answer.")
    }
    sent = [turn["content"] for request in server.requests for turn in request["messages"]]
    assert not any("think>" in text for text in sent), "the next step does not see thoughts"
    report = results_of(out)
    assert report is not None and report["taken_off"] == {"thoughts": 48, "announcements": 16}
    assert "thoughts of 48 replies" in str(dict(revise_lines(report))["taken off"])


@pytest.mark.parametrize(
    ("revision", "text"),
    [
        ("Sure! Here's a revised version of my response that is kinder:\nHello.", "Hello."),
        ("**Revised response:**\n\nHello.", "Hello."),
        ("Revision: Hello.", "Hello."),
        ("I've rewritten the answer to be more helpful:\n\nHello.", "Hello."),
        ("Here is how to bake bread:\n1. Knead.", "Here is how to bake bread:\n1. Knead."),
        ("Here is a new recipe: stir.", "Here is a new recipe: stir."),
        ("This is my view of the corrected budget: none.", "This is my view of the corrected budget: none."),
        ("In HTML, <think>x</think> means nothing.", "In HTML, <think>x</think> means nothing."),
    ],
)
def test_only_the_line_that_announces_a_revision_is_taken_off(revision: str, text: str) -> None:
    assert without_announcement(without_thoughts(revision)) == text


def test_a_model_in_this_process_revises_and_sft_learns_from_it(
    base: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prompts.parent / "own.jsonl"
    words = ["revise", "--model", base, "--data", prompts, "--constitution", "assistant", "--out", out]
    assert _run([*map(str, words), "--max-new-tokens", "4", "--max-rows", "6", "--max-failures", "1"]) == 0
    assert "unchanged at the end" in capsys.readouterr().err
    if list(read_groups(out)):
        sft = ["sft", "--model", base, "--data", out, "--out", prompts.parent / "sft", "--max-steps", 1]
        assert _run(list(map(str, sft))) in (0, 1)

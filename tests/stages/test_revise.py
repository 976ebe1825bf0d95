from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kleash.chat import client
from kleash.cli import _run
from kleash.data.formats import read_groups
from kleash.errors import MachineError
from kleash.labels.store import Store
from kleash.outputs import results_of
from kleash.stages.revise import ReviseConfig, run
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

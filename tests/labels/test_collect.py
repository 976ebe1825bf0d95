from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kleash.cli import main
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference, Response
from kleash.errors import DataError, WaitingError
from kleash.labels.collect import LabelCollector
from kleash.labels.import_export import Imported, import_labels
from kleash.labels.labeller import LabelResult
from kleash.labels.queue import Queue, QueueSettings, VoteRequest
from kleash.labels.store import Store
from kleash.stages import ask

Pairs = Callable[[int], list[Group]]


class Longer:
    """A labeller that prefers length, and counts its comparisons."""

    name = "longer"

    def __init__(self) -> None:
        self.asked = 0

    def compare(self, groups: Sequence[Group]) -> list[LabelResult]:
        self.asked += len(groups)
        lengths = [[len(response.text) for response in group.responses] for group in groups]
        return [LabelResult("preference", self.name, 0.9 if a > b else 0.1) for a, b in lengths]


@pytest.fixture
def labels(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "labels.db")


def answer_all(store: Store, person: int) -> None:
    """A person who chooses the longer response."""
    queue = Queue(store, QueueSettings(overlap=2, audit_share=0, repeat_share=0))
    while open_pairs := queue.next(person):
        (one,) = open_pairs
        side = "left" if len(one.left.text) > len(one.right.text) else "right"
        queue.vote(person, one.id, VoteRequest(f"vote-{person}-{one.id}", side))


def test_a_labeller_compares_each_pair_once_also_in_a_resumed_run(labels: Store, pairs: Pairs) -> None:
    labeller = Longer()
    first = LabelCollector(labels, labeller).collect(pairs(6))
    turned = [replace(group, responses=group.responses[::-1]) for group in pairs(6)]
    again = LabelCollector(labels, labeller).collect(turned)
    assert labeller.asked == 6
    for one, other in zip(first, again, strict=True):
        assert one is not None and other is not None and one.probability is not None
        assert other.probability == pytest.approx(1 - one.probability)


def test_the_budget_counts_what_earlier_runs_asked(labels: Store, pairs: Pairs) -> None:
    labeller = Longer()
    LabelCollector(labels, labeller, budget=5).collect(pairs(3))
    results = LabelCollector(labels, labeller, budget=5).collect(pairs(9))
    assert labeller.asked == 5
    assert [result is not None for result in results] == [True] * 5 + [False] * 4


def test_people_are_waited_for_and_their_answers_are_used(labels: Store, pairs: Pairs) -> None:
    collector = LabelCollector(labels, votes=2)
    with pytest.raises(WaitingError, match="4 of 4 pairs wait"):
        collector.collect(pairs(4))
    one, two = labels.invite().annotator, labels.invite().annotator
    answer_all(labels, one)
    with pytest.raises(WaitingError, match="4 of 4"):
        collector.collect(pairs(4))
    answer_all(labels, two)
    results = collector.collect(pairs(4))
    assert [result.probability for result in results if result is not None] == [
        float(len(group.responses[0].text) > len(group.responses[1].text)) for group in pairs(4)
    ]


def test_people_get_no_pairs_beyond_the_budget(labels: Store, pairs: Pairs) -> None:
    collector = LabelCollector(labels, budget=2)
    with pytest.raises(WaitingError, match="2 of 5"):
        collector.collect(pairs(5))
    answer_all(labels, labels.invite().annotator)
    assert [result is not None for result in collector.collect(pairs(5))] == [True, True, False, False, False]


def test_the_stage_waits_for_people_and_then_writes_preferences(tmp_path: Path, pairs: Pairs) -> None:
    write_groups(pairs(3), tmp_path / "samples.jsonl")
    config = ask.AskConfig(
        data=str(tmp_path / "samples.jsonl"), store=str(tmp_path / "labels.db"), out=tmp_path / "out.jsonl"
    )
    with pytest.raises(WaitingError):
        ask.run(config)
    assert not config.out.exists()
    store = Store.open(config.store)
    answer_all(store, store.invite().annotator)
    rows = list(read_groups(ask.run(config)))
    assert len(rows) == 3 and all(row.label == Preference(1.0, "people") for row in rows)
    assert all(len(row.responses[0].text) >= len(row.responses[1].text) for row in rows)
    store.close()


def test_the_stage_uses_a_reward_as_a_labeller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefers_length.py").write_text(
        "def longer(prompts, completions, **columns):\n    return [len(text) / 10 for text in completions]\n"
    )
    write_groups([Group("p", tuple(Response("x" * n) for n in (3, 1, 2)))], tmp_path / "samples.jsonl")
    config = ask.AskConfig(
        data=str(tmp_path / "samples.jsonl"), store=str(tmp_path / "labels.db"), out=tmp_path / "out.jsonl",
        labeller="prefers_length:longer",
    )  # fmt: skip
    rows = list(read_groups(ask.run(config)))
    assert [[len(response.text) for response in row.responses] for row in rows] == [[3, 1], [3, 2], [2, 1]]
    assert all(row.label is not None and 0.5 < row.label.probability < 0.6 for row in rows)  # type: ignore[union-attr]


def test_one_response_is_nothing_to_compare(tmp_path: Path) -> None:
    write_groups([Group("p", (Response("a"),))], tmp_path / "samples.jsonl")
    config = ask.AskConfig(data=str(tmp_path / "samples.jsonl"), store=str(tmp_path / "l.db"), out=tmp_path / "o.jsonl")
    with pytest.raises(DataError, match="row 1: has 1 responses"):
        ask.run(config)


def test_the_command_ends_with_75_while_people_think_and_says_how_to_ask_them(
    tmp_path: Path, pairs: Pairs, capsys: pytest.CaptureFixture[str]
) -> None:
    write_groups(pairs(2), tmp_path / "samples.jsonl")
    store = str(tmp_path / "new" / "labels.db")
    with pytest.raises(SystemExit) as done:
        main(["ask", "--data", str(tmp_path / "samples.jsonl"), "--store", store, "--out", str(tmp_path / "o.jsonl"),
              "--votes", "2"])  # fmt: skip
    assert done.value.code == 75
    assert f"kleash label --store {store} --overlap 2" in capsys.readouterr().err


def test_pairs_that_were_skipped_or_reported_are_not_waited_for_and_are_counted(tmp_path: Path, pairs: Pairs) -> None:
    write_groups(pairs(5), tmp_path / "samples.jsonl")
    config = ask.AskConfig(
        data=str(tmp_path / "samples.jsonl"), store=str(tmp_path / "labels.db"), out=tmp_path / "out.jsonl", votes=2
    )
    with pytest.raises(WaitingError, match="5 of 5 pairs wait"):
        ask.run(config)
    store = Store.open(config.store)
    queue = Queue(store, QueueSettings(overlap=2, audit_share=0, repeat_share=0))
    one, two, admin = (store.invite(role=role).annotator for role in ("annotator", "annotator", "admin"))
    tasks: list[int] = []
    for person in (one, two):
        for shown in queue.next(person, 5):
            tasks += [shown.task] if person == one else []
            number, key = tasks.index(shown.task), f"the-key-{person}-{shown.id}"
            if number == 0:
                queue.report(person, shown.id, key)
            elif number in (1, 2) and person == one:
                queue.skip(person, shown.id, key)
            else:
                queue.vote(person, shown.id, VoteRequest(key, "tie"))
        if person == one:
            with pytest.raises(WaitingError, match=r"2 of 5 pairs wait for people \(3 others were reported or skipped"):
                ask.run(config)
    queue.adjudicate(admin, tasks[2], "tie", "adjudication-key")
    assert len(list(read_groups(ask.run(config)))) == 3
    summary = json.loads((tmp_path / "out.summary.json").read_text())["results"]
    assert summary["states"] == {"tie": 3, "reported": 1, "skipped": 1}
    store.close()


def test_a_skipped_pair_waits_while_one_of_the_people_has_not_seen_it(labels: Store, pairs: Pairs) -> None:
    collector = LabelCollector(labels)
    labels.add_tasks(pairs(2)[1:])
    queue, one, two = Queue(labels, QueueSettings()), labels.invite().annotator, labels.invite().annotator
    labels.invite("a link that is never opened")
    queue.vote(two, queue.next(two)[0].id, VoteRequest("vote-key-1", "tie"))
    with pytest.raises(WaitingError):
        collector.collect(pairs(1))
    queue.skip(one, queue.next(one)[0].id, "skip-key-1")
    with pytest.raises(WaitingError, match="1 of 1"):
        collector.collect(pairs(1))
    queue.skip(two, queue.next(two)[0].id, "skip-key-2")
    assert [result.outcome for result in collector.collect(pairs(1)) if result] == ["skipped"]
    queue.undo(two, "undo-key-1")
    with pytest.raises(WaitingError, match="1 of 1"):
        collector.collect(pairs(1))


def test_what_ask_wrote_adds_nothing_to_the_store_it_came_from(labels: Store, tmp_path: Path, pairs: Pairs) -> None:
    with pytest.raises(WaitingError):
        LabelCollector(labels).collect(pairs(2))
    answer_all(labels, labels.invite().annotator)
    write_groups(pairs(2), tmp_path / "samples.jsonl")
    config = ask.AskConfig(
        data=str(tmp_path / "samples.jsonl"), store=str(tmp_path / "labels.db"), out=tmp_path / "out.jsonl"
    )
    assert import_labels(labels, ask.run(config)) == Imported(tasks=0, votes=0, summaries=2)


class Ill(Longer):
    """A labeller who does not answer the first time, with a long name."""

    name = "a labeller of a name that is longer than any column would hold, " * 3

    def compare(self, groups: Sequence[Group]) -> list[LabelResult]:
        results = super().compare(groups)
        return results if self.asked > len(groups) else [LabelResult("error", self.name, reason="ill") for _ in groups]


def test_a_missing_reply_is_requested_again_and_an_unparsable_one_is_not(labels: Store, pairs: Pairs) -> None:
    ill = Ill()
    collector = LabelCollector(labels, ill, budget=3)
    assert {result.outcome for result in collector.collect(pairs(3)) if result} == {"error"}
    again = collector.collect(pairs(3))
    assert [result.outcome for result in again if result] == ["preference"] * 3
    assert collector.collect(pairs(3)) == [replace(v, principle=None) for v in again if v] and ill.asked == 6
    labels.record(pairs(4)[3:], [LabelResult("unparsable", ill.name)])
    (last,) = collector.collect(pairs(4)[3:])
    assert last is not None and last.outcome == "unparsable" and ill.asked == 6

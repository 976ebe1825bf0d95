from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference, Ranking, Response, Scores
from kleash.errors import DataError
from kleash.labels.import_export import Imported, export_labels, import_labels
from kleash.labels.labeller import LabelResult
from kleash.labels.queue import Queue, QueueSettings, VoteRequest
from kleash.labels.store import Store

Pairs = Callable[[int], list[Group]]

PLAIN = QueueSettings(overlap=3, audit_share=0, repeat_share=0)


@pytest.fixture
def labels(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "labels.db")


def say(store: Store, groups: list[Group], *votes: float | str) -> None:
    """Votes of people: a probability, or a state."""
    for number, answer in enumerate(votes):
        outcome = answer if isinstance(answer, str) else "tie" if answer == 0.5 else "preference"
        verdict = LabelResult(outcome, f"person-{number}", None if isinstance(answer, str) else answer)  # type: ignore[arg-type]
        store.record(groups, [verdict] * len(groups), kind="file")


def read(path: Path) -> list[Group]:
    return list(read_groups(path))


def test_votes_become_one_soft_probability_with_the_better_response_first(
    labels: Store, pairs: Pairs, tmp_path: Path
) -> None:
    (group,) = pairs(1)
    say(labels, [group], 0.0, 0.0, 1.0, 0.5)
    manifest = export_labels(labels, tmp_path / "out")
    (row,) = read(tmp_path / "out" / "train.jsonl")
    assert row.responses == group.responses[::-1]
    assert row.label == Preference(probability=1 - 1.5 / 4)
    assert row.columns["annotators"] == ["person-0", "person-1", "person-2", "person-3"] and row.columns["votes"] == 4
    assert manifest.answers == {"first": 1, "second": 2, "tie": 1}


def test_each_vote_can_be_a_row_with_its_annotator_and_principle(labels: Store, pairs: Pairs, tmp_path: Path) -> None:
    labels.record(pairs(1), [LabelResult("preference", "judge", 0.2, principle="kind", reason="insults")])
    export_labels(labels, tmp_path / "out", each="vote")
    (row,) = read(tmp_path / "out" / "train.jsonl")
    assert row.label == Preference(0.8, "judge")
    assert (row.columns["principle"], row.columns["reason"]) == ("kind", "insults")


def test_ties_can_be_dropped_and_both_bad_is_a_separate_file(labels: Store, pairs: Pairs, tmp_path: Path) -> None:
    tie, bad, clear, torn = pairs(4)
    say(labels, [tie], 0.5)
    say(labels, [bad], "both_bad", "both_bad", 1.0)
    say(labels, [clear], 1.0, 0.5)
    say(labels, [torn], "cannot")
    manifest = export_labels(labels, tmp_path / "out", ties="drop")
    assert [row.prompt for row in read(tmp_path / "out" / "train.jsonl")] == [clear.prompt]
    assert [row.prompt for row in read(tmp_path / "out" / "both-bad.jsonl")] == [bad.prompt]
    assert manifest.files["train.jsonl"].rows == 1 and "cannot" not in manifest.answers


def test_an_export_is_frozen_and_reproducible_after_later_votes(labels: Store, pairs: Pairs, tmp_path: Path) -> None:
    groups = pairs(30)
    say(labels, groups, 1.0)
    manifest = export_labels(labels, tmp_path / "one", test_share=0.3)
    say(labels, groups, 0.0, 0.0)
    again = export_labels(labels, tmp_path / "two", test_share=0.3, until=manifest.until)
    assert again == manifest and asdict(manifest) == json.loads((tmp_path / "one" / "labels.json").read_text())
    for name, file in manifest.files.items():
        data = (tmp_path / "two" / name).read_bytes()
        assert data == (tmp_path / "one" / name).read_bytes() and hashlib.sha256(data).hexdigest() == file.sha256
    assert export_labels(labels, tmp_path / "three", test_share=0.3).files != manifest.files


def test_a_prompt_is_on_one_side_of_the_split_and_stays_there(labels: Store, tmp_path: Path) -> None:
    groups = [Group(f"prompt {i % 40}", (Response(f"a{i}"), Response(f"b{i}"))) for i in range(120)]
    say(labels, groups[:60], 1.0)
    export_labels(labels, tmp_path / "early", test_share=0.25)
    say(labels, groups, 1.0)
    export_labels(labels, tmp_path / "late", test_share=0.25)
    sides = {
        (when, name): {row.prompt for row in read(tmp_path / when / f"{name}.jsonl")}
        for when in ("early", "late")
        for name in ("train", "test")
    }
    assert not sides["late", "train"] & sides["late", "test"]
    assert sides["early", "test"] <= sides["late", "test"] and 3 <= len(sides["late", "test"]) <= 18


def test_an_adjudication_replaces_the_votes_and_an_undone_vote_does_not_count(
    labels: Store, pairs: Pairs, tmp_path: Path
) -> None:
    labels.add_tasks(pairs(2))
    queue = Queue(labels, PLAIN)
    person, admin = labels.invite().annotator, labels.invite(role="admin").annotator
    one, two = queue.next(person, 2)
    for pair_shown in (one, two):
        queue.vote(person, pair_shown.id, VoteRequest(f"vote-key-{pair_shown.id}", "left"))
    queue.undo(person, "undo-key-1")
    queue.adjudicate(admin, one.task, "tie", "adjudication-key")
    export_labels(labels, tmp_path / "out")
    (row,) = read(tmp_path / "out" / "train.jsonl")
    assert row.label == Preference(0.5) and row.columns["adjudications"] == 1


def test_hidden_repeats_are_for_checking_and_are_not_exported(labels: Store, pairs: Pairs, tmp_path: Path) -> None:
    labels.add_tasks(pairs(30))
    queue, person = Queue(labels, replace(PLAIN, repeat_share=0.5)), labels.invite().annotator
    while labels_out := queue.next(person):
        queue.vote(person, labels_out[0].id, VoteRequest(f"vote-key-{labels_out[0].id}", "left"))
    assert any(vote.repeat for vote in labels.votes())
    export_labels(labels, tmp_path / "out")
    rows = read(tmp_path / "out" / "train.jsonl")
    assert len(rows) == 30 and all(row.columns["votes"] == 1 for row in rows)


def test_nothing_to_export_is_an_error(labels: Store, pairs: Pairs, tmp_path: Path) -> None:
    labels.add_tasks(pairs(1))
    with pytest.raises(DataError, match="has no labels yet"):
        export_labels(labels, tmp_path / "out")


def davidson_votes(labels: Store, count: int, each: int, nu: float, spread: float) -> dict[str, float]:
    """Votes drawn from Davidson's model; returns the true probability of each prompt."""
    rng, truth = random.Random(0), {}
    groups, verdicts = [], []
    for i in range(count):
        d = rng.gauss(0, spread)
        truth[f"prompt {i}"] = 1 / (1 + math.exp(-d))
        weights = [math.exp(d / 2), math.exp(-d / 2), nu]
        for number, answer in enumerate(rng.choices([1.0, 0.0, 0.5], weights, k=each)):
            groups.append(Group(f"prompt {i}", (Response("a"), Response("b"))))
            verdicts.append(LabelResult.of(answer, f"person-{number}"))
    labels.record(groups, verdicts)
    return truth


def test_davidsons_ties_recover_planted_probabilities_better_than_halves(labels: Store, tmp_path: Path) -> None:
    truth = davidson_votes(labels, 150, 4, nu=0.8, spread=1.5)

    def error(ties: str) -> float:
        export_labels(labels, tmp_path / ties, ties=ties)  # type: ignore[arg-type]
        rows = read(tmp_path / ties / "train.jsonl")
        gaps = []
        for row in rows:
            assert isinstance(row.label, Preference)
            p = row.label.probability if row.responses[0].text == "a" else 1 - row.label.probability
            gaps.append((p - truth[str(row.prompt)]) ** 2)
        return sum(gaps) / len(gaps)

    assert error("davidson") < 0.85 * error("half")


def test_davidson_with_one_vote_per_pair_is_refused(labels: Store, pairs: Pairs, tmp_path: Path) -> None:
    say(labels, pairs(5), 1.0)
    with pytest.raises(DataError, match="two votes or more"):
        export_labels(labels, tmp_path / "out", ties="davidson")


def test_labels_come_in_from_files_once_and_go_out_as_they_were(labels: Store, pairs: Pairs, tmp_path: Path) -> None:
    rows = [replace(group, label=Preference(0.75 if i else 1.0, "team-a")) for i, group in enumerate(pairs(4))]
    write_groups(rows, tmp_path / "in.jsonl")
    assert import_labels(labels, tmp_path / "in.jsonl") == Imported(tasks=4, votes=4)
    assert import_labels(labels, tmp_path / "in.jsonl") == Imported(tasks=0, votes=0)
    export_labels(labels, tmp_path / "out", each="vote")
    labels_out = read(tmp_path / "out" / "train.jsonl")
    assert [(row.prompt, row.responses, row.label) for row in labels_out] == [
        (row.prompt, row.responses, row.label) for row in rows
    ]


@pytest.mark.parametrize("label", [Scores((1.0, 3.0, 3.0)), Ranking((1, 0, 0))])
def test_scores_and_rankings_come_in_as_their_pairs(labels: Store, tmp_path: Path, label: Scores | Ranking) -> None:
    write_groups([Group("p", tuple(Response(text) for text in "abc"), label)], tmp_path / "in.jsonl")
    assert import_labels(labels, tmp_path / "in.jsonl", annotator="teacher") == Imported(tasks=3, votes=3)
    assert sorted((vote.choice, vote.probability) for vote in labels.votes()) == [
        ("second", 0.0),
        ("second", 0.0),
        ("tie", 0.5),
    ]


def test_rows_without_labels_become_tasks_and_one_response_is_too_few(
    labels: Store, pairs: Pairs, tmp_path: Path
) -> None:
    write_groups(pairs(3), tmp_path / "in.jsonl")
    assert import_labels(labels, tmp_path / "in.jsonl") == Imported(tasks=3, votes=0)
    write_groups([Group("p", (Response("a"),))], tmp_path / "in.jsonl")
    with pytest.raises(DataError, match="row 1: has 1 responses"):
        import_labels(labels, tmp_path / "in.jsonl")

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference, Ranking, Response, Scores, chosen_first
from kleash.errors import DataError, InputError
from kleash.labels.agreement import counts, summary
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


def test_a_prompt_is_on_one_side_however_it_is_written(labels: Store, tmp_path: Path) -> None:
    call = {"name": "f", "arguments": {"a": 1, "b": 2}}
    turned = {"arguments": {"b": 2, "a": 1}, "name": "f"}
    groups = []
    for i in range(40):
        text = f"Question {i}?"
        for way, prompt in enumerate(
            [
                text,
                ({"role": "user", "content": text},),
                ({"content": text, "role": "user"},),
                ({"role": "user", "content": f"And {i}?"}, {"role": "assistant", "content": "", "tool_calls": [call]}),
                (
                    {"content": f"And {i}?", "role": "user"},
                    {"tool_calls": [turned], "content": "", "role": "assistant"},
                ),
            ]
        ):
            groups.append(Group(prompt, (Response(f"good {way}"), Response(f"bad {way}"))))
    say(labels, groups, 1.0)
    export_labels(labels, tmp_path / "out", test_share=0.4)
    train, test = (
        {json.dumps(row.prompt) for row in read(tmp_path / "out" / f"{name}.jsonl")} for name in ("train", "test")
    )

    def numbers(rows: set[str]) -> set[tuple[str, str]]:
        return {(("And" if "And" in row else "Question"), re.findall(r"(\d+)\?", row)[0]) for row in rows}

    assert numbers(train) and numbers(test) and not numbers(train) & numbers(test)


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


COLOUR = Group("Name a colour.", (Response("Red."), Response("Seven.")))
FRUIT = Group("Name a fruit.", (Response("A stone."), Response("A pear.")))


def rows_of(*answers: tuple[Group, float] | tuple[Group, float, str | None]) -> list[Group]:
    """Preference rows, the better response first: P(the group's first is better) of each, and who says so."""
    return [chosen_first(replace(group, label=Preference(p, name[0] if name else None))) for group, p, *name in answers]


def take(store: Store, folder: Path, *answers: Any, name: str = "in", annotator: str | None = None) -> Imported:
    write_groups(rows_of(*answers), folder / f"{name}.jsonl")
    return import_labels(store, folder / f"{name}.jsonl", annotator=annotator)


def exported(store: Store, folder: Path, group: Group) -> float:
    """P(the group's first response is better) in an export of all votes."""
    export_labels(store, folder / f"out-{store.last_vote()}")
    for row in read(folder / f"out-{store.last_vote()}" / "train.jsonl"):
        if row.prompt == group.prompt:
            assert isinstance(row.label, Preference)
            return row.label.probability if row.responses == group.responses else 1 - row.label.probability
    raise AssertionError(f"{group.prompt} is not in the export")


@pytest.mark.parametrize("named", ["by the command", "by the rows"])
def test_a_label_that_comes_later_corrects_an_earlier_one_as_often_as_it_turns(
    store: Store, tmp_path: Path, named: str
) -> None:
    by_command = "ann" if named == "by the command" else None
    by_row = None if by_command else "ann"
    take(store, tmp_path, (COLOUR, 1.0, by_row), (FRUIT, 1.0, by_row), name="monday", annotator=by_command)
    for day, p in enumerate((0.0, 1.0, 0.5, 0.7, 0.0)):
        taken = take(store, tmp_path, (FRUIT, p, by_row), name=f"day {day}", annotator=by_command)
        assert taken == Imported(tasks=0, votes=1, corrections=1)
        assert exported(store, tmp_path, FRUIT) == pytest.approx(p)
        assert exported(store, tmp_path, COLOUR) == 1.0
    assert "1 corrections of earlier votes" in str(taken)


@pytest.mark.parametrize("name", [None, "ann"])
@pytest.mark.parametrize(("answers", "p"), [((1.0, 0.0), 0.5), ((1.0, 1.0, 0.0), 2 / 3), ((0.5, 1.0), 0.75)])
def test_rows_of_one_file_that_contradict_each_other_are_a_vote_each(
    store: Store, tmp_path: Path, name: str | None, answers: tuple[float, ...], p: float
) -> None:
    rows = [(FRUIT, answer, name) for answer in answers]
    assert take(store, tmp_path, *rows) == Imported(tasks=1, votes=len(rows), contradicted=1)
    assert exported(store, tmp_path, FRUIT) == pytest.approx(p)
    for again in (rows, rows[::-1]):
        assert take(store, tmp_path, *again) == Imported(tasks=0, votes=0, contradicted=1)


def test_a_row_that_is_there_twice_is_one_vote(store: Store, tmp_path: Path) -> None:
    turned = replace(FRUIT, responses=FRUIT.responses[::-1])
    assert take(store, tmp_path, (FRUIT, 0.8), (turned, 0.2)) == Imported(tasks=1, votes=1, repeated=1)


def labelled_by_all_kinds(store: Store, pairs: Pairs) -> None:
    """Votes of two people with repeats, adjudications, judges by two principles, a file; ties and soft labels."""
    groups = pairs(12)
    store.add_tasks(groups)
    queue = Queue(store, replace(PLAIN, overlap=2, repeat_share=0.3))
    rng = random.Random(0)
    for name in ("one", "two"):
        person, number = store.invite(name).annotator, 0
        while shown := queue.next(person):
            number += 1
            choice = rng.choice(["left", "right", "tie", "both_bad", "cannot"])
            queue.vote(person, shown[0].id, VoteRequest(f"vote-{name}-{number}", choice))
    admin = store.invite(role="admin").annotator
    for task, choice in ((1, "first"), (2, "tie"), (3, "cannot")):
        queue.adjudicate(admin, task, choice, f"adjudication-{task}")
    for principle in ("kind", "brief"):
        results = [
            LabelResult.of(
                rng.choice([0.2, 0.5, 0.93]), "judge:m", principle=principle, reason=rng.choice([None, "a", "b"])
            )
            for _ in groups
        ]
        store.record(groups, results)
    say(store, groups[:5], 1.0)


@pytest.mark.parametrize("each", ["pair", "vote"])
@pytest.mark.parametrize("until", ["now", "before"])
def test_an_export_that_is_imported_again_adds_nothing(
    store: Store, pairs: Pairs, tmp_path: Path, each: Any, until: str
) -> None:
    labelled_by_all_kinds(store, pairs)
    before = store.last_vote()
    if until == "before":  # a person has changed their mind on the page since
        person = next(one for one in store.annotators() if one.name == "one")
        vote = next(vote for vote in store.votes() if vote.annotator == person.id and vote.choice == "first")
        assert vote.assignment is not None
        side = "left" if vote.swapped else "right"
        Queue(store, PLAIN).vote(person.id, vote.assignment, VoteRequest("changed-mind", side))
    export_labels(store, tmp_path / "out", each=each, until=before)
    figures = summary(store)
    taken = import_labels(store, tmp_path / "out" / "train.jsonl")
    assert (taken.tasks, taken.votes) == (0, 0)
    assert summary(store) == figures


def test_an_export_edited_by_hand_corrects_the_person_it_names(store: Store, pairs: Pairs, tmp_path: Path) -> None:
    (group,) = pairs(1)
    store.add_tasks([group])
    queue, person = Queue(store, PLAIN), store.invite().annotator
    (shown,) = queue.next(person)
    queue.vote(person, shown.id, VoteRequest("vote-key", "left"))
    alias = next(one.alias for one in store.annotators() if one.id == person)
    better = 0.0 if shown.left == group.responses[0] else 1.0
    assert take(store, tmp_path, (group, better, alias)) == Imported(tasks=0, votes=1, corrections=1)
    assert exported(store, tmp_path, group) == better
    assert [sum(row.values()) for row in counts(store.votes()).values()] == [1]


def test_labels_of_people_and_of_judges_keep_their_kind_in_another_store(
    store: Store, pairs: Pairs, tmp_path: Path
) -> None:
    labelled_by_all_kinds(store, pairs)
    export_labels(store, tmp_path / "out", each="vote")
    other = Store.open(tmp_path / "other.db")
    import_labels(other, tmp_path / "out" / "train.jsonl")
    assert {one.alias: one.kind == "judge" for one in other.annotators()} == {
        one.alias: one.kind == "judge" for one in store.annotators() if one.alias in {v.alias for v in other.votes()}
    }
    export_labels(other, tmp_path / "again", each="vote")
    rows, again = read(tmp_path / "out" / "train.jsonl"), read(tmp_path / "again" / "train.jsonl")

    def content(group: Group) -> tuple[object, ...]:
        label = group.label
        assert isinstance(label, Preference)
        columns = {name: group.columns.get(name) for name in ("principle", "reason")}
        return str(group.prompt), str(label.annotator), str(columns), round(label.probability, 9)

    assert sorted(map(content, again)) == sorted(map(content, rows))
    ours, theirs = summary(store), summary(other)
    assert theirs.judges == ours.judges and theirs.judges.tasks == 0
    other.close()


def test_a_pair_that_people_cannot_judge_leaves_the_export_whoever_labelled_it(
    store: Store, pairs: Pairs, tmp_path: Path
) -> None:
    ruled, voted, half, clear = pairs(4)
    store.record([ruled, voted, half, clear], [LabelResult.of(0.9, "judge:m")] * 4)
    say(store, [ruled], 1.0, 1.0)
    say(store, [voted], "cannot", "cannot", 1.0)
    say(store, [half], "cannot", 1.0)
    admin = store.invite(role="admin").annotator
    (match,) = store.find([ruled])
    assert match is not None
    Queue(store, PLAIN).adjudicate(admin, match.task, "cannot", "adjudication-key")
    for number, settings in enumerate([{}, {"each": "vote"}, {"kinds": ["judge"]}, {"annotators": ["judge:m"]}]):
        manifest = export_labels(store, tmp_path / str(number), **settings)  # type: ignore[arg-type]
        rows = read(tmp_path / str(number) / "train.jsonl")
        assert {row.prompt for row in rows} == {half.prompt, clear.prompt}
        assert manifest.left_out == {"cannot be judged": 2}


def test_an_export_can_be_of_some_annotators_or_kinds(store: Store, pairs: Pairs, tmp_path: Path) -> None:
    groups = pairs(3)
    store.add_tasks(groups)
    person = store.invite("Ann").annotator
    queue = Queue(store, PLAIN)
    (shown,) = queue.next(person)
    queue.vote(person, shown.id, VoteRequest("vote-key", "left"))
    store.record(groups, [LabelResult.of(0.9, "judge:m")] * 3)
    say(store, groups[:2], 1.0)

    def aliases(name: str, **settings: Any) -> set[str]:
        export_labels(store, tmp_path / name, each="vote", **settings)
        labels = [row.label for row in read(tmp_path / name / "train.jsonl")]
        return {str(label.annotator) for label in labels if isinstance(label, Preference)}

    alias = next(one.alias for one in store.annotators() if one.id == person)
    assert aliases("all") == {alias, "judge:m", "person-0"}
    assert aliases("judge", kinds=["judge"]) == {"judge:m"}
    assert aliases("people", kinds=["person", "file"]) == {alias, "person-0"}
    assert aliases("name", annotators=["Ann"]) == aliases("alias", annotators=[alias]) == {alias}
    with pytest.raises(InputError, match=rf"no annotator is called Bob; there are: {alias} \(Ann\), judge:m"):
        export_labels(store, tmp_path / "bob", annotators=["Bob"])


def test_an_export_says_what_it_left_out_by_reason_and_every_pair_and_vote_is_accounted_for(
    store: Store, pairs: Pairs, tmp_path: Path
) -> None:
    groups = pairs(11)
    store.add_tasks(groups)
    match = [found.task for found in store.find(groups) if found is not None]
    say(store, groups[:1], 1.0, 1.0, 0.5)  # two votes and a tie
    say(store, groups[1:2], 0.5)
    say(store, groups[2:3], "cannot", 1.0, "cannot")
    say(store, groups[3:4], "both_bad", "both_bad", 1.0)
    say(store, groups[4:5], 1.0, "both_bad", 1.0)
    say(store, groups[5:6], 0.0)
    say(store, groups[5:6], 1.0)  # a correction
    say(store, groups[10:], 1.0)
    store.record(groups[6:7], [LabelResult.of(0.9, "judge:m")])
    person, admin = store.invite("Ann").annotator, store.invite(role="admin").annotator
    queue = Queue(store, replace(PLAIN, overlap=9))
    shown = {assignment.task: assignment.id for assignment in queue.next(person, 25)}
    queue.skip(person, shown[match[7]], "skipped-key")
    queue.report(person, shown[match[8]], "reported-key")
    queue.vote(person, shown[match[0]], VoteRequest("a-vote-key", "left"))
    queue.undo(person, "the-undo-key")
    queue.adjudicate(admin, match[10], "second", "adjudication-key")

    def exported(name: str, **settings: Any) -> tuple[dict[str, int], dict[str, int], str]:
        manifest = export_labels(store, tmp_path / name, **settings)
        rows = {file: len(read(tmp_path / name / file)) for file in manifest.files}
        assert sum(manifest.left_out.values()) + sum(rows.values()) == 11 == manifest.pairs
        per_vote = export_labels(store, tmp_path / f"{name}-votes", each="vote", **settings)
        train = per_vote.files["train.jsonl"].rows
        both_bad = sum(vote.choice == "both_bad" for vote in store.votes() if vote.task == match[3] and vote.counts)
        votes = [vote for vote in store.votes() if vote.choice not in ("undo", "skip", "report")]
        bad = both_bad if "both-bad.jsonl" in rows else 0
        assert train + bad + sum(manifest.votes_left_out.values()) == len(votes)
        assert json.loads((tmp_path / name / "labels.json").read_text())["votes_left_out"] == manifest.votes_left_out
        return manifest.left_out, manifest.votes_left_out, str(manifest)

    pairs_out, votes_out, line = exported("all", ties="drop")
    assert pairs_out == {"only ties": 1, "cannot be judged": 1, "skipped": 1, "reported": 1, "no votes": 1}
    assert votes_out == {
        "ties": 2, "on pairs that cannot be judged": 3, "outvoted on whether both are bad": 2,
        "replaced or taken back": 2, "overruled by an adjudication": 1,
    }  # fmt: skip
    assert line.startswith("train.jsonl 5, both-bad.jsonl 1 rows, of 11 pairs; pairs left out: ") and "2 ties" in line
    pairs_out, votes_out, _ = exported("judge", kinds=["judge"])
    assert pairs_out["only votes of other annotators"] == 6 and pairs_out["cannot be judged"] == 1
    assert votes_out["of other annotators"] == 16


def test_votes_on_hidden_repeats_are_counted_as_left_out(store: Store, pairs: Pairs, tmp_path: Path) -> None:
    store.add_tasks(pairs(12))
    person = store.invite().annotator
    queue = Queue(store, QueueSettings(audit_share=0, repeat_share=1.0))
    for number in range(15):
        (shown,) = queue.next(person)
        queue.vote(person, shown.id, VoteRequest(f"vote-{number:06d}", "left"))
    manifest = export_labels(store, tmp_path / "out")
    repeats = sum(vote.repeat for vote in store.votes())
    assert repeats > 0 and manifest.votes_left_out == {"hidden repeats": repeats}
    assert manifest.left_out == {"no votes": 12 - (15 - repeats)}

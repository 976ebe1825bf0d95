from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from kleash.data.group import Group, Preference
from kleash.errors import InputError
from kleash.labels.queue import Assignment, Choice, Queue, QueueSettings, VoteRequest
from kleash.labels.store import Store

Pairs = Callable[[int], list[Group]]

PLAIN = QueueSettings(audit_share=0, repeat_share=0)


def vote_all(queue: Queue, annotator: int, choice: Choice = "left", limit: int = 10_000) -> list[Assignment]:
    history: list[Assignment] = []
    while len(history) < limit and (open_pairs := queue.next(annotator, 1)):
        queue.vote(annotator, open_pairs[0].id, VoteRequest(f"{annotator}-vote-{len(history):06d}", choice))
        history += open_pairs
    return history


def test_each_pair_goes_to_overlap_people_and_to_none_twice(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(12))
    queue = Queue(store, replace(PLAIN, overlap=2))
    people = [store.invite().annotator for _ in range(3)]
    history: dict[int, list[int]] = {person: [] for person in people}
    for turn in range(12):
        for person in people:
            for assignment in queue.next(person):
                queue.vote(person, assignment.id, VoteRequest(f"vote-{person}-{turn:02d}", "left"))
                history[person].append(assignment.task)
    assert all(len(tasks) == len(set(tasks)) for tasks in history.values())
    assert set(Counter(task for tasks in history.values() for task in tasks).values()) == {2}
    assert queue.next(people[0]) == []


def test_a_person_who_reloads_gets_the_same_pairs_on_the_same_sides(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(10))
    person = store.invite().annotator
    first = Queue(store, PLAIN).next(person, 4)
    assert Queue(store, replace(PLAIN, seed=9)).next(person, 4) == first


def test_sides_are_balanced_for_each_pair_and_each_person(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(20))
    queue = Queue(store, replace(PLAIN, overlap=4))
    people = [store.invite().annotator for _ in range(4)]
    for person in people:
        vote_all(queue, person)
    votes = store.votes()
    assert set(Counter(vote.task for vote in votes if vote.swapped).values()) == {2}
    by_person = Counter(vote.annotator for vote in votes if vote.swapped)
    assert all(abs(by_person[person] - 10) <= 6 for person in people)


def test_a_single_person_sees_each_side_equally_often(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(21))
    vote_all(Queue(store, PLAIN), store.invite().annotator)
    assert abs(2 * sum(bool(vote.swapped) for vote in store.votes()) - 21) == 1


def test_a_vote_for_the_left_is_for_the_response_that_stood_there(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(10))
    assignment = {one.task: one.left for one in vote_all(Queue(store, PLAIN), store.invite().annotator)}
    groups = store.tasks()
    for vote in store.votes():
        assert groups[vote.task].responses[vote.choice == "second"] == assignment[vote.task]
        assert vote.probability == float(vote.choice == "first")


def test_a_vote_sent_twice_is_counted_once_and_a_second_one_is_a_revision(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(1))
    queue, person = Queue(store, PLAIN), store.invite().annotator
    (assignment,) = queue.next(person)
    assert not queue.vote(
        person, assignment.id, VoteRequest("first-key", "left", 2, "because", ["clear"], 3.5)
    ).repeated
    assert queue.vote(person, assignment.id, VoteRequest("first-key", "left")).repeated
    assert not queue.vote(person, assignment.id, VoteRequest("second-key", "tie")).repeated
    one, two = store.votes()
    assert (one.counts, two.counts, two.choice, two.probability) == (False, True, "tie", 0.5)
    assert (one.strength, one.reason, one.tags, one.seconds) == (2, "because", ["clear"], 3.5)


def test_a_key_is_good_for_one_vote_only(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(2))
    queue, person = Queue(store, PLAIN), store.invite().annotator
    one, two = queue.next(person, 2)
    queue.vote(person, one.id, VoteRequest("the-same-key", "left"))
    with pytest.raises(InputError, match="used for another vote"):
        queue.vote(person, two.id, VoteRequest("the-same-key", "left"))


def test_undo_opens_the_last_pairs_again_latest_first_and_keeps_the_history(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(8))
    queue, person = Queue(store, PLAIN), store.invite().annotator
    history = vote_all(queue, person, limit=5)
    last, before = (queue.undo(person, f"undo-key-{i}") for i in range(2))
    assert last is not None and before is not None and (last.id, before.id) == (history[4].id, history[3].id)
    assert queue.undo(person, "undo-key-1") == before
    assert [one.id for one in queue.next(person, 3)][:2] == [before.id, last.id]
    assert sum(vote.counts for vote in store.votes()) == 3 and len(store.votes()) == 7
    assert queue.progress(person).done == 3


def test_undo_with_nothing_done_does_nothing(store: Store) -> None:
    assert Queue(store).undo(store.invite().annotator, "some-undo-key") is None


def test_a_lease_that_ran_out_gives_the_pair_to_others_and_a_late_vote_still_counts(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(1))
    queue = Queue(store, replace(PLAIN, lease_seconds=-1))
    late, quick = store.invite().annotator, store.invite().annotator
    (first_pair,) = queue.next(late)
    (again,) = queue.next(quick)
    assert again.task == first_pair.task
    queue.vote(quick, again.id, VoteRequest("quick-key", "left"))
    assert queue.next(late) == []
    queue.vote(late, first_pair.id, VoteRequest("late-key-1", "left"))
    assert [vote.counts for vote in store.votes()] == [True, True]


def test_a_skipped_pair_goes_to_somebody_else(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(1))
    queue = Queue(store, PLAIN)
    one, two = store.invite().annotator, store.invite().annotator
    (assignment,) = queue.next(one)
    queue.skip(one, assignment.id, "skip-key-1", "too long")
    assert queue.next(one) == [] and len(queue.next(two)) == 1
    assert not any(vote.counts for vote in store.votes())


def test_the_most_uncertain_come_first_and_a_share_at_random(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(80), uncertainty=[i / 80 for i in range(80)])
    certain = Queue(store, PLAIN)
    first = [int(str(one.prompt).split()[1]) for one in vote_all(certain, store.invite().annotator, limit=10)]
    assert first == list(range(79, 69, -1))
    audited = Queue(store, replace(PLAIN, audit_share=0.5))
    places = [int(str(one.prompt).split()[1]) for one in vote_all(audited, store.invite().annotator, limit=24)]
    assert 5 <= sum(place < 56 for place in places) <= 18


def test_practice_comes_first_with_its_answer_and_counts_for_nothing(store: Store, pairs: Pairs) -> None:
    store.add_tasks([replace(pairs(3)[2], label=Preference(0.0))], kind="practice")
    store.add_tasks(pairs(2))
    queue = Queue(store, PLAIN)
    for person in (store.invite().annotator, store.invite().annotator):
        (practice,) = queue.next(person)
        better = practice.left if practice.answer == "left" else practice.right
        assert practice.kind == "practice" and better == pairs(3)[2].responses[1]
        queue.vote(person, practice.id, VoteRequest(f"practice-{person}", "left"))
    assert store.votes() == []


def test_repeats_have_their_sides_swapped_and_are_marked(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(60))
    queue = Queue(store, replace(PLAIN, repeat_share=0.3))
    vote_all(queue, store.invite().annotator)
    votes = store.votes()
    sides = {vote.task: vote.swapped for vote in votes if not vote.repeat}
    repeats = [vote for vote in votes if vote.repeat]
    assert len(sides) == 60 and 8 <= len(repeats) <= 45
    assert all(vote.swapped != sides[vote.task] for vote in repeats)


def test_a_person_cannot_vote_for_another(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(1))
    queue = Queue(store, PLAIN)
    one, two = store.invite().annotator, store.invite().annotator
    (assignment,) = queue.next(one)
    with pytest.raises(InputError, match="is not yours"):
        queue.vote(two, assignment.id, VoteRequest("somebody-else", "left"))


@pytest.mark.parametrize(
    ("vote", "message"),
    [
        (VoteRequest("a-good-key", "first"), "is not a choice"),  # type: ignore[arg-type]
        (VoteRequest("short", "left"), "8 to 80 characters"),
        (VoteRequest("a-good-key", "left", strength=4), "strength is 4"),
    ],
)
def test_a_vote_that_is_none_is_refused(store: Store, pairs: Pairs, vote: VoteRequest, message: str) -> None:
    store.add_tasks(pairs(1))
    queue, person = Queue(store, PLAIN), store.invite().annotator
    with pytest.raises(InputError, match=message):
        queue.vote(person, queue.next(person)[0].id, vote)
    assert store.votes() == []


def test_an_admin_adjudicates_and_others_cannot(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(1))
    queue, admin, person = Queue(store, PLAIN), store.invite(role="admin"), store.invite()
    (task,) = store.tasks()
    with pytest.raises(InputError, match="only an admin"):
        queue.adjudicate(person.annotator, task, "first", "adjudication-key-0")
    assert not queue.adjudicate(admin.annotator, task, "second", "adjudication-key-1", "longer").repeated
    assert queue.adjudicate(admin.annotator, task, "second", "adjudication-key-1").repeated
    assert [(vote.adjudicated, vote.probability) for vote in store.votes()] == [(True, 0.0)]


def test_people_who_ask_at_the_same_moment_share_the_pairs_without_a_double(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(40))
    people = [store.invite().annotator for _ in range(8)]
    history: list[list[Assignment]] = []
    threads = [
        threading.Thread(target=lambda person=person: history.append(vote_all(Queue(store, PLAIN), person)))
        for person in people
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tasks = [one.task for answers in history for one in answers]
    assert len(tasks) == len(set(tasks)) == 40
    assert sum(vote.counts for vote in store.votes()) == 40


def test_undo_and_adjudication_need_a_key_too(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(1))
    queue, admin = Queue(store, PLAIN), store.invite(role="admin").annotator
    with pytest.raises(InputError, match="8 to 80 characters"):
        queue.undo(admin, "")
    with pytest.raises(InputError, match="8 to 80 characters"):
        queue.adjudicate(admin, next(iter(store.tasks())), "first", "k" * 81)

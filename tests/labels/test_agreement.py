from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import krippendorff as reference
import numpy as np
import pytest

from kleash.data.group import Group, Response
from kleash.evals.estimates import Share
from kleash.labels.agreement import (
    MOST_FAST,
    STEADY,
    AnnotatorReport,
    agreement,
    annotator_report,
    disagreements,
    krippendorff,
    summary,
)
from kleash.labels.labeller import LabelResult
from kleash.labels.queue import Queue, QueueSettings, VoteRequest
from kleash.labels.store import Store, Vote

Pairs = Callable[[int], list[Group]]


def vote(task: int, choice: str, **settings: object) -> Vote:
    values = {
        "id": task, "key": f"k{task}", "task": task, "annotator": 1, "alias": "a", "kind": "person", "assignment": task,
        "choice": choice, "probability": None, "strength": None, "reason": "", "tags": [], "principle": None,
        "order_effect": None, "seconds": None, "guideline": None, "swapped": False, "repeat": False,
        "adjudicated": False, "created": 0.0,
    }  # fmt: skip
    return Vote(**{**values, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_that_of_the_published_package(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.multinomial(3, rng.dirichlet(np.ones(4)), size=30) * (rng.random(30) < 0.8)[:, None]
    result = krippendorff(table.astype(float))
    assert result == pytest.approx(
        reference.alpha(value_counts=table[table.sum(1) > 0], level_of_measurement="nominal")
    )


@pytest.mark.parametrize("seed", range(3))
def test_alpha_for_exchangeable_sides_is_the_mean_chance_over_all_swaps_of_the_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.multinomial(2, [0.6, 0.2, 0.15, 0.05], size=400).astype(float)
    chance = []
    for _ in range(400):
        turned = table.copy()
        rows = rng.random(400) < 0.5
        turned[np.ix_(rows, [0, 1])] = table[np.ix_(rows, [1, 0])]
        assert krippendorff(turned, exchangeable=(0, 1)) == pytest.approx(krippendorff(table, exchangeable=(0, 1)))
        alpha = krippendorff(turned)
        assert alpha is not None
        observed = 1 - (table * (table - 1)).sum() / table.sum()
        chance.append(observed / (1 - alpha))
    result = krippendorff(table, exchangeable=(0, 1))
    assert result is not None
    assert observed / (1 - result) == pytest.approx(np.mean(chance), abs=2e-3)


def test_where_chance_cannot_disagree_alpha_is_undefined_and_not_perfect() -> None:
    assert krippendorff(np.array([[0.0, 0, 2, 0]] * 5), exchangeable=(0, 1)) is None
    assert krippendorff(np.array([[2.0, 0, 0, 0]] * 5)) is None
    assert krippendorff(np.array([[2.0, 0, 0, 0]] * 5), exchangeable=(0, 1)) == 1.0
    assert krippendorff(np.array([[1.0, 0, 0, 0]] * 5)) is None


def planted(flip: float, tie: float, seed: int, tasks: int = 200) -> list[Counter[str]]:
    """Two people who each see the truth, but for a share of flips and ties."""
    rng = random.Random(seed)
    rows = []
    for _ in range(tasks):
        truth = rng.choice(["first", "second"])
        other = {"first": "second", "second": "first"}[truth]
        answers = [
            "tie" if rng.random() < tie else other if rng.random() < flip else truth for _ in range(2)
        ]  # fmt: skip
        rows.append(Counter(answers))
    return rows


def test_the_interval_of_agreement_covers_the_planted_value_at_its_level() -> None:
    flip, tie = 0.2, 0.1
    same = (1 - tie) ** 2 * (1 - 2 * flip * (1 - flip)) + tie**2
    chance = tie**2 + (1 - tie) ** 2 / 2
    truth = (same - chance) / (1 - chance)
    result = [agreement(planted(flip, tie, seed)) for seed in range(60)]
    assert np.mean([one.raw for one in result]) == pytest.approx(same, abs=0.01)
    assert np.mean([one.alpha for one in result]) == pytest.approx(truth, abs=0.015)
    inside = sum(one.interval[0] <= truth <= one.interval[1] for one in result)
    assert inside >= 52  # 95 % of 60 is 57; fewer than 52 has a chance of 1 in 50


class Simulated:
    """A person who sees the truth through noise, side and length; fast or not."""

    def __init__(self, seed: int, *, flip: float = 0.1, left: float = 0.0, longer: float = 0.0, fast: bool = False):
        self.rng, self.flip, self.left, self.longer, self.fast = random.Random(seed), flip, left, longer, fast

    def choose(self, better: str, left: str, right: str, count: int) -> VoteRequest:
        side = "left" if left == better else "right"
        if self.rng.random() < self.flip:
            side = "right" if side == "left" else "left"
        if self.longer and self.rng.random() < self.longer:
            side = "left" if len(left) > len(right) else "right"
        if self.rng.random() < self.left:
            side = "left"
        return VoteRequest(f"vote-{id(self)}-{count}", side, seconds=0.2 if self.fast else 20.0)


def world(count: int, seed: int = 0) -> tuple[list[Group], dict[str, str]]:
    rng = random.Random(seed)
    groups, better = [], {}
    for i in range(count):
        texts = [f"{i} {word} " + "so " * rng.randint(5, 60) for word in ("one", "two")]
        groups.append(Group(f"prompt {i}", tuple(Response(text) for text in texts)))
        better[f"prompt {i}"] = rng.choice(texts)
    return groups, better


def label(store: Store, people: dict[int, Simulated], better: dict[str, str], settings: QueueSettings) -> None:
    queue = Queue(store, settings)
    for person, mind in people.items():
        count = 0
        while result := queue.next(person, 10):
            for one in result:
                request = mind.choose(better[str(one.prompt)], one.left.text, one.right.text, count)
                queue.vote(person, one.id, request)
                count += 1


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, int]]:
    """Six people of known habits over the same 80 pairs."""
    store = Store.open(tmp_path_factory.mktemp("labels") / "labels.db")
    groups, better = world(80, 2)
    store.add_tasks(groups)
    minds = {
        "sound": Simulated(1), "sound too": Simulated(2), "sideways": Simulated(3, left=0.5),
        "long": Simulated(4, longer=0.6), "random": Simulated(5, flip=0.5), "fast": Simulated(6, fast=True),
    }  # fmt: skip
    names = {name: store.invite(name).annotator for name in minds}
    label(store, {names[name]: mind for name, mind in minds.items()}, better,
          QueueSettings(overlap=6, audit_share=0, repeat_share=0.1))  # fmt: skip
    return store, names


@pytest.mark.slow
def test_planted_habits_are_recovered_within_their_intervals(labelled: tuple[Store, dict[str, int]]) -> None:
    store, names = labelled
    rows = {person.name: row for person, row in summary(store).annotators}
    assert len(rows) == len(names)
    left = rows["sideways"].left
    assert left is not None and left.low <= 0.75 <= left.high and left.low > 0.5
    for name in ("sound", "sound too", "random", "fast"):
        left = rows[name].left
        assert left is not None and left.low <= 0.5 <= left.high
    assert rows["long"].longer is not None and rows["long"].longer.low > 0
    for name in ("sound", "sound too", "fast"):
        longer = rows[name].longer
        assert longer is not None and longer.low <= 0 <= longer.high
    assert rows["fast"].fast == 1 and rows["sound"].fast == 0
    groups, votes, better = store.tasks(), store.votes(), world(80, 2)[1]
    for name, right in (("sound", 0.9), ("sound too", 0.9), ("random", 0.5)):
        # the others' majority errs too: one who is right in a share p agrees with it in p·q + (1 − p)(1 − q)
        sure = []
        for task, group in groups.items():
            task_votes = [one for one in votes if one.task == task and one.counts and not one.repeat]
            sides = [
                2 * one.probability - 1
                for one in task_votes
                if one.annotator != names[name] and one.probability in (0, 1)
            ]
            if sum(sides):
                sure.append(group.responses[int(sum(sides) < 0)].text == better[str(group.prompt)])
        q = sum(sure) / len(sure)
        agrees = rows[name].agrees
        assert agrees is not None and agrees.low <= right * q + (1 - right) * (1 - q) <= agrees.high
    steady = rows["sound"].steady / rows["sound"].repeats
    assert rows["sound"].repeats >= 5 and steady >= 0.6


@pytest.mark.slow
def test_those_with_habits_are_flagged_and_the_others_are_not(labelled: tuple[Store, dict[str, int]]) -> None:
    rows = {person.name: row for person, row in summary(labelled[0]).annotators}
    assert any("left side" in flag for flag in rows["sideways"].flags)
    assert any("faster" in flag for flag in rows["fast"].flags)
    assert rows["sound"].flags == rows["sound too"].flags == []


def test_tasks_of_one_prompt_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    easy = np.repeat(rng.random(20) < 0.5, 15)  # 20 prompts with 15 tasks each; those of a prompt are alike
    tasks = [Counter({"first": 2}) if agreed else Counter({"first": 1, "second": 1}) for agreed in easy]
    alone, together = agreement(tasks), agreement(tasks, prompts=[str(task // 15) for task in range(300)])
    assert alone.interval is not None and together.interval is not None and alone.alpha == together.alpha
    widths = [high - low for low, high in (alone.interval, together.interval)]
    assert widths[1] > 2.5 * widths[0]  # √15 times as wide, about
    assert agreement(tasks, prompts=[str(task) for task in range(300)]) == alone


def balanced() -> AnnotatorReport:
    """Of 60 votes, half of them for the left side."""
    group = Group("p", (Response("a b"), Response("c d")))
    votes = [vote(i, "first", swapped=i % 2 == 0) for i in range(60)]
    return annotator_report(votes, {i: group for i in range(60)}, {})


@pytest.mark.parametrize(
    ("figures", "at"),
    [
        (lambda rng: {"fast": rng.binomial(60, MOST_FAST) / 60, "timed": 60}, 60),
        (lambda rng: {"agrees": Share.of(rng.random(40) < 0.5)}, 40),
        (lambda rng: {"repeats": 12, "steady": int(rng.binomial(12, STEADY))}, 12),
    ],
    ids=["fast", "agrees", "repeats"],
)
def test_a_flag_is_raised_by_accident_at_the_stated_rate(figures: Any, at: int) -> None:
    plain = balanced()
    assert plain.flags == []
    rng = np.random.default_rng(at)
    flagged = sum(bool(replace(plain, **figures(rng)).flags) for _ in range(2000))
    assert flagged <= 0.015 * 2000  # at the level; discrete counts stay below it


def test_habits_are_flagged() -> None:
    plain = balanced()
    for figures in ({"fast": 0.6, "timed": 60}, {"agrees": Share.of([1] * 8 + [0] * 32)}, {"repeats": 12, "steady": 2}):
        assert len(replace(plain, **figures).flags) == 1


def test_an_unbiased_annotator_is_flagged_for_sides_at_the_stated_rate() -> None:
    group = Group("p", (Response("a b"), Response("c d")))
    flagged = 0
    for seed in range(300):
        rng = random.Random(seed)
        votes = [vote(i, rng.choice(["first", "second"]), swapped=rng.random() < 0.5) for i in range(50)]
        flagged += bool(annotator_report(votes, {i: group for i in range(50)}, {}).flags)
    assert flagged <= 9  # 1 % of 300 is 3


def test_a_disagreement_is_listed_until_an_admin_adjudicates_it(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "labels.db")
    groups, _ = world(3)
    store.add_tasks(groups)
    queue = Queue(store, QueueSettings(overlap=2, audit_share=0, repeat_share=0))
    first, second, admin = (store.invite(role=role).annotator for role in ("annotator", "annotator", "admin"))
    for person in (first, second):
        for i, one in enumerate(queue.next(person, 3)):
            longer = "left" if len(one.left.text) > len(one.right.text) else "right"
            shorter = "right" if longer == "left" else "left"
            queue.vote(person, one.id, VoteRequest(f"vote-{person}-{i}", longer if i or person == first else shorter))
    (result,) = disagreements(store)
    assert result.answers == {"first": 1, "second": 1}
    queue.adjudicate(admin, result.task, "tie", "adjudication-key")
    assert disagreements(store) == []
    assert summary(store).adjudicated == 1


def test_a_pair_that_somebody_reported_or_skipped_is_shown_with_the_reason_until_it_is_decided(
    store: Store, pairs: Pairs
) -> None:
    store.add_tasks(pairs(4))
    queue = Queue(store, QueueSettings(overlap=2, audit_share=0, repeat_share=0))
    one, two, admin = (store.invite(role=role).annotator for role in ("annotator", "annotator", "admin"))
    tasks = [shown.task for shown in queue.next(one, 4)]
    for person in (one, two):
        for shown in queue.next(person, 4):
            number, key = tasks.index(shown.task), f"the-key-{person}-{shown.id}"
            if number == 0:
                queue.report(person, shown.id, key, reason=f"broken, says {person}")
            elif number == 1 and person == one:
                queue.skip(person, shown.id, key)
            else:
                left = (number == 3 and person == one) != (shown.left.text.startswith("answer"))
                queue.vote(person, shown.id, VoteRequest(key, "left" if left else "right"))
    rows = disagreements(store)
    assert [row.task for row in rows] == [tasks[0], tasks[3], tasks[1]]
    assert rows[0].answers == {"report": 2} and rows[0].reasons == [f"broken, says {one}", f"broken, says {two}"]
    assert sum(rows[1].answers.values()) == 2 and rows[2].answers["skip"] == 1
    for row in rows:
        queue.adjudicate(admin, row.task, "cannot", f"adjudication-{row.task}")
    assert disagreements(store) == []


def test_people_and_judges_are_counted_apart_and_ties_like_other_answers(store: Store, pairs: Pairs) -> None:
    groups = pairs(20)

    def say(name: str, kind: str, probabilities: list[float], principle: str | None = None) -> None:
        results = [LabelResult.of(p, name, principle=principle) for p in probabilities]
        store.record(groups, results, kind=kind)

    soft = [0.7 if i % 2 else 0.2 for i in range(20)]
    say("judge:a", "judge", [0.5, *soft[1:]])
    say("judge:b", "judge", [0.5, *(1 - p for p in soft[1:10]), *soft[10:]])
    result = summary(store)
    assert result.agreement.tasks == 0, "no person has answered"
    assert result.judges.tasks == 20 and result.judges.raw == pytest.approx(11 / 20)
    say("ann", "file", [round(p) for p in soft])
    say("bob", "file", [round(p) for p in soft])
    say("judge:a", "judge", soft, principle="kind")
    again = summary(store)
    assert again.agreement.raw == 1.0 and again.judges.tasks == 20, "a judge by two principles is one judge"
    agrees = {person.alias: report.agrees for person, report in again.annotators}
    assert [agrees[name].share for name in ("ann", "judge:b")] == [1.0, pytest.approx(10 / 20)]  # type: ignore[union-attr]
    assert disagreements(store) == [], "judges do not disagree with people on the admin's page"


def test_figures_do_not_change_when_a_pair_is_swapped() -> None:
    rows = planted(0.2, 0.1, 0, tasks=60)
    turned = [Counter({{"first": "second", "second": "first"}.get(k, k): n for k, n in row.items()}) for row in rows]
    mixed = [one if i % 2 else other for i, (one, other) in enumerate(zip(rows, turned, strict=True))]
    result, again = agreement(rows), agreement(mixed)
    for name in ("raw", "alpha", "interval"):
        assert getattr(result, name) == pytest.approx(getattr(again, name))


def test_without_labels_there_is_no_report(store: Store, pairs: Pairs) -> None:
    store.add_tasks(pairs(2))
    result = summary(store)
    assert (result.tasks, result.labelled, result.agreement.alpha) == (2, 0, None)

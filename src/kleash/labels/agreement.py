"""How far labellers agree, and who answers to the screen in place of the texts.

Which of two responses is called `first` means nothing, so chance is corrected for sides that can be exchanged: a pair
may be turned round without changing any figure here. Formulas: docs/labels.md.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from kleash.data.group import Group
from kleash.evals.preference_report import wilson
from kleash.labels.store import Store, Vote

CATEGORIES = ("first", "second", "tie", "both_bad")
"""What counts as an answer; `cannot` is none."""

FAST = 0.5
"""Read faster than this share of what the text takes at `WORDS_A_MINUTE`: too fast to have read it."""
WORDS_A_MINUTE = 600
FEWEST = 20
"""Nobody is judged by fewer votes."""

RESAMPLES = 1000


def counts(votes: Iterable[Vote]) -> dict[int, Counter[str]]:
    """Answers of each task: those that count, hidden repeats and adjudications apart."""
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for vote in votes:
        if vote.counts and not vote.repeat and not vote.adjudicated and vote.verdict in CATEGORIES:
            found[vote.task][vote.verdict] += 1
    return dict(found)


def krippendorff(table: Float[np.ndarray, "N C"], *, exchangeable: tuple[int, int] | None = None) -> float | None:
    """Krippendorff's alpha for nominal answers, 1 − D_o/D_e (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability").

    Args:
        table: answers of each unit in each category; units with fewer than two answers count for nothing.
        exchangeable: two categories that are one another's mirror image: which is which may be turned round unit by
            unit, so chance expects both equally often. Without it chance expects what was answered.

    Returns:
        1 for perfect agreement, 0 for chance. None where it is undefined: nothing was answered twice, or chance could
        not disagree (all answers in one category that has no mirror).
    """
    twice = table.sum(1) >= 2
    (alpha,) = _alphas(table[twice], np.ones((1, int(twice.sum()))), exchangeable)
    return None if np.isnan(alpha) else float(alpha)


def _alphas(
    table: Float[np.ndarray, "N C"], times: Float[np.ndarray, "B N"], exchangeable: tuple[int, int] | None
) -> Float[np.ndarray, " B"]:
    """Alpha of B samples that hold each unit so many times; NaN where it is undefined."""
    answers = table.sum(1)
    total, seen = times @ answers, times @ table
    agreeing = times @ ((table * (table - 1)).sum(1) / (answers - 1))
    alike = (seen * (seen - 1)).sum(1)
    if exchangeable is not None:
        # two answers drawn at random that are both sided are alike in half of the ways of turning their units
        sides = seen[:, list(exchangeable)]
        sided = sides.sum(1)
        alike = alike - (sides * (sides - 1)).sum(1) + sided * (sided - 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = 1 - alike / (total * (total - 1))
        return np.where(expected > 0, 1 - (1 - agreeing / total) / expected, np.nan)


def agreement(tasks: Sequence[Counter[str]], *, seed: int = 0) -> dict[str, Any]:
    """Agreement of those who answered the same tasks.

    Returns:
        `tasks` answered twice or more; `raw`, the share of pairs of answers that are the same, mean over tasks by
        their number of pairs; `alpha` corrected for exchangeable sides and `alpha_plain` without, each None where it
        is undefined; `interval`, 95 % by resampling tasks, of `alpha`.
    """
    table = np.array([[row[name] for name in CATEGORIES] for row in tasks if row.total() >= 2], dtype=np.float64)
    if not len(table):
        return {"tasks": 0, "raw": None, "alpha": None, "alpha_plain": None, "interval": None}
    same, pairs = (table * (table - 1)).sum(), (table.sum(1) * (table.sum(1) - 1)).sum()
    alpha = krippendorff(table, exchangeable=(0, 1))
    resampled = np.random.default_rng(seed).multinomial(len(table), np.full(len(table), 1 / len(table)), RESAMPLES)
    draws = _alphas(table, resampled.astype(np.float64), (0, 1))
    known = [value for value in draws if not np.isnan(value)]
    return {
        "tasks": len(table),
        "raw": float(same / pairs),
        "alpha": alpha,
        "alpha_plain": krippendorff(table),
        "interval": [float(bound) for bound in np.quantile(known, [0.025, 0.975])] if alpha is not None else None,
    }


def annotator_report(votes: Sequence[Vote], tasks: Mapping[int, Group], consensus: Mapping[int, str]) -> dict[str, Any]:
    """How one person answers.

    Args:
        votes: of one annotator.
        tasks: the pairs they were about.
        consensus: answer of the others, where they agree on one.

    Returns:
        `votes`; `left`, the share of decided votes that went to the left side, with `left_interval` and `left_p`
        (exact, against one half); `longer`, how the log odds of choosing a response grow with the log of its length,
        `longer_interval`; `ties`, share; `repeats` and `steady`, hidden repeats answered and how many of them alike;
        `against`, tasks where the others agree, and `agrees`, the share of them where this one does; `seconds`,
        median; `fast`, the share of votes too fast to have read the text; `skipped`; `undone`; `flags`, in words.
    """
    said = [vote for vote in votes if vote.counts and vote.verdict in CATEGORIES]
    plain = [vote for vote in said if not vote.repeat]
    decided = [vote for vote in plain if vote.verdict in ("first", "second") and vote.swapped is not None]
    left = sum((vote.verdict == "first") != vote.swapped for vote in decided)
    timed = [(vote.seconds, _words(tasks[vote.task])) for vote in plain if vote.seconds is not None]
    fast = [seconds < FAST * 60 * words / WORDS_A_MINUTE for seconds, words in timed]
    first_answers = {vote.task: vote.verdict for vote in plain}
    repeats = [(vote.verdict, first_answers.get(vote.task)) for vote in said if vote.repeat]
    compared = [vote.verdict == consensus[vote.task] for vote in plain if vote.task in consensus]
    report: dict[str, Any] = {
        "votes": len(plain),
        "left": left / len(decided) if decided else None,
        "left_interval": list(wilson(left, len(decided))) if decided else None,
        "left_p": float(stats.binomtest(left, len(decided)).pvalue) if decided else None,
        **length_slope(decided, tasks),
        "ties": sum(vote.verdict in ("tie", "both_bad") for vote in plain) / len(plain) if plain else None,
        "repeats": len(repeats),
        "steady": sum(again == before for again, before in repeats),
        "against": len(compared),
        "agrees": sum(compared) / len(compared) if compared else None,
        "agrees_interval": list(wilson(sum(compared), len(compared))) if compared else None,
        "seconds": float(np.median([seconds for seconds, _ in timed])) if timed else None,
        "fast": sum(fast) / len(fast) if fast else None,
        "skipped": sum(vote.verdict in ("skip", "report") for vote in votes),
        "undone": sum(vote.verdict == "undo" for vote in votes),
    }
    return report | {"flags": _flags(report)}


def length_slope(decided: Sequence[Vote], tasks: Mapping[int, Group]) -> dict[str, Any]:
    """By how much the log odds of choosing a response grow when it is e times as long: logistic regression of the
    choice on log(length of first / length of second) without intercept, Wald's interval over the inverse information.
    """
    none: dict[str, Any] = {"longer": None, "longer_interval": None}
    lengths = [[len(response.text) + 1 for response in tasks[vote.task].responses] for vote in decided]
    x = np.log([first / second for first, second in lengths]) if lengths else np.zeros(0)
    y = np.array([float(vote.verdict == "first") for vote in decided])
    if np.count_nonzero(x) < FEWEST:
        return none
    slope = 0.0
    for _ in range(50):
        p = 1 / (1 + np.exp(-slope * x))
        information = float((x * x * p * (1 - p)).sum())
        if information < 1e-9:
            return none  # they can be told apart without an error
        step = float((x * (y - p)).sum()) / information
        slope += max(-1.0, min(1.0, step))
        if abs(step) < 1e-9:
            half = float(stats.norm.ppf(0.975)) / information**0.5
            return {"longer": slope, "longer_interval": [slope - half, slope + half]}
    return none


def disagreements(store: Store) -> list[dict[str, Any]]:
    """Tasks on which people or judges said different things and no admin has ruled, the most divided first.

    Each with `task`, `group` and `answers`, how often each was given.
    """
    votes = store.votes()
    ruled = {vote.task for vote in votes if vote.adjudicated and vote.counts}
    divided = {task: row for task, row in counts(votes).items() if len(row) > 1 and task not in ruled}
    groups = store.tasks()
    order = sorted(divided, key=lambda task: (divided[task].most_common(1)[0][1] / divided[task].total(), task))
    return [{"task": task, "group": groups[task], "answers": dict(divided[task])} for task in order]


def summary(store: Store) -> dict[str, Any]:
    """What an admin looks at: `tasks`, `labelled`, `votes`, `agreement`, `answers` and, by annotator, `annotators`."""
    votes, tasks = store.votes(), store.tasks()
    answered = counts(votes)
    by_annotator: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        if not vote.adjudicated:
            by_annotator[vote.annotator].append(vote)
    rows = []
    for person in store.annotators():
        own = by_annotator.get(person.id, [])
        others = counts(vote for vote in votes if vote.annotator != person.id)
        report = annotator_report(own, tasks, {task: row for task, row in _consensus(others)})
        rows.append({"id": person.id, "alias": person.alias, "name": person.name, "kind": person.kind,
                     "role": person.role, "revoked": person.revoked, **report})  # fmt: skip
    total = sum(answered.values(), Counter())
    return {
        "tasks": len(tasks),
        "labelled": len(answered),
        "votes": total.total(),
        "answers": dict(total),
        "agreement": agreement(list(answered.values())),
        "adjudicated": sum(vote.adjudicated and vote.counts for vote in votes),
        "annotators": rows,
    }


def _consensus(answered: Mapping[int, Counter[str]]) -> list[tuple[int, str]]:
    """The answer of each task that more than half of its answers are."""
    tops = {task: row.most_common(1)[0] for task, row in answered.items()}
    return [(task, name) for task, (name, number) in tops.items() if 2 * number > answered[task].total()]


def _words(group: Group) -> int:
    return sum(len(text.split()) for text in (group.prompt_text, *(item.text for item in group.responses)))


def _flags(report: Mapping[str, Any]) -> list[str]:
    """What an admin should ask this person about: each holds at the 1 % level, or beyond what reading allows."""
    found: list[str] = []
    if report["votes"] < FEWEST:
        return found
    if report["left"] is not None and report["left_p"] < 0.01:
        side, share = ("left", report["left"]) if report["left"] > 0.5 else ("right", 1 - report["left"])
        found.append(f"chooses the {side} side in {share:.0%} of decided pairs")
    if report["fast"] is not None and report["fast"] > 0.25:
        found.append(f"{report['fast']:.0%} of votes came faster than the text can be read")
    if report["against"] >= FEWEST and report["agrees_interval"][1] < 0.5:
        found.append(f"agrees with the others in {report['agrees']:.0%} of {report['against']} pairs they agree on")
    if report["repeats"] >= 5 and wilson(report["steady"], report["repeats"])[1] < 0.6:
        found.append(f"answered {report['repeats'] - report['steady']} of {report['repeats']} repeats otherwise")
    return found

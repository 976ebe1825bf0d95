"""Agreement of labellers, and how each of them answers.

Which of two responses is called `first` is arbitrary, so chance is corrected for exchangeable sides: a pair may be
swapped without changing any figure here. People and models are counted apart: what two judges agree on says nothing
of people. Formulas: docs/labels.md.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from kleash.data.group import Group, prompt_key
from kleash.evals.estimates import Share, share
from kleash.evals.intervals import number_prompts
from kleash.labels.store import PEOPLE, Annotator, Store, Vote

CATEGORIES = ("first", "second", "tie", "both_bad")
"""Answers; a soft label counts for its more probable side. `cannot` is not an answer."""

TOO_FAST = 0.5
"""A vote that took less than this share of the reading time at `WORDS_A_MINUTE` is too fast to have read the text."""
WORDS_A_MINUTE = 600
FEWEST_VOTES = 20
"""Annotators with fewer votes are not flagged."""
FEWEST_REPEATS = 5
MOST_FAST = 0.25
"""Share of votes that are too fast by accident."""
STEADY = 0.6
"""Least share of hidden repeats that are answered as before."""
LEVEL = 0.01
"""How often an annotator who answers as well as that is flagged, for each flag."""

RESAMPLES = 1000


@dataclass(frozen=True)
class Agreement:
    """Agreement of those who answered the same tasks."""

    tasks: int
    """Tasks with two answers or more."""
    raw: float | None
    """Share of pairs of answers to the same task that are equal."""
    alpha: float | None
    """Krippendorff's α, 1 − D_o/D_e, chance corrected for exchangeable sides; None where it is undefined."""
    alpha_plain: float | None
    """The same without that correction."""
    interval: tuple[float, float] | None
    """Of `alpha`: 95 %, by resampling prompts with their tasks."""


@dataclass(frozen=True)
class LengthSlope:
    """How the log odds of choosing a response grow with the log of its length."""

    slope: float
    """By how much they grow when the response is e times as long."""
    low: float
    """Lower end of Wald's 95 % interval."""
    high: float
    """Upper end."""


@dataclass(frozen=True)
class AnnotatorReport:
    """How one annotator answers. Hidden repeats count only for `repeats` and `steady`."""

    votes: int
    """Answers that count."""
    left: Share | None
    """Share of decided votes for the left side; None without decided votes."""
    left_p: float | None
    """Exact two-sided p-value against one half."""
    longer: LengthSlope | None
    """None where there are too few votes on responses of different length, or length separates them completely."""
    ties: float | None
    """Share of answers that are `tie` or `both_bad`."""
    repeats: int
    """Hidden repeats answered."""
    steady: int
    """Hidden repeats with the same answer as before."""
    agrees: Share | None
    """Of the tasks on which the others agree, the share with the same answer here; None without such tasks."""
    seconds: float | None
    """Median time of a vote."""
    fast: float | None
    """Share of the timed votes too fast to have read the text: less than `TOO_FAST` · words / `WORDS_A_MINUTE`
    minutes."""
    timed: int
    """Votes with a time."""
    skipped: int
    undone: int

    @property
    def flags(self) -> list[str]:
        """What an admin should ask this person about. Each is an exact binomial test at the 1 % level, `LEVEL`:
        of sides chosen by a coin; of at most `MOST_FAST` of votes too fast; of agreement in half of the pairs; of
        `STEADY` of the repeats answered as before.
        """
        if self.votes < FEWEST_VOTES:
            return []
        flags = []
        if self.left is not None and self.left_p is not None and self.left_p < LEVEL:
            side, part = ("left", self.left.share) if self.left.share > 0.5 else ("right", 1 - self.left.share)
            flags.append(f"chooses the {side} side in {part:.0%} of decided pairs")
        if self.fast is not None and stats.binom.sf(round(self.fast * self.timed) - 1, self.timed, MOST_FAST) < LEVEL:
            flags.append(f"{self.fast:.0%} of votes are faster than the text can be read")
        agrees = self.agrees
        if agrees is not None and agrees.pairs >= FEWEST_VOTES and _few(agrees.share * agrees.pairs, agrees.pairs, 0.5):
            flags.append(f"agrees with the others in {agrees.share:.0%} of {agrees.pairs} pairs they agree on")
        if self.repeats >= FEWEST_REPEATS and _few(self.steady, self.repeats, STEADY):
            flags.append(f"answered {self.repeats - self.steady} of {self.repeats} repeats otherwise")
        return flags


@dataclass(frozen=True)
class Disagreement:
    """A task for an admin to decide: reported, answered differently, or skipped."""

    task: int
    group: Group
    answers: dict[str, int]
    """How often each was given, by people; `report` and `skip` among them."""
    reasons: list[str]
    """Why it was reported or skipped, in people's words."""


@dataclass(frozen=True)
class LabelSummary:
    """The state of a store, for its admin."""

    tasks: int
    labelled: int
    """Tasks with an answer."""
    votes: int
    """Answers that count."""
    answers: dict[str, int]
    """Answers by choice."""
    agreement: Agreement
    """Of people."""
    judges: Agreement
    """Of models, among each other."""
    adjudicated: int
    """Tasks decided by an admin."""
    annotators: list[tuple[Annotator, AnnotatorReport]]


def answer_of(vote: Vote) -> str | None:
    """The answer of a vote, one of `CATEGORIES`; None where it has none."""
    if vote.choice == "soft" and vote.probability is not None:
        return "first" if vote.probability > 0.5 else "second"
    return vote.choice if vote.choice in CATEGORIES else None


def counts(votes: Iterable[Vote]) -> dict[int, Counter[str]]:
    """Answers to each task, one of each labeller: those that count, without hidden repeats and adjudications."""
    last: dict[tuple[int, int], str] = {}
    for vote in votes:
        answer = answer_of(vote)
        if answer is not None and vote.counts and not vote.repeat and not vote.adjudicated:
            last[vote.task, vote.annotator] = answer
    answers: dict[int, Counter[str]] = defaultdict(Counter)
    for (task, _), answer in last.items():
        answers[task][answer] += 1
    return dict(answers)


def krippendorff(table: Float[np.ndarray, "N C"], *, exchangeable: tuple[int, int] | None = None) -> float | None:
    """Krippendorff's alpha for nominal answers, 1 − D_o/D_e (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability").

    Args:
        table: answers of each unit in each category; units with fewer than two answers do not count.
        exchangeable: two categories that are mirror images: in each unit they may be swapped, so chance expects both
            equally often. Without it chance expects the frequencies of the answers.

    Returns:
        1 for perfect agreement, 0 for chance. None where it is undefined: no unit has two answers, or chance could
        not disagree (all answers in one category without a mirror image).
    """
    units = table[table.sum(1) >= 2]
    (alpha,) = _alphas(units, np.ones((1, len(units))), exchangeable)
    return None if np.isnan(alpha) else float(alpha)


def _alphas(
    table: Float[np.ndarray, "N C"], times: Float[np.ndarray, "B N"], exchangeable: tuple[int, int] | None
) -> Float[np.ndarray, " B"]:
    """Alpha of B samples, each of which contains every unit `times` times; NaN where it is undefined."""
    answers = table.sum(1)
    total, by_category = times @ answers, times @ table
    agreeing = times @ ((table * (table - 1)).sum(1) / (answers - 1))
    expected_pairs = (by_category * (by_category - 1)).sum(1)
    if exchangeable is not None:
        # two random answers that both name a side are alike in half of the ways of swapping their units
        sides = by_category[:, list(exchangeable)]
        total_sides = sides.sum(1)
        expected_pairs = expected_pairs - (sides * (sides - 1)).sum(1) + total_sides * (total_sides - 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = 1 - expected_pairs / (total * (total - 1))
        return np.where(expected > 0, 1 - (1 - agreeing / total) / expected, np.nan)


def agreement(tasks: Sequence[Counter[str]], *, prompts: Sequence[str] | None = None, seed: int = 0) -> Agreement:
    """Agreement of those who answered the same tasks.

    Args:
        tasks: answers to each task.
        prompts: the prompt of each task; None: each task has its own.
        seed: of the resampling.
    """
    answered = [place for place, row in enumerate(tasks) if row.total() >= 2]
    table = np.array([[tasks[place][name] for name in CATEGORIES] for place in answered], dtype=np.float64)
    numbers = number_prompts(answered if prompts is None else [prompts[place] for place in answered])
    if not len(table):
        return Agreement(0, None, None, None, None)
    equal, pairs = (table * (table - 1)).sum(), (table.sum(1) * (table.sum(1) - 1)).sum()
    alpha = krippendorff(table, exchangeable=(0, 1))
    return Agreement(
        tasks=len(table),
        raw=float(equal / pairs),
        alpha=alpha,
        alpha_plain=krippendorff(table),
        interval=None if alpha is None else _alpha_interval(table, numbers, seed),
    )


def _alpha_interval(table: Float[np.ndarray, "N C"], prompts: Int[np.ndarray, " N"], seed: int) -> tuple[float, float]:
    count = int(prompts.max()) + 1
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    alphas = _alphas(table, times[:, prompts].astype(np.float64), (0, 1))
    low, high = np.quantile(alphas[~np.isnan(alphas)], [0.025, 0.975])
    return float(low), float(high)


def annotator_report(
    votes: Sequence[Vote], tasks: Mapping[int, Group], consensus: Mapping[int, str]
) -> AnnotatorReport:
    """How one annotator answers.

    Args:
        votes: of this annotator.
        tasks: the pairs of these votes.
        consensus: answer of the others to each task on which they agree.
    """
    answers = [vote for vote in votes if vote.counts and answer_of(vote) is not None]
    first_answers = [vote for vote in answers if not vote.repeat]
    decided = [vote for vote in first_answers if vote.choice in ("first", "second") and vote.swapped is not None]
    on_left = [(vote.choice == "first") != vote.swapped for vote in decided]
    before = {vote.task: answer_of(vote) for vote in first_answers}
    repeats = [answer_of(vote) == before.get(vote.task) for vote in answers if vote.repeat]
    times = [(vote.seconds, _words(tasks[vote.task])) for vote in first_answers if vote.seconds is not None]
    ties = [vote.choice in ("tie", "both_bad") for vote in first_answers]
    return AnnotatorReport(
        votes=len(first_answers),
        left=share(on_left),
        left_p=float(stats.binomtest(sum(on_left), len(on_left)).pvalue) if on_left else None,
        longer=length_slope(decided, tasks),
        ties=_mean(ties),
        repeats=len(repeats),
        steady=sum(repeats),
        agrees=share([answer_of(vote) == consensus[vote.task] for vote in first_answers if vote.task in consensus]),
        seconds=float(np.median([seconds for seconds, _ in times])) if times else None,
        timed=len(times),
        fast=_mean([seconds < TOO_FAST * 60 * words / WORDS_A_MINUTE for seconds, words in times]),
        skipped=sum(vote.choice in ("skip", "report") for vote in votes),
        undone=sum(vote.choice == "undo" for vote in votes),
    )


def length_slope(decided: Sequence[Vote], tasks: Mapping[int, Group]) -> LengthSlope | None:
    """Logistic regression of the choice on log(length of first / length of second), without intercept.

    The interval is Wald's, over the inverse information. None where fewer than `FEWEST_VOTES` pairs differ in length,
    or where length separates the choices without an error.
    """
    lengths = [[len(response.text) + 1 for response in tasks[vote.task].responses] for vote in decided]
    x = np.log([first / second for first, second in lengths]) if lengths else np.zeros(0)
    y = np.array([float(vote.choice == "first") for vote in decided])
    if np.count_nonzero(x) < FEWEST_VOTES:
        return None
    slope = 0.0
    for _ in range(50):
        p = 1 / (1 + np.exp(-slope * x))
        information = float((x * x * p * (1 - p)).sum())
        if information < 1e-9:
            return None  # separated
        step = float((x * (y - p)).sum()) / information
        slope += max(-1.0, min(1.0, step))
        if abs(step) < 1e-9:
            half = float(stats.norm.ppf(0.975)) / information**0.5
            return LengthSlope(slope, slope - half, slope + half)
    return None


def disagreements(store: Store) -> list[Disagreement]:
    """Tasks that no admin has adjudicated and that people reported, answered differently, or skipped, in this order;
    the most divided first.
    """
    votes, groups = store.votes(), store.tasks()
    adjudicated = {vote.task for vote in votes if vote.adjudicated and vote.counts}
    of_people = [vote for vote in votes if vote.kind in PEOPLE and vote.task not in adjudicated]
    answers: dict[int, Counter[str]] = defaultdict(Counter, counts(of_people))
    reasons: dict[int, list[str]] = defaultdict(list)
    for vote in of_people:
        if vote.last and not vote.repeat and vote.choice in ("report", "skip"):
            answers[vote.task][vote.choice] += 1
            reasons[vote.task] += [vote.reason] if vote.reason else []

    def place(task: int) -> tuple[bool, bool, float, int]:
        row = Counter({answer: number for answer, number in answers[task].items() if answer in CATEGORIES})
        largest = row.most_common(1)[0][1] / row.total() if row else 1.0
        return "report" not in answers[task], largest == 1, largest, task

    passed = {task for task, row in answers.items() if row["report"] or row["skip"]}
    undecided = passed | {task for task, row in answers.items() if len(row) > 1}
    return [
        Disagreement(task, groups[task], dict(answers[task]), reasons[task]) for task in sorted(undecided, key=place)
    ]


def summary(store: Store) -> LabelSummary:
    """The state of a store, for its admin."""
    votes, tasks = store.votes(), store.tasks()
    people = [vote for vote in votes if vote.kind in PEOPLE]
    by_people = counts(people)
    by_models = counts(vote for vote in votes if vote.kind not in PEOPLE)
    by_annotator: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        if not vote.adjudicated:
            by_annotator[vote.annotator].append(vote)

    def report(person: Annotator) -> AnnotatorReport:
        others = counts(vote for vote in people if vote.annotator != person.id)
        return annotator_report(by_annotator.get(person.id, []), tasks, _consensus(others))

    total = sum([*by_people.values(), *by_models.values()], Counter())
    return LabelSummary(
        tasks=len(tasks),
        labelled=len(by_people.keys() | by_models.keys()),
        votes=total.total(),
        answers=dict(total),
        agreement=agreement(list(by_people.values()), prompts=_prompts(by_people, tasks)),
        judges=agreement(list(by_models.values()), prompts=_prompts(by_models, tasks)),
        adjudicated=sum(vote.adjudicated and vote.counts for vote in votes),
        annotators=[(person, report(person)) for person in store.annotators()],
    )


def _prompts(answers: Iterable[int], tasks: Mapping[int, Group]) -> list[str]:
    """The prompt of each answered task."""
    return [prompt_key(tasks[task].prompt) for task in answers]


def _consensus(answers: Mapping[int, Counter[str]]) -> dict[int, str]:
    """The answer to each task that has more than half of its votes."""
    tops = {task: row.most_common(1)[0] for task, row in answers.items()}
    return {task: choice for task, (choice, number) in tops.items() if 2 * number > answers[task].total()}


def _words(group: Group) -> int:
    return sum(len(text.split()) for text in (group.prompt_text, *(item.text for item in group.responses)))


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _few(hits: float, trials: int, share: float) -> bool:
    """Whether so few hits have a probability below `LEVEL` where each trial has one with this probability."""
    return bool(stats.binom.cdf(round(hits), trials, share) < LEVEL)

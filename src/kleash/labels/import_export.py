"""Import of labels from files, and export to files.

A file is what labellers say now: what they said before adds nothing, something else is a correction. Rows that
contradict each other in one file are a vote each.

An export is frozen: it names the last vote that it includes, so that the same command with `until` writes the same
bytes despite later votes, and its manifest holds the hash of each file.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy import optimize
from scipy.special import expit, logsumexp, roots_hermitenorm

from kleash.content import file_hash
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference, chosen_first, pair_label, pair_of, prompt_key
from kleash.data.row_format import AS_IT_IS, RowFormat
from kleash.errors import DataError, InputError
from kleash.io import write_json
from kleash.labels.labeller import LabelResult
from kleash.labels.left_out import pairs_left_out, votes_left_out
from kleash.labels.store import PEOPLE, Store, Vote, cannot_be_judged

Ties = Literal["half", "davidson", "drop"]
Each = Literal["pair", "vote"]
Kind = Literal["person", "judge", "simulated", "file"]

VOTE_COLUMNS = frozenset(
    "annotators votes adjudications principle reason tags strength guidelines kind".split()
)  # fmt: skip
"""Columns of an export that describe votes."""


@dataclass(frozen=True)
class Imported:
    """What an import added to a store."""

    tasks: int
    """New pairs."""
    votes: int
    """New votes."""
    corrections: int = 0
    """New votes that replace an earlier one of their labeller."""
    contradicted: int = 0
    """Pairs whose rows contradict each other under one name; each row is a vote, as `NAME`, `NAME (2)`, …."""
    repeated: int = 0
    """Rows that say what another row of the file says under the same name; counted once."""
    summaries: int = 0
    """Rows that sum up votes which the store has; left out."""

    def __str__(self) -> str:
        notes = [
            (self.corrections, "corrections of earlier votes"),
            (self.contradicted, "pairs with rows that contradict each other, each row a vote"),
            (self.repeated, "rows that repeat another, counted once"),
            (self.summaries, "rows that sum up votes of this store, left out"),
        ]
        parts = [f"{self.tasks} new pairs", f"{self.votes} new votes"]
        return ", ".join([*parts, *(f"{number} {text}" for number, text in notes if number)])


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export."""

    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of an export; written as `labels.json` in its folder."""

    until: int
    """Id of the last vote included."""
    ties: Ties
    each: Each
    test_share: float
    seed: int
    of_annotators: list[str]
    """Annotators, by alias or name, that it was limited to; empty: all."""
    of_kinds: list[Kind]
    """Kinds of labellers that it was limited to; empty: all."""
    store: str
    """Hash of the store's votes up to `until`: which store it came from."""
    files: dict[str, ExportedFile]
    """By name."""
    answers: dict[str, int]
    """Votes by choice."""
    guidelines: dict[str, int]
    """Votes by the version of the guidelines that they were made under; `None` where there were none."""
    annotators: dict[str, int]
    """Votes by annotator."""
    left_out: dict[str, int]
    """Pairs that are in no file, by reason."""
    pairs: int = 0
    """Pairs in the store."""
    votes_left_out: dict[str, int] = field(default_factory=dict)
    """Votes that no row counts, by reason."""

    def __str__(self) -> str:
        files = ", ".join(f"{name} {file.rows}" for name, file in self.files.items())
        parts = [f"{files} rows, of {self.pairs} pairs"]
        for what, left_out in (("pairs", self.left_out), ("votes", self.votes_left_out)):
            reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
            parts.append(f"{what} left out: {reasons or 'none'}")
        return "; ".join(parts)


@dataclass(frozen=True)
class _Answer:
    """A label of a row about a pair."""

    pair: Group
    p: float
    """P(response 0 ≻ response 1) in the order of the pair's task."""
    task: int
    swapped: bool
    name: str
    principle: str | None

    @property
    def voter(self) -> tuple[int, str, str | None]:
        """Whose answer it is, on what; answers of one voter in one file are equal or contradict each other."""
        return self.task, self.name, self.principle


def import_labels(
    store: Store, source: str | Path, *, annotator: str | None = None, row_format: RowFormat = AS_IT_IS
) -> Imported:
    """Add the pairs of a file as tasks, and their labels as votes.

    A label that the store has already from the same labeller adds nothing, and a different one replaces it. Rows of one
    file that contradict each other under one name are a vote each. A row of an export or of `kleash ask` that sums up
    votes which the store has is left out.

    Args:
        store: the store to add to.
        source: a file that `read_groups` reads. A preference is one vote, a ranking or scores one vote per pair.
        annotator: name for votes of rows without an annotator; None: the file's name.
        row_format: how the rows are read.
    """
    pairs = []
    for row, group in enumerate(read_groups(source, row_format=row_format), start=1):
        if len(group.responses) < 2:
            raise DataError(f"{source} row {row}: has {len(group.responses)} responses; give two or more to compare")
        numbers = combinations(range(len(group.responses)), 2)
        pairs += [(pair_of(group, i, j), pair_label(group, i, j)) for i, j in numbers]
    tasks = store.add_tasks(_as_task(pair) for pair, _ in pairs)
    before = [vote for vote in store.votes() if vote.counts]
    answers, summaries = _answers(store, pairs, annotator or Path(str(source)).name, before)
    by_voter: dict[tuple[int, str, str | None], list[_Answer]] = defaultdict(list)
    for answer in answers:
        by_voter[answer.voter].append(answer)
    voted = {(vote.task, vote.alias, vote.principle): vote.probability for vote in before}
    votes = repeated = contradicted = 0
    for kind in ("judge", "file"):
        rows = []
        for same in by_voter.values():
            if _kind_of(same[0]) != kind:
                continue
            if all(abs(answer.p - same[0].p) < 1e-9 for answer in same):
                rows.append(same[0])
                repeated += len(same) - 1
            else:
                rows += _by_voters(same, voted)
                contradicted += 1
        results = [
            LabelResult.of(1 - row.p if row.swapped else row.p, row.name, principle=row.principle,
                           reason=_text(row.pair, "reason"))
            for row in rows
        ]  # fmt: skip
        votes += store.record([replace(row.pair, label=None) for row in rows], results, kind=kind)
    added = sum(vote.counts for vote in store.votes()) - len(before)
    return Imported(tasks, votes, votes - added, contradicted, repeated, summaries)


def _answers(
    store: Store, pairs: Sequence[tuple[Group, float | None]], name: str, votes: Sequence[Vote]
) -> tuple[list[_Answer], int]:
    """The labels of rows, and how many rows sum up votes that the store has."""
    voters: dict[int, set[str]] = defaultdict(set)
    for vote in votes:
        voters[vote.task] |= {vote.alias, "people"} if vote.kind == "person" else {vote.alias}
    answers, summaries = [], 0
    for (pair, p), match in zip(pairs, store.find([pair for pair, _ in pairs]), strict=True):
        if p is None or match is None:
            continue
        named = getattr(pair.label, "annotator", None)
        names = [named] if named == "people" else pair.columns.get("annotators") if named is None else None
        if isinstance(names, list) and names and set(map(str, names)) <= voters[match.task]:
            summaries += 1
            continue
        p_of_task = 1 - p if match.swapped else p
        answers.append(_Answer(pair, p_of_task, match.task, match.swapped, named or name, _text(pair, "principle")))
    return answers, summaries


def _by_voters(answers: Sequence[_Answer], voted: Mapping[tuple[int, str, str | None], float | None]) -> list[_Answer]:
    """Contradicting answers under one name, each under a name of its own; under the one that has said so before, if
    any, so that the same file in another order corrects nothing.
    """
    free = [answers[0].name, *(f"{answers[0].name} ({n})" for n in range(2, len(answers) + 1))]
    renamed, others = [], []
    for answer in answers:
        before = [(name, voted.get((answer.task, name, answer.principle))) for name in free]
        name = next((name for name, p in before if p is not None and abs(p - answer.p) < 1e-9), None)
        if name is None:
            others.append(answer)
        else:
            free.remove(name)
            renamed.append(replace(answer, name=name))
    return renamed + [replace(answer, name=name) for answer, name in zip(others, free, strict=True)]


def _as_task(pair: Group) -> Group:
    """A pair without what a row of an export says of votes, which is not of the pair."""
    columns = pair.columns
    if isinstance(columns.get("annotators"), list) or columns.get("kind") in get_args(Kind):
        columns = {name: value for name, value in columns.items() if name not in VOTE_COLUMNS}
    return replace(pair, label=None, columns=columns)


def _kind_of(answer: _Answer) -> str:
    """The kind of a labeller that the store does not know: a judge's name says so, or the column of an export."""
    is_model = answer.name.startswith("judge:") or answer.pair.columns.get("kind") in ("judge", "simulated")
    return "judge" if is_model else "file"


def _text(pair: Group, column: str) -> str | None:
    value = pair.columns.get(column)
    return value if isinstance(value, str) else None


def export_labels(
    store: Store, out: Path, *, ties: Ties = "half", each: Each = "pair", test_share: float = 0.0,
    seed: int = 0, until: int | None = None, annotators: Sequence[str] = (), kinds: Sequence[Kind] = (),
) -> Manifest:  # fmt: skip
    """Write labels as preference files that every stage reads.

    Args:
        store: the store to read.
        out: a folder: `train.jsonl`, with `test_share` also `test.jsonl`, `both-bad.jsonl` where there are such pairs,
            and `labels.json`.
        ties: `half` makes a tie one half; `davidson` fits Davidson's model to the votes of all pairs (see `davidson`);
            `drop` leaves ties out.
        each: one row per pair, its votes as one soft probability; or one row per vote, with its annotator and
            principle. An adjudication replaces the votes of its pair.
        test_share: of prompts, by hash: a prompt's pairs are all on one side, and stay there as labels come in.
        seed: of that split.
        until: id of the last vote to include, an earlier manifest's `until`; None: all votes.
        annotators: only votes of these annotators, by alias or name; empty: all.
        kinds: only votes of labellers of these kinds; empty: all.

    Returns:
        The manifest, as in `labels.json`.

    Raises:
        DataError: the store has no labels, or not as many votes, or Davidson's model cannot be fitted.
        InputError: no annotator has that alias or name.
    """
    last = store.last_vote()
    until = last if until is None else until
    if until > last:  # which votes those up to there are is not settled
        raise DataError(f"until is {until}, and the last vote of the store is {last}; give that, or leave it out")
    tasks = store.tasks()
    all_votes = store.votes(until=until)
    ruled_out = _ruled_out(all_votes)
    chosen = _chosen(store, annotators)
    is_chosen = lambda vote: vote.annotator in chosen and (not kinds or vote.kind in kinds)  # noqa: E731
    by_task = _valid_votes(vote for vote in all_votes if vote.task not in ruled_out and is_chosen(vote))
    if not by_task:
        whose = f" of {', '.join([*annotators, *kinds])}" if annotators or kinds else ""
        raise DataError(f"the store has no labels{whose} yet; label some pairs with `kleash label`, then export")
    both_bad = {task for task, votes in by_task.items() if _is_both_bad(votes)}
    preferences = {
        task: [vote for vote in votes if vote.probability is not None and (ties != "drop" or vote.probability != 0.5)]
        for task, votes in by_task.items()
        if task not in both_bad
    }
    preferences = {task: votes for task, votes in preferences.items() if votes}
    if ties == "davidson":
        probabilities = davidson(preferences)
    else:
        probabilities = {task: _mean(votes) for task, votes in preferences.items()}
    rows: dict[str, list[Group]] = defaultdict(list)
    for task in sorted(preferences):
        name = "test" if _is_test(tasks[task], test_share, seed) else "train"
        rows[name] += _rows(tasks[task], preferences[task], probabilities[task], each)
    rows["both-bad"] = [replace(tasks[task], label=None) for task in sorted(both_bad)]
    votes = [vote for task_votes in by_task.values() for vote in task_votes]
    both_bad_votes = [vote for task in both_bad for vote in by_task[task] if vote.choice == "both_bad"]
    in_rows = {vote.id for vote in chain(both_bad_votes, *preferences.values())}
    manifest = Manifest(
        until=until,
        ties=ties,
        each=each,
        test_share=test_share,
        seed=seed,
        of_annotators=list(annotators),
        of_kinds=list(kinds),
        store=store_hash(store, until),
        files=_write(rows, out),
        answers=_counts(vote.choice for vote in votes),
        guidelines=_counts(str(vote.guideline) for vote in votes),
        annotators=_counts(vote.alias for vote in votes),
        left_out=pairs_left_out(tasks, all_votes, in_files=preferences.keys() | both_bad, is_chosen=is_chosen),
        pairs=len(tasks),
        votes_left_out=votes_left_out(
            all_votes, in_rows=in_rows, ruled_out=ruled_out, drops_ties=ties == "drop", is_chosen=is_chosen
        ),
    )
    write_json(out / "labels.json", asdict(manifest))
    return manifest


def votes_of(store: Store, *, kinds: Sequence[Kind] = ()) -> dict[int, list[Vote]]:
    """The votes on each task that an export with `each="vote"` would write, and those for both bad.

    Raises:
        DataError: there are none.
    """
    votes = store.votes()
    ruled_out = _ruled_out(votes)
    by_task = _valid_votes(vote for vote in votes if vote.task not in ruled_out and (not kinds or vote.kind in kinds))
    if not by_task:
        whose = f" of {', '.join(kinds)}" if kinds else ""
        raise DataError(f"the store has no labels{whose} yet; label some pairs with `kleash label` first")
    return by_task


def store_hash(store: Store, until: int) -> str:
    """Hash of the keys of all votes up to one: stores with the same votes have the same, others another."""
    return hashlib.sha256("\n".join(vote.key for vote in store.votes(until=until)).encode()).hexdigest()


def davidson(votes: Mapping[int, Sequence[Vote]]) -> dict[int, float]:
    """P(first ≻ second | no tie) of each pair by Davidson's model of ties.

    With d the difference of a pair's worths, P(first) : P(second) : P(tie) = e^{d/2} : e^{−d/2} : ν (Davidson 1970,
    "On extending the Bradley–Terry model to accommodate ties", eq. 2.3). A single vote would make d infinite, so d is
    drawn from N(0, s²): ν and s maximise the likelihood of all votes, and the probability of a pair is the mean of σ(d)
    given its votes. A soft vote counts as its probability of each side.

    Raises:
        DataError: no pair has two votes; ν and s cannot be identified then.
    """
    table = np.array([_sides(row) for row in votes.values()])
    if not (table.sum(1) >= 2).any():
        raise DataError(
            "--ties davidson needs pairs with two votes or more, and there are none; choose --ties half, or collect "
            "more votes"
        )
    nodes, weights = roots_hermitenorm(61)
    log_weights = np.log(weights / weights.sum())

    def each(nu: float, s: float) -> Float[np.ndarray, "N Q"]:
        half = s * nodes / 2
        scores = np.stack([half, -half, np.full_like(half, np.log(nu))])
        return table @ (scores - logsumexp(scores, axis=0)) + log_weights

    def loss(parameters: Float[np.ndarray, " 2"]) -> float:
        nu, s = np.exp(parameters)
        return -float(logsumexp(each(nu, s), axis=1).sum())

    start = np.log([max(0.05, 2 * table[:, 2].sum() / max(1.0, table[:, :2].sum())), 1.5])
    nu, s = np.exp(optimize.minimize(loss, start, method="L-BFGS-B", bounds=[(-7, 4), (-3, 2.5)]).x)
    joint = each(nu, s)
    posterior = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    return dict(zip(votes, (posterior @ expit(s * nodes)).tolist(), strict=True))


def _write(rows: Mapping[str, list[Group]], out: Path) -> dict[str, ExportedFile]:
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, groups in rows.items():
        if groups:
            path = out / f"{name}.jsonl"
            write_groups(groups, path)
            files[path.name] = ExportedFile(len(groups), file_hash(path))
    return files


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _chosen(store: Store, names: Sequence[str]) -> set[int]:
    """Ids of the annotators with these aliases or names; all where none is named."""
    annotators = store.annotators()
    unknown = set(names) - {name for one in annotators for name in (one.alias, one.name)}
    if unknown:
        aliases = ", ".join(
            one.alias if one.name in ("", one.alias) else f"{one.alias} ({one.name})" for one in annotators
        )
        raise InputError(f"no annotator is called {', '.join(sorted(unknown))}; there are: {aliases or 'none'}")
    return {one.id for one in annotators if not names or one.alias in names or one.name in names}


def _valid_votes(votes: Iterable[Vote]) -> dict[int, list[Vote]]:
    """Labels of each task: only the adjudication where there is one. Hidden repeats are for checking and left out."""
    by_task: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        if vote.counts and not vote.repeat and (vote.probability is not None or vote.choice == "both_bad"):
            by_task[vote.task].append(vote)
    return {task: [vote for vote in same_task if vote.adjudicated] or same_task for task, same_task in by_task.items()}


def _ruled_out(votes: Iterable[Vote]) -> set[int]:
    """Tasks that cannot be judged, as an admin ruled, or more than half of the people who voted say."""
    by_task: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        if vote.counts and not vote.repeat and vote.kind in PEOPLE:
            by_task[vote.task].append(vote)
    return {task for task, same_task in by_task.items() if cannot_be_judged(same_task)}


def _is_both_bad(votes: Sequence[Vote]) -> bool:
    return 2 * sum(vote.choice == "both_bad" for vote in votes) >= len(votes)


def _mean(votes: Sequence[Vote]) -> float:
    return float(np.mean([vote.probability for vote in votes]))


def _sides(votes: Sequence[Vote]) -> list[float]:
    """Votes for each side, and ties."""
    decided = [vote.probability for vote in votes if vote.probability is not None and vote.choice != "tie"]
    first = float(sum(decided))
    return [first, len(decided) - first, float(sum(vote.choice == "tie" for vote in votes))]


def _rows(task: Group, votes: Sequence[Vote], probability: float, each: Each) -> list[Group]:
    if each == "pair":
        names = sorted({vote.alias for vote in votes})
        adjudications = sum(vote.adjudicated for vote in votes)
        columns = {"votes": len(votes), "annotators": names, "adjudications": adjudications or None}
        return [_row(task, probability, None, columns)]
    return [
        _row(
            task,
            vote.probability or 0.0,
            vote.alias,
            {
                "principle": vote.principle,
                "reason": vote.reason or None,
                "tags": list(vote.tags) or None,
                "strength": vote.strength,
                "guidelines": vote.guideline,
                "kind": vote.kind,
            },
        )
        for vote in votes
    ]


def _row(task: Group, probability: float, annotator: str | None, more: Mapping[str, Any]) -> Group:
    columns = {**task.columns, **{name: value for name, value in more.items() if value is not None}}
    return chosen_first(replace(task, label=Preference(probability, annotator), columns=columns))


def _is_test(task: Group, share: float, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}/{prompt_key(task.prompt)!r}".encode()).hexdigest()
    return int(digest[:12], 16) / 16**12 < share

"""Import of labels from files, and export to files.

An export is frozen: it names the last vote that it includes, so that the same command with `until` writes the same
bytes despite later votes, and its manifest holds the hash of each file.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy import optimize
from scipy.special import expit, logsumexp, roots_hermitenorm

from kleash.content import file_hash
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference, Scores, chosen_first
from kleash.errors import DataError
from kleash.io import write_json
from kleash.labels.labeller import LabelResult
from kleash.labels.store import Store, Vote

Ties = Literal["half", "davidson", "drop"]
Each = Literal["pair", "vote"]


@dataclass(frozen=True)
class Imported:
    """What an import added to a store."""

    tasks: int
    """New pairs."""
    votes: int
    """New votes."""


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
    files: dict[str, ExportedFile]
    """By name."""
    answers: dict[str, int]
    """Votes by choice."""
    guidelines: dict[str, int]
    """Votes by the version of the guidelines that they were made under; `None` where there were none."""
    annotators: dict[str, int]
    """Votes by annotator."""


def import_labels(store: Store, source: str | Path, *, annotator: str | None = None) -> Imported:
    """Add the pairs of a file as tasks, and their labels as votes; a pair or vote that exists already is kept once.

    Args:
        store: the store to add to.
        source: a file that `read_groups` reads. A preference is one vote, a ranking or scores one vote per pair.
        annotator: name for votes of rows without an annotator; None: the file's name.
    """
    pairs = []
    for row, group in enumerate(read_groups(source), start=1):
        if len(group.responses) < 2:
            raise DataError(f"{source} row {row}: has {len(group.responses)} responses; give two or more to compare")
        pairs += [(_pair(group, i, j), _label(group, i, j)) for i, j in combinations(range(len(group.responses)), 2)]
    before = len(store.tasks())
    store.add_tasks([pair for pair, p in pairs if p is None])
    labelled = [(pair, p) for pair, p in pairs if p is not None]
    name = annotator or Path(str(source)).name
    results = [LabelResult.of(p, getattr(pair.label, "annotator", None) or name) for pair, p in labelled]
    votes = store.record([replace(pair, label=None) for pair, _ in labelled], results, kind="file")
    return Imported(len(store.tasks()) - before, votes)


def export_labels(
    store: Store, out: Path, *, ties: Ties = "half", each: Each = "pair", test_share: float = 0.0,
    seed: int = 0, until: int | None = None,
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

    Returns:
        The manifest, as in `labels.json`.

    Raises:
        DataError: the store has no labels, or Davidson's model cannot be fitted.
    """
    until = store.last_vote() if until is None else until
    tasks = store.tasks()
    by_task = _valid_votes(store.votes(until=until))
    if not by_task:
        raise DataError("the store has no labels yet; label some pairs with `kleash label`, then export")
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
    manifest = Manifest(
        until=until,
        ties=ties,
        each=each,
        test_share=test_share,
        seed=seed,
        files=_write(rows, out),
        answers=_counts(vote.choice for vote in votes),
        guidelines=_counts(str(vote.guideline) for vote in votes),
        annotators=_counts(vote.alias for vote in votes),
    )
    write_json(out / "labels.json", asdict(manifest))
    return manifest


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


def _valid_votes(votes: Iterable[Vote]) -> dict[int, list[Vote]]:
    """Labels of each task: only the adjudication where there is one. Hidden repeats are for checking and left out."""
    by_task: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        if vote.counts and not vote.repeat and (vote.probability is not None or vote.choice == "both_bad"):
            by_task[vote.task].append(vote)
    return {task: [vote for vote in same_task if vote.adjudicated] or same_task for task, same_task in by_task.items()}


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
            },
        )
        for vote in votes
    ]


def _row(task: Group, probability: float, annotator: str | None, more: Mapping[str, Any]) -> Group:
    columns = {**task.columns, **{name: value for name, value in more.items() if value is not None}}
    return chosen_first(replace(task, label=Preference(probability, annotator), columns=columns))


def _is_test(task: Group, share: float, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}/{task.prompt!r}".encode()).hexdigest()
    return int(digest[:12], 16) / 16**12 < share


def _pair(group: Group, i: int, j: int) -> Group:
    return replace(group, responses=(group.responses[i], group.responses[j]))


def _label(group: Group, i: int, j: int) -> float | None:
    """P(response i ≻ response j) by the row's own label; None where it has none."""
    label = group.label
    if isinstance(label, Preference):
        return label.probability
    values = label.values if isinstance(label, Scores) else [-rank for rank in label.ranks] if label else None
    return None if values is None else float(np.sign(values[i] - values[j]) + 1) / 2

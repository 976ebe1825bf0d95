"""Labels out of files and into files.

An export is frozen: it names the last vote it knows, so that the same command with `until` writes the same bytes
whatever was voted since, and its manifest holds the hash of each file.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy import optimize
from scipy.special import expit, logsumexp, roots_hermitenorm

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference, Scores, chosen_first
from kleash.errors import DataError
from kleash.labels.labeller import LabelResult
from kleash.labels.store import Store, Vote
from kleash.run import sha256_of, write_json

Ties = Literal["half", "davidson", "drop"]


def import_labels(store: Store, source: str | Path, *, annotator: str | None = None) -> dict[str, int]:
    """Tasks out of a file of groups, and votes where its rows carry labels; a row that is there already is kept once.

    Args:
        store: where to.
        source: a file that `read_groups` reads. A preference is one vote, a ranking or scores one a pair.
        annotator: whose votes they are where a row names nobody; the file's name without it.

    Returns:
        `tasks` and `votes` that are new.
    """
    pairs = []
    for row, group in enumerate(read_groups(source), start=1):
        if len(group.responses) < 2:
            raise DataError(f"{source} row {row}: has {len(group.responses)} responses; give two or more to compare")
        pairs += [(_pair(group, i, j), _said(group, i, j)) for i, j in combinations(range(len(group.responses)), 2)]
    before = len(store.tasks())
    store.add_tasks([pair for pair, said in pairs if said is None])
    labelled = [(pair, said) for pair, said in pairs if said is not None]
    name = annotator or Path(str(source)).name
    verdicts = [
        LabelResult("tie" if said == 0.5 else "verdict", getattr(pair.label, "annotator", None) or name, said)
        for pair, said in labelled
    ]
    votes = store.record([replace(pair, label=None) for pair, _ in labelled], verdicts, kind="file")
    return {"tasks": len(store.tasks()) - before, "votes": votes}


def export_labels(
    store: Store, out: Path, *, ties: Ties = "half", each: Literal["pair", "vote"] = "pair", test_share: float = 0.0,
    seed: int = 0, until: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Labels as preference files that every stage reads.

    Args:
        store: where from.
        out: a folder: `train.jsonl`, with `test_share` also `test.jsonl`, `both-bad.jsonl` where there are such pairs,
            and `labels.json`.
        ties: `half` makes a tie one half; `davidson` fits Davidson's model to the votes of all pairs (see `davidson`);
            `drop` leaves ties out.
        each: a row a pair with the votes on it as one soft probability, or a row a vote, which names its annotator and
            principle. An admin's adjudication stands in place of the votes of its pair.
        test_share: of prompts, by hash: a prompt's pairs are all on one side, and stay there as labels come in.
        seed: of that split.
        until: the last vote to know, an earlier manifest's `until`; today's without it.

    Returns:
        The manifest, as it stands in `labels.json`.

    Raises:
        DataError: no label counts, or Davidson's model cannot be fitted.
    """
    until = store.last_vote() if until is None else until
    tasks = store.tasks()
    by_task = _standing(store.votes(until=until))
    if not by_task:
        raise DataError("the store holds no label yet; label some pairs with `kleash label`, then export")
    worst = {task for task, votes in by_task.items() if _both_bad(votes)}
    sided = {
        task: [vote for vote in votes if vote.probability is not None and (ties != "drop" or vote.probability != 0.5)]
        for task, votes in by_task.items()
        if task not in worst
    }
    sided = {task: votes for task, votes in sided.items() if votes}
    probabilities = davidson(sided) if ties == "davidson" else {task: _mean(votes) for task, votes in sided.items()}
    rows: dict[str, list[Group]] = defaultdict(list)
    for task in sorted(sided):
        name = "test" if _is_test(tasks[task], test_share, seed) else "train"
        rows[name] += _rows(tasks[task], sided[task], probabilities[task], each)
    rows["both-bad"] = [replace(tasks[task], label=None) for task in sorted(worst)]
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, groups in rows.items():
        if groups:
            write_groups(groups, out / f"{name}.jsonl")
            files[f"{name}.jsonl"] = {"rows": len(groups), "sha256": sha256_of(out / f"{name}.jsonl")}
    everyone = [vote for votes in by_task.values() for vote in votes]
    manifest = {
        "until": until,
        "ties": ties,
        "each": each,
        "test_share": test_share,
        "seed": seed,
        "files": files,
        "answers": dict(sorted(Counter(vote.verdict for vote in everyone).items())),
        "guidelines": dict(sorted(Counter(str(vote.guideline) for vote in everyone).items())),
        "annotators": dict(sorted(Counter(vote.alias for vote in everyone).items())),
    }
    write_json(out / "labels.json", manifest)
    return manifest


def davidson(votes: Mapping[int, Sequence[Vote]]) -> dict[int, float]:
    """P(first ≻ second | no tie) of each pair by Davidson's model of ties.

    With d the difference of a pair's worths, P(first) : P(second) : P(tie) = e^{d/2} : e^{−d/2} : ν (Davidson 1970,
    "On extending the Bradley–Terry model to accommodate ties", eq. 2.3). A single vote would make d infinite, so d is
    a draw of N(0, s²): ν and s are those under which all votes are most likely, the probability of a pair is the mean
    of σ(d) given its votes. A soft vote counts as its probability of each side.

    Raises:
        DataError: no pair has two votes; then ν and s cannot be told apart.
    """
    table = np.array([_sides(row) for row in votes.values()])
    if not (table.sum(1) >= 2).any():
        raise DataError("davidson needs pairs with two votes or more, and no pair has; take --ties half, or more votes")
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


def _standing(votes: Iterable[Vote]) -> dict[int, list[Vote]]:
    """Labels of each task: only the adjudication where there is one; hidden repeats are for checking and left out."""
    found: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        if vote.counts and not vote.repeat and (vote.probability is not None or vote.verdict == "both_bad"):
            found[vote.task].append(vote)
    for task, own in found.items():
        found[task] = [vote for vote in own if vote.adjudicated] or own
    return dict(found)


def _both_bad(votes: Sequence[Vote]) -> bool:
    return 2 * sum(vote.verdict == "both_bad" for vote in votes) >= len(votes)


def _mean(votes: Sequence[Vote]) -> float:
    return float(np.mean([vote.probability for vote in votes]))


def _sides(votes: Sequence[Vote]) -> list[float]:
    """Votes for each side, and ties."""
    decided = [vote.probability for vote in votes if vote.probability is not None and vote.verdict != "tie"]
    first = float(sum(decided))
    return [first, len(decided) - first, float(sum(vote.verdict == "tie" for vote in votes))]


def _rows(task: Group, votes: Sequence[Vote], probability: float, each: str) -> list[Group]:
    if each == "pair":
        names = sorted({vote.alias for vote in votes})
        told = {
            "votes": len(votes),
            "annotators": names,
            "adjudications": sum(vote.adjudicated for vote in votes) or None,
        }
        return [_labelled(task, probability, None, told)]
    return [
        _labelled(
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


def _labelled(task: Group, probability: float, annotator: str | None, told: Mapping[str, Any]) -> Group:
    columns = {**task.columns, **{name: value for name, value in told.items() if value is not None}}
    return chosen_first(replace(task, label=Preference(probability, annotator), columns=columns))


def _is_test(task: Group, share: float, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}/{task.prompt!r}".encode()).hexdigest()
    return int(digest[:12], 16) / 16**12 < share


def _pair(group: Group, i: int, j: int) -> Group:
    return replace(group, responses=(group.responses[i], group.responses[j]))


def _said(group: Group, i: int, j: int) -> float | None:
    """P(response i ≻ response j) by the row's own label."""
    label = group.label
    if isinstance(label, Preference):
        return label.probability
    values = label.values if isinstance(label, Scores) else [-rank for rank in label.ranks] if label else None
    return None if values is None else float(np.sign(values[i] - values[j]) + 1) / 2

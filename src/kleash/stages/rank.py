"""Rank: several models compared on the same prompts, from a reward, a judge or votes.

    kleash rank --data a.jsonl b.jsonl c.jsonl --reward runs/held-out-reward --out ranking
    kleash rank --models runs/sft runs/ppo --prompts prompts.jsonl --judge judge.yaml --out ranking
    kleash rank --store labels.db --out ranking

Every two models are compared on the prompts that both have answered; what one lacks is counted and left out. Figures:
`evals/ranking.py`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kleash.chat.judge_prompts import GENERAL, Principle
from kleash.content import Fingerprints
from kleash.data.formats import read_groups, write_rows
from kleash.data.group import MODELS, Group, Preference, Ranking, Response, Scores, pair_label, prompt_key
from kleash.data.row_format import RowFormat
from kleash.errors import ConfigError, DataError, GateError, InputError, listed
from kleash.evals import ranking as figures
from kleash.evals.report_values import as_json
from kleash.labels.open_store import open_store
from kleash.models.compute import Compute
from kleash.progress import Progress
from kleash.rewards.build import build_reward
from kleash.rewards.reward import Reward
from kleash.run import RunFolder
from kleash.stages import generate
from kleash.stages.data_configs import GenerateConfig, RankConfig
from kleash.stages.score import score_groups

if TYPE_CHECKING:
    from kleash.labels.store import Store, Vote

logger = logging.getLogger("kleash")

Responses = dict[str, dict[str, Group]]
"""Model → key of the prompt → its responses."""

SAMPLING = {"n", "temperature", "max_new_tokens", "columns", "as_chat", "seed", "dtype", "device"}
"""Settings that `kleash generate` gets."""

PAIRS_AT_ONCE = 64
"""Pairs between two updates of the progress bar."""


@dataclass(frozen=True)
class Comparison:
    """Two responses to a prompt by different models, and which is better."""

    prompt: str
    """Key of the prompt."""
    first: str
    second: str
    p: float
    """P(first ≻ second)."""
    longer: float
    """Characters of the first minus those of the second."""
    stratum: str
    """The value of the column `by`."""


def run(config: RankConfig, *, reward: Reward | None = None) -> RunFolder:
    """Compare models and write the ranking.

    Args:
        config: the settings.
        reward: a live reward in place of `config.reward`, by whose name it is known.

    Returns:
        The finished run: `results` of run.json holds the ranking, `prompts.jsonl` the wins on each prompt.

    Raises:
        DataError: two models have no prompt in common, a row has no responses or no score, nothing says who wrote what.
        GateError: the judge gave no readable verdict, or its budget is reached.
    """
    folder = RunFolder.open(config.out, stage="rank", config=config, inputs=_votes_so_far(config))
    if folder.finished:
        return folder
    files = config.named("data") or _sampled(config, folder)
    responses: Responses = {}
    if len(files) > 1 or config.reward or config.judge:
        responses = {name: _read(path, config) for name, path in files.items()}
    missing = _missing(responses)
    comparisons, left_out = _compare(config, folder, responses, files, reward)
    if not comparisons:
        raise DataError(f"nothing to compare: no prompt has a verdict on two models ({_reasons(left_out) or 'none'})")
    if any(missing.values()) or left_out:
        lacking = Counter({f"prompts without a response of {name}": count for name, count in missing.items()})
        logger.warning("%s: left out: %s", config.out, _reasons(+lacking + left_out))
    prompts = list(dict.fromkeys(comparison.prompt for comparison in comparisons))
    data = _arrays(comparisons, prompts)
    report = figures.ranking(data, seed=config.seed)
    strata = [comparison.stratum for comparison in comparisons]
    by_stratum = figures.by_stratum(data, strata, seed=config.seed) if config.by else {}
    rows = ({"prompt": prompts[row.prompt], "wins": row.wins, "shift": row.shift} for row in figures.by_prompt(data))
    write_rows(rows, folder.path / "prompts.jsonl")
    return folder.finish(
        **as_json(report), missing=missing, left_out=dict(left_out), by=config.by,
        strata={value: as_json(each) for value, each in by_stratum.items()},
    )  # fmt: skip


# --- responses -------------------------------------------------------------------------------------------------------


def _sampled(config: RankConfig, folder: RunFolder) -> dict[str, str]:
    """A file of responses for each of `models`."""
    files = {}
    for name, model in config.named("models").items():
        out = folder.path / "responses" / f"{name}.jsonl"
        settings = config.model_dump(include=SAMPLING)
        generate.run(GenerateConfig(model=model, data=str(config.prompts), out=out, **settings))
        files[name] = str(out)
    return files


def _read(path: str, config: RankConfig) -> dict[str, Group]:
    """The responses of a file by prompt; those of rows with one prompt together."""
    groups: dict[str, Group] = {}
    sampled = Path(path).is_relative_to(config.out)  # written with the columns of the schemas
    for row, group in enumerate(read_groups(path, row_format=RowFormat() if sampled else _format(config)), start=1):
        if not group.responses or isinstance(group.label, Preference | Ranking):
            raise DataError(
                f"{path} row {row}: has no response of one model; rank reads a file for each model, whose rows have "
                "'response' or 'responses', or one file of comparisons with 'models'"
            )
        if not (config.reward or config.judge or config.store) and not isinstance(group.label, Scores):
            raise DataError(
                f"{path} row {row}: has no 'score'; score it with `kleash score`, or give --reward or --judge"
            )
        key = prompt_key(group.prompt)
        groups[key] = group if key not in groups else _together(groups[key], group)
    return groups


def _format(config: RankConfig) -> RowFormat:
    return RowFormat(config.columns, config.as_chat)


def _together(one: Group, other: Group) -> Group:
    values = [label.values for label in (one.label, other.label) if isinstance(label, Scores)]
    label = Scores((*values[0], *values[1])) if len(values) == 2 else None
    return Group(one.prompt, one.responses + other.responses, label, one.columns)


def _missing(responses: Responses) -> dict[str, int]:
    """How many prompts that another model has answered each lacks."""
    every = {key for groups in responses.values() for key in groups}
    return {name: len(every) - len(groups) for name, groups in responses.items()}


# --- comparisons -----------------------------------------------------------------------------------------------------


def _compare(
    config: RankConfig, folder: RunFolder, responses: Responses, files: Mapping[str, str], reward: Reward | None
) -> tuple[list[Comparison], Counter[str]]:
    """All comparisons, and what was left out by reason."""
    left_out: Counter[str] = Counter()
    if config.judge:
        return list(_by_judge(config, folder, responses, left_out)), left_out
    if config.store and responses:
        return list(_by_votes(config, responses, left_out)), left_out
    if config.store:
        return list(_by_store(config, left_out)), left_out
    if responses:
        scores = {name: _scores(groups, config, reward) for name, groups in responses.items()}
        return list(_by_scores(responses, scores, config.by, left_out)), left_out
    (path,) = files.values()
    return list(_by_rows(path, config, left_out)), left_out


def _scores(groups: Mapping[str, Group], config: RankConfig, reward: Reward | None) -> dict[str, Sequence[float]]:
    if reward is None and config.reward is None:
        return {key: group.label.values for key, group in groups.items() if isinstance(group.label, Scores)}
    reward = reward or build_reward(str(config.reward), compute=Compute(config.device, config.dtype))
    ordered = sorted(groups, key=lambda key: len(groups[key].responses))  # blocks of one K
    return dict(zip(ordered, score_groups(reward, [groups[key] for key in ordered])[0], strict=True))


def _by_scores(
    responses: Responses,
    scores: Mapping[str, Mapping[str, Sequence[float | None]]],
    by: str | None,
    left_out: Counter[str],
) -> Iterator[Comparison]:
    """One comparison for each prompt and pair of models: the share of pairs of responses that the first wins."""
    for key, one, other in _pairs(responses):
        wins, lengths = [], []
        for (first, a), (second, b) in product(
            *(zip(responses[name][key].responses, scores[name][key], strict=True) for name in (one, other))
        ):
            if a is not None and b is not None and a == a and b == b:
                wins.append(0.5 + 0.5 * float(np.sign(a - b)))
                lengths.append(_longer(first, second))
        if wins:
            p, longer = float(np.mean(wins)), float(np.mean(lengths))
            yield Comparison(key, one, other, p, longer, _stratum(responses[one][key], by))
        else:
            left_out["pairs of which the reward has no opinion"] += 1


def _by_judge(
    config: RankConfig, folder: RunFolder, responses: Responses, left_out: Counter[str]
) -> Iterator[Comparison]:
    """Both orders of each pair, response k against response k; equal texts are a tie without asking."""
    from kleash.labels.cached_chat import ChatSettings, cached_chat
    from kleash.labels.constitution import Constitution
    from kleash.labels.llm_judge import Judge
    from kleash.rewards.judge_file import read_judge

    settings = read_judge(Path(str(config.judge)))
    if settings.rubric is not None:
        raise ConfigError(f"{config.judge}: has a 'rubric', which scores one response; give it as --reward")
    principle = Principle(name="rule", text=settings.rule) if settings.rule else GENERAL
    chat = ChatSettings(
        model=settings.judge, endpoint=settings.endpoint, price=settings.price, budget=settings.budget,
        concurrency=settings.concurrency, timeout=settings.timeout, dtype=config.dtype, device=config.device,
    )  # fmt: skip
    every = [
        (key, one, other, Group(responses[one][key].prompt, (first, second)))
        for key, one, other in _pairs(responses)
        for first, second in zip(responses[one][key].responses, responses[other][key].responses, strict=False)
    ]
    equal, pairs = ([row for row in every if (_is_equal(row[-1])) is same] for same in (True, False))
    verdicts: list[float | None] = []
    reason = ""
    with cached_chat(chat, folder.path / "calls.db") as (client, _), Progress(len(pairs), "judge pairs") as progress:
        client.remedy = f"raise 'budget' in {config.judge} and run the same command again"
        judge = Judge(
            client, constitution=Constitution(principles=(principle,)), chain_of_thought=settings.reasoning,
            reasoning_tokens=settings.reasoning_tokens, clamp=(0.0, 1.0), answers=settings.answers,
            votes=settings.votes, max_characters=settings.max_characters, seed=config.seed,
        )  # fmt: skip
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            results = judge.compare([group for *_, group in pairs[start : start + PAIRS_AT_ONCE]])
            verdicts += [result.probability for result in results]
            reason = next((result.reason or "" for result in results if result.probability is None), reason)
            progress.update(len(verdicts), cost=client.usage.cost)
    if pairs and all(verdict is None for verdict in verdicts):
        raise GateError(
            f"{config.judge}: the judge gave no readable verdict on any of {len(pairs)} pairs ({reason}); use a judge "
            "that follows the format, or 'reasoning: true' for one that thinks first"
        )
    for (key, one, other, group), verdict in zip([*pairs, *equal], [*verdicts, *[0.5] * len(equal)], strict=True):
        if verdict is None:
            left_out["pairs without a readable verdict of the judge"] += 1
        else:
            stratum = _stratum(responses[one][key], config.by)
            yield Comparison(key, one, other, verdict, _longer(*group.responses), stratum)


def _by_votes(config: RankConfig, responses: Responses, left_out: Counter[str]) -> Iterator[Comparison]:
    """The votes of a store on pairs of responses, found by their texts; equal texts are a tie without a vote."""
    pairs = [
        (key, one, other, Group(responses[one][key].prompt, (first, second)))
        for key, one, other in _pairs(responses)
        for first, second in product(responses[one][key].responses, responses[other][key].responses)
    ]
    with _votes(config) as (store, votes):
        matches = store.find([group for *_, group in pairs])
    for (key, one, other, group), match in zip(pairs, matches, strict=True):
        longer, stratum = _longer(*group.responses), _stratum(responses[one][key], config.by)
        if _is_equal(group):
            yield Comparison(key, one, other, 0.5, longer, stratum)
        elif match is None or match.task not in votes:
            left_out["pairs without votes"] += 1
        else:
            for p in map(_probability, votes[match.task]):
                yield Comparison(key, one, other, 1 - p if match.swapped else p, longer, stratum)


def _by_store(config: RankConfig, left_out: Counter[str]) -> Iterator[Comparison]:
    """The votes of a store whose pairs say who wrote what."""
    with _votes(config) as (store, votes):
        tasks = store.tasks()
    named = 0
    for task, group in tasks.items():
        names = _writers(group)
        if task not in votes or names is None:
            left_out["pairs without votes" if names else f"pairs without '{MODELS}'"] += 1
            continue
        named += 1
        for vote in votes[task]:
            yield from _comparison(group, names, _probability(vote), config.by, left_out)
    if not named:
        raise DataError(
            f"{config.store}: no pair with votes says who wrote its responses (a column '{MODELS}' of two names); give "
            "the files of responses too, as --data NAME=FILE NAME=FILE"
        )


def _by_rows(path: str, config: RankConfig, left_out: Counter[str]) -> Iterator[Comparison]:
    """Labelled rows that say who wrote what: preferences, rankings or scores."""
    for row, group in enumerate(read_groups(path, row_format=_format(config)), start=1):
        names = _writers(group)
        if names is None or group.label is None:
            what = "label" if names else f"column '{MODELS}' with the name of the model of each response"
            raise DataError(
                f"{path} row {row}: has no {what}; one file holds comparisons, and responses are a file for each "
                "model: --data NAME=FILE NAME=FILE"
            )
        for i, j in combinations(range(len(group.responses)), 2):
            p = pair_label(group, i, j)
            pair = Group(group.prompt, (group.responses[i], group.responses[j]), columns=group.columns)
            if p is not None:
                yield from _comparison(pair, (names[i], names[j]), p, config.by, left_out)


def _votes_so_far(config: RankConfig) -> Fingerprints:
    """What the store is known by: a ranking is of the votes that there are."""
    if config.store is None:
        return {}
    if "://" not in config.store and not Path(config.store).exists():
        raise InputError(f"{config.store}: there is no such label store; give the file that `kleash label` wrote")
    with open_store(config.store) as store:
        from kleash.labels.import_export import store_hash

        return {"store": {"path": config.store, "sha256": store_hash(store, store.last_vote())}}


@contextmanager
def _votes(config: RankConfig) -> Iterator[tuple[Store, Mapping[int, Sequence[Vote]]]]:
    """The store, and the votes on each of its tasks that count."""
    where = str(config.store)
    with open_store(where) as store:
        from kleash.labels.import_export import votes_of

        votes = votes_of(store, kinds=config.kind)
        kinds = Counter(vote.kind for same_task in votes.values() for vote in same_task)
        if len(kinds) > 1 and not config.kind:
            counts = ", ".join(f"{count} of kind {kind}" for kind, count in sorted(kinds.items()))
            logger.warning("%s: votes of several kinds count alike (%s); --kind takes some of them", where, counts)
        yield store, votes


def _comparison(
    pair: Group, names: Sequence[str], p: float, by: str | None, left_out: Counter[str]
) -> Iterator[Comparison]:
    if names[0] == names[1]:
        left_out["pairs of one model"] += 1
    else:
        yield Comparison(prompt_key(pair.prompt), names[0], names[1], p, _longer(*pair.responses), _stratum(pair, by))


def _writers(group: Group) -> tuple[str, ...] | None:
    """The model of each response; None where the row does not say."""
    columns = group.columns
    names = columns.get(MODELS, [columns.get("chosen_model"), columns.get("rejected_model")])
    if not isinstance(names, list | tuple) or len(names) != len(group.responses):
        return None
    return tuple(names) if all(isinstance(name, str) and name for name in names) else None


def _pairs(responses: Responses) -> Iterator[tuple[str, str, str]]:
    """Each prompt with each two models that have answered it."""
    keys = dict.fromkeys(key for groups in responses.values() for key in groups)
    for key in keys:
        for one, other in combinations([name for name, groups in responses.items() if key in groups], 2):
            yield key, one, other


def _probability(vote: Vote) -> float:
    """P(first ≻ second); one half where both are bad."""
    return 0.5 if vote.probability is None else vote.probability


def _is_equal(pair: Group) -> bool:
    return pair.responses[0].text == pair.responses[1].text


def _longer(first: Response, second: Response) -> float:
    return float(len(first.text) - len(second.text))


def _stratum(group: Group, by: str | None) -> str:
    if by is None:
        return ""
    if by not in group.columns:
        raise DataError(
            f"--by {by}: the row with prompt {group.prompt_text[:60]!r} has no such column; it has "
            f"{listed(sorted(group.columns), most=8) or 'none'}"
        )
    return str(group.columns[by])


# --- figures ---------------------------------------------------------------------------------------------------------


def _arrays(comparisons: Sequence[Comparison], prompts: Sequence[str]) -> figures.Comparisons:
    names = sorted({name for comparison in comparisons for name in (comparison.first, comparison.second)})
    number, prompt_number = ({item: index for index, item in enumerate(items)} for items in (names, prompts))
    return figures.Comparisons(
        names=tuple(names),
        first=np.array([number[comparison.first] for comparison in comparisons]),
        second=np.array([number[comparison.second] for comparison in comparisons]),
        p=np.array([comparison.p for comparison in comparisons]),
        longer=np.array([comparison.longer for comparison in comparisons]),
        prompts=np.array([prompt_number[comparison.prompt] for comparison in comparisons]),
    )


def _reasons(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())

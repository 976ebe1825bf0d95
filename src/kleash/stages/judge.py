"""Judge: an AI labeller compares responses, and its labels are measured before anyone trains on them.

    kleash judge --model runs/sft --data samples.jsonl --constitution assistant --out labels.jsonl
    kleash judge --endpoint http://localhost:8000/v1 --model NAME --data samples.jsonl --out labels.jsonl

Every pair of responses of a row is asked about in both orders. Rows that carry a preference already are people's: the
judge does not see it, and is held against it. Labels that fail the gate are not written to `out`, but beside it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, combinations, islice
from pathlib import Path
from typing import Any

import numpy as np

from kleash.chat.messages import Chat
from kleash.checks import judge_checks
from kleash.checks.gates import check_report
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference
from kleash.data.split import comparison, read_usable
from kleash.errors import DataError, GateError
from kleash.evals.judging import Report, judge_report, principle_report
from kleash.labels.constitution import Constitution
from kleash.labels.llm_judge import Judge, Judgement
from kleash.labels.prompt_injection import probe
from kleash.progress import Progress
from kleash.run import derive_seed, fingerprint
from kleash.stages.chat_client import GROUPS_AT_ONCE, chat_client, stop_above
from kleash.stages.data_configs import JudgeConfig
from kleash.stages.files import beside, finish, finished

logger = logging.getLogger("kleash")


def run(config: JudgeConfig, *, chat: Chat | None = None) -> Path:
    """Label pairs, measure the labels, write them.

    Args:
        config: the settings.
        chat: a live model in place of `config.model`.

    Returns:
        The file of preferences, the likelier better response as `chosen`. Figures and the gate's verdict lie beside it
        in `….summary.json`.

    Raises:
        GateError: too many failures, the budget reached, or labels that the gate refuses: those lie in `….refused…`.
        DataError: a row with fewer than two responses, or the file holds something else.
    """
    constitution = Constitution.load(config.constitution) if config.constitution else None
    identity = config.identity()
    if config.constitution:
        identity["sha256 of constitution"] = fingerprint(Constitution.find(config.constitution))["sha256"]
    if finished(config.out, identity):
        return config.out
    groups = list(islice(_pairs(config.data), config.max_rows))
    mixed_in = read_usable(config.mix_in, comparison) if config.mix_in else []
    with chat_client(config, chat) as (asked, store):
        judge = Judge(
            asked, constitution=constitution, principles=config.principles, chain_of_thought=config.chain_of_thought,
            reasoning_tokens=config.reasoning_tokens, clamp=config.clamp, answers=config.answers, votes=config.votes,
            max_characters=config.max_characters, seed=config.seed,
        )  # fmt: skip
        judgements = _judge(judge, groups, config.max_failures)
        results = _measure(judge, groups, judgements)
        results["injections"] = probe(judge, groups, judgements, config.injections) if config.injections else None
        results |= {"usage": asked.figures(), "mixed_in": len(mixed_in)}
        store.record(groups, [judgement.verdict for judgement in judgements])
    gate = results["gate"] = check_report(judge_checks.judge(results, max_failures=config.max_failures))
    refused = not gate["passed"] and not config.force
    where = beside(config.out, "refused") if refused else config.out
    write_groups(chain(_labelled(groups, judgements), mixed_in), where)
    finish(config.out, identity, results)
    if refused:
        raise GateError(
            f"{config.out}: the labels are refused: {gate['finding']}; {gate['advice']}, or --force to use them (they "
            f"lie in {where})"
        )
    if not gate["passed"]:
        logger.warning("labels that the gate refuses, forced: %s; %s", gate["finding"], gate["advice"])
    return config.out


def _pairs(data: str) -> Iterator[Group]:
    for row, group in enumerate(read_groups(data), start=1):
        if len(group.responses) < 2:
            raise DataError(
                f"{data} row {row}: has {len(group.responses)} responses; a judge compares two: `prompt` with "
                "`responses`, or `chosen` and `rejected`"
            )
        if isinstance(group.label, Preference):
            yield group
            continue
        for i, j in combinations(range(len(group.responses)), 2):
            yield Group(group.prompt, (group.responses[i], group.responses[j]), columns=group.columns)


def _judge(judge: Judge, groups: Sequence[Group], max_failures: float) -> list[Judgement]:
    judgements: list[Judgement] = []
    with Progress(len(groups), "judge pairs") as progress:
        for start in range(0, len(groups), GROUPS_AT_ONCE):
            judgements += judge.judge(groups[start : start + GROUPS_AT_ONCE])
            failed = [found.verdict for found in judgements if found.orders is None]
            progress.update(len(judgements), failed=len(failed), cost=judge.client.usage.cost)
            reason = f"{failed[-1].state}: {failed[-1].reason}" if failed else ""
            stop_above(max_failures, len(failed), len(judgements), len(groups), reason)
    return judgements


def _measure(judge: Judge, groups: Sequence[Group], judgements: Sequence[Judgement]) -> Report:
    states = Counter(judgement.verdict.state for judgement in judgements)
    failed = [found.verdict for found in judgements if found.orders is None]
    kept = [(group, found) for group, found in zip(groups, judgements, strict=True) if found.orders is not None]
    people = np.array([_people(group) for group, _ in kept], dtype=np.float64)
    report: Report = {
        "judge": judge.name,
        "answers": judge.answers,
        "pairs": len(groups),
        "failures": {
            "pairs": len(groups),
            **{state: states[state] for state in ("unparsable", "error")},
            "reasons": list(dict.fromkeys(f"{verdict.state}: {verdict.reason}" for verdict in failed))[:5],
        },
        "cut": sum(_cut(group, judge.max_characters) for group in groups),
        "labels": 0,
    }
    if not kept:
        return report
    weights = {principle.name: principle.weight for principle in judge.constitution.principles}
    return report | judge_report(
        np.array([found.orders for _, found in kept], dtype=np.float64),
        np.array([found.verdict.probability for _, found in kept], dtype=np.float64),
        people,
        np.array([len(group.responses[0].text) - len(group.responses[1].text) for group, _ in kept], dtype=np.float64),
        np.array([derive_seed(judge.seed, "coin", row) % 2 == 1 for row in range(len(kept))]),
        votes=judge.votes if judge.answers == "votes" else None,
    ) | {"principles": principle_report([found.principles for _, found in kept], people, weights)}  # fmt: skip


def _labelled(groups: Sequence[Group], judgements: Sequence[Judgement]) -> Iterator[Group]:
    """Pairs with a label, the likelier better response first."""
    for group, found in zip(groups, judgements, strict=True):
        if found.verdict.probability is None:
            continue
        turned = found.verdict.probability < 0.5

        def of_first(p: float, turned: bool = turned) -> float:
            return 1 - p if turned else p

        columns: dict[str, Any] = {**group.columns, "principle": found.verdict.principle,
                                   "order_effect": found.verdict.order_effect}  # fmt: skip
        if len(found.principles) > 1:
            columns["principles"] = {name: of_first(p) for name, p in found.principles.items()}
        if isinstance(group.label, Preference):
            columns["human_probability"] = of_first(group.label.probability)
        yield Group(
            group.prompt,
            group.responses[::-1] if turned else group.responses,
            Preference(of_first(found.verdict.probability), found.verdict.labeller),
            columns,
        )


def _people(group: Group) -> float:
    return group.label.probability if isinstance(group.label, Preference) else np.nan


def _cut(group: Group, limit: int | None) -> bool:
    return limit is not None and max(map(len, (group.prompt_text, *(one.text for one in group.responses)))) > limit

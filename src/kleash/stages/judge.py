"""Judge: an AI labeller compares responses, and its labels are measured before they are used.

    kleash judge --model runs/sft --data samples.jsonl --constitution assistant --out labels.jsonl
    kleash judge --endpoint http://localhost:8000/v1 --model NAME --data samples.jsonl --out labels.jsonl

Every pair of responses of a row is compared in both orders. A preference that a row has already is a label by people:
the judge does not see it, and is compared with it. Labels that fail the checks are written to `….refused…` instead of
`out`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations, islice
from pathlib import Path

from kleash.chat.messages import Chat
from kleash.checks.check import verdict
from kleash.checks.judge_checks import judge_checks, stop_above
from kleash.content import fingerprints
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference, pair_of
from kleash.data.row_format import RowFormat
from kleash.data.split import comparison, read_usable
from kleash.errors import DataError, GateError
from kleash.io import beside
from kleash.labels.cached_chat import ChatSettings, cached_chat, live_fingerprint
from kleash.labels.constitution import Constitution
from kleash.labels.judge_summary import labelled_groups, summarise
from kleash.labels.llm_judge import Judge, Judgement
from kleash.labels.prompt_injection import probe
from kleash.outputs import finish, identity_of, is_done, only_writer
from kleash.progress import Progress
from kleash.stages.data_configs import JudgeConfig

logger = logging.getLogger("kleash")

PAIRS_AT_ONCE = 64
"""Pairs between two checks of the number of failures."""


@only_writer
def run(config: JudgeConfig, *, chat: Chat | None = None) -> Path:
    """Label pairs, measure the labels, write them.

    Args:
        config: the settings.
        chat: a live model in place of `config.model`.

    Returns:
        The file of preferences, the more probably better response as `chosen`. The figures and the result of the checks
        are in `….summary.json` next to it.

    Raises:
        GateError: too many failures, the budget is reached, or the labels fail the checks: those are in `….refused…`.
        DataError: a row has fewer than two responses, or the file holds something else.
    """
    constitution = Constitution.load(config.constitution) if config.constitution else None
    identity = identity_of("judge", config, fingerprints(config, instead=live_fingerprint(chat)))
    if is_done(config.out, identity):
        return config.out
    groups = list(islice(_pairs(config.data, RowFormat(config.columns, config.as_chat)), config.max_rows))
    mixed_in = read_usable(config.mix_in, comparison) if config.mix_in else []
    settings = ChatSettings(**config.model_dump(include=ChatSettings.names()))
    with cached_chat(settings, config.store or beside(config.out, "calls", ending=".db"), chat) as (client, store):
        judge = Judge(
            client, constitution=constitution, principles=config.principles, chain_of_thought=config.chain_of_thought,
            reasoning_tokens=config.reasoning_tokens, clamp=config.clamp, answers=config.answers, votes=config.votes,
            max_characters=config.max_characters, seed=config.seed,
        )  # fmt: skip
        judgements = _judge(judge, groups, config.max_failures)
        injections = probe(judge, groups, judgements, config.injections) if config.injections else None
        summary = summarise(judge, groups, judgements, injections=injections, mixed_in=len(mixed_in))
        store.record(groups, [judgement.result for judgement in judgements])
    gate = verdict(judge_checks(summary.report, summary.failures, max_failures=config.max_failures))
    failed = gate["passed"] is False
    refused = failed and not config.force
    out = beside(config.out, "refused") if refused else config.out
    finish(config.out, identity, summary.to_json() | {"gate": gate})
    write_groups(chain(labelled_groups(groups, judgements), mixed_in), out)
    if refused:
        raise GateError(
            f"{config.out}: the labels are refused: {gate['finding']}; {gate['advice']}, or --force to use them (they "
            f"are in {out})"
        )
    if failed:
        logger.warning("labels that fail the checks, used by --force: %s; %s", gate["finding"], gate["advice"])
    return config.out


def _pairs(data: str, row_format: RowFormat) -> Iterator[Group]:
    for row, group in enumerate(read_groups(data, row_format=row_format), start=1):
        if len(group.responses) < 2:
            raise DataError(
                f"{data} row {row}: has {len(group.responses)} responses; a judge compares two: `prompt` with "
                "`responses`, or `chosen` and `rejected`"
            )
        if isinstance(group.label, Preference):
            yield group
            continue
        for i, j in combinations(range(len(group.responses)), 2):
            yield pair_of(replace(group, label=None), i, j)


def _judge(judge: Judge, groups: Sequence[Group], max_failures: float) -> list[Judgement]:
    judgements: list[Judgement] = []
    with Progress(len(groups), "judge pairs") as progress:
        for start in range(0, len(groups), PAIRS_AT_ONCE):
            judgements += judge.judge(groups[start : start + PAIRS_AT_ONCE])
            failures = [judgement.result for judgement in judgements if judgement.orders is None]
            progress.update(len(judgements), failed=len(failures), cost=judge.client.usage.cost)
            reason = f"{failures[-1].outcome}: {failures[-1].reason}" if failures else ""
            stop_above(max_failures, len(failures), len(judgements), len(groups), reason)
    return judgements

"""Revise: the supervised stage of Constitutional AI (Bai et al. 2022, arXiv:2212.08073, section 3).

    kleash revise --model runs/sft --data prompts.jsonl --constitution assistant --rounds 4 --out demonstrations.jsonl

The model answers, criticises its answer by a drawn principle, and rewrites it by that critique, for as many rounds as
`--rounds` says. The last revisions are demonstrations for `kleash sft`. The summary counts revisions that change
nothing, and refusals before and after, which show an assistant that became harmless by refusing every question.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from kleash.chat.messages import Chat
from kleash.checks.judge_checks import stop_above
from kleash.content import fingerprints
from kleash.data.formats import read_groups, write_groups
from kleash.data.row_format import RowFormat
from kleash.data.shown import turns_before
from kleash.data.split import demonstration, read_usable
from kleash.errors import listed
from kleash.io import beside
from kleash.labels.cached_chat import ChatSettings, cached_chat, live_fingerprint
from kleash.labels.constitution import Constitution
from kleash.labels.revisions import Draft, Reviser, demonstration_of, save_revisions, summarise
from kleash.outputs import finish, identity_of, is_done, only_writer
from kleash.progress import Progress
from kleash.stages.data_configs import ReviseConfig

logger = logging.getLogger("kleash")

ROWS_AT_ONCE = 64
"""Rows between two checks of the number of failures."""


@only_writer
def run(config: ReviseConfig, *, chat: Chat | None = None) -> Path:
    """Sample, criticise, revise, and write the last revisions.

    Args:
        config: the settings.
        chat: a live model in place of `config.model`.

    Returns:
        The file of demonstrations, each with its `original`, the `principles` that it was revised by, and whether it
        is `unchanged`. The figures are in `….summary.json` next to it.

    Raises:
        GateError: too many failures, or the budget is reached.
        DataError: the file holds something else.
    """
    constitution = Constitution.load(config.constitution)
    identity = identity_of("revise", config, fingerprints(config, instead=live_fingerprint(chat)))
    if is_done(config.out, identity):
        return config.out
    mixed_in = read_usable(config.mix_in, demonstration) if config.mix_in else []
    row_format = RowFormat(config.columns, config.as_chat)
    prompts = [
        Draft(row, replace(group, responses=(), label=None))
        for row, group in enumerate(islice(read_groups(config.data, row_format=row_format), config.max_rows))
    ]
    if before := sorted({str(turn["role"]) for draft in prompts for turn in turns_before(draft.group)}):
        logger.info(
            "%s: %s: shown to the critique, and not given to the model that answers", config.data, listed(before)
        )
    drafts: list[Draft] = []
    settings = ChatSettings(**config.model_dump(include=ChatSettings.names()))
    with (
        cached_chat(settings, config.store or beside(config.out, "calls", ending=".db"), chat) as (client, store),
        Progress(len(prompts), "revise") as progress,
    ):
        reviser = Reviser(
            client, constitution, rounds=config.rounds, temperature=config.temperature,
            max_tokens=config.max_new_tokens, seed=config.seed,
        )  # fmt: skip
        for start in range(0, len(prompts), ROWS_AT_ONCE):
            drafts += reviser.revise(prompts[start : start + ROWS_AT_ONCE])
            failures = [draft.failure for draft in drafts if draft.failure]
            progress.update(len(drafts), failed=len(failures), cost=client.usage.cost)
            stop_above(config.max_failures, len(failures), len(drafts), len(prompts), failures[-1] if failures else "")
        complete = [draft for draft in drafts if not draft.failure]
        save_revisions(store, client.chat.name, complete)
        summary = summarise(
            drafts, constitution, rounds=config.rounds, taken_off=reviser.taken_off, usage=client.usage,
            mixed_in=len(mixed_in),
        )  # fmt: skip
    finish(config.out, identity, summary.to_json())
    write_groups(chain(map(demonstration_of, complete), mixed_in), config.out)
    return config.out

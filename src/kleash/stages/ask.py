"""Ask: labels for pairs, from people through the label store or from a reward as labeller, within a budget.

    kleash ask --data samples.jsonl --store labels.db --out preferences.jsonl

With people it puts the pairs into the store and ends with exit code 75 until they have answered. The same command (or
recipe) run again continues there, so that training in rounds (sample, ask, train) does not occupy a machine while
people vote. Pairs that were reported or skipped are not waited for; the summary counts them.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference, chosen_first
from kleash.data.row_format import RowFormat
from kleash.errors import DataError
from kleash.labels.labeller import Labeller
from kleash.labels.open_store import open_store
from kleash.outputs import finish, identity_of, is_done, only_writer
from kleash.stages.data_configs import AskConfig

logger = logging.getLogger("kleash")


@only_writer
def run(config: AskConfig) -> Path:
    """Collect labels and write them.

    Returns:
        The file.

    Raises:
        WaitingError: people have not answered yet.
        DataError: there is nothing to compare, or no pair has a label.
    """
    identity = identity_of("ask", config)
    if is_done(config.out, identity):
        return config.out
    groups = _pairs(config.data, RowFormat(config.columns, config.as_chat))
    labeller = None if config.labeller == "people" else _reward_labeller(config.labeller, config.temperature)
    with open_store(config.store) as store:
        from kleash.labels.collect import LabelCollector

        collector = LabelCollector(store, labeller, budget=config.budget, votes=config.votes)
        results = collector.collect(groups)
    rows = [
        replace(group, label=Preference(result.probability, result.labeller))
        for group, result in zip(groups, results, strict=True)
        if result is not None and result.probability is not None
    ]
    outcomes = Counter("beyond the budget" if result is None else result.outcome for result in results)
    counts = ", ".join(f"{number} {outcome.replace('_', ' ')}" for outcome, number in outcomes.items())
    if not rows:
        raise DataError(
            f"{config.data}: no pair has a label ({counts or 'no pairs'}); raise --budget, or decide some "
            "of the pairs on the admin's page of `kleash label`"
        )
    finish(config.out, identity, {"pairs": len(groups), "labels": len(rows), "states": dict(outcomes)})
    write_groups(map(chosen_first, rows), config.out)
    logger.info("%d of %d pairs have a label of %s (%s)", len(rows), len(groups), collector.name, counts)
    return config.out


def _pairs(data: str, row_format: RowFormat) -> list[Group]:
    pairs = []
    for row, group in enumerate(read_groups(data, row_format=row_format), start=1):
        if len(group.responses) < 2:
            raise DataError(f"{data} row {row}: has {len(group.responses)} responses; give two or more to compare")
        pairs += [
            replace(group, responses=(a, b), label=None) for a, b in combinations(group.responses, 2) if a != b
        ]  # fmt: skip
    return pairs


def _reward_labeller(reward: str, temperature: float) -> Labeller:
    from kleash.labels.reward_labeller import RewardLabeller
    from kleash.rewards.build import build_reward

    return RewardLabeller(build_reward(reward), name=reward, temperature=temperature)

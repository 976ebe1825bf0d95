"""Ask: labels for pairs, from people through the label store or from a reward as labeller, within a budget.

    kleash ask --data samples.jsonl --store labels.db --out preferences.jsonl

With people it puts the pairs into the store and ends with exit code 75 until they have answered: run a recipe again,
and it goes on where it waited. So a training in rounds (sample, ask, learn) holds no machine while people think.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference, chosen_first
from kleash.errors import DataError
from kleash.labels.labeller import Labeller
from kleash.labels.open_store import open_store
from kleash.run import fingerprint
from kleash.stages.data_configs import AskConfig
from kleash.stages.files import finish, finished

logger = logging.getLogger("kleash")


def run(config: AskConfig) -> Path:
    """Ask and write what was answered.

    Returns:
        The file.

    Raises:
        WaitingError: people have not answered yet.
        DataError: nothing to compare, or no answer that is a label.
    """
    identity = {**config.model_dump(mode="json", exclude={"out"}), "data": fingerprint(config.data)}
    if finished(config.out, identity):
        return config.out
    groups = _pairs(config.data)
    with open_store(config.store) as store:
        from kleash.labels.collect import LabelCollector

        collector = LabelCollector(store, _labeller(config), budget=config.budget, votes=config.votes)
        verdicts = collector.ask(groups)
    rows = [
        replace(group, label=Preference(verdict.probability, verdict.labeller))
        for group, verdict in zip(groups, verdicts, strict=True)
        if verdict is not None and verdict.probability is not None
    ]
    if not rows:
        raise DataError(f"{config.data}: no pair has a label; raise --budget, or label some of the pairs")
    write_groups(map(chosen_first, rows), config.out)
    states = Counter("beyond the budget" if verdict is None else verdict.state for verdict in verdicts)
    finish(config.out, identity, {"pairs": len(groups), "labels": len(rows), "states": dict(states)})
    logger.info("%d of %d pairs have a label of %s", len(rows), len(groups), collector.name)
    return config.out


def _pairs(data: str) -> list[Group]:
    pairs = []
    for row, group in enumerate(read_groups(data), start=1):
        if len(group.responses) < 2:
            raise DataError(f"{data} row {row}: has {len(group.responses)} responses; give two or more to compare")
        pairs += [
            replace(group, responses=(a, b), label=None) for a, b in combinations(group.responses, 2) if a != b
        ]  # fmt: skip
    return pairs


def _labeller(config: AskConfig) -> Labeller | None:
    if config.labeller == "people":
        return None
    from kleash.labels.reward_labeller import RewardLabeller
    from kleash.rewards.reward import build_reward

    return RewardLabeller(build_reward(config.labeller), name=config.labeller, temperature=config.temperature)

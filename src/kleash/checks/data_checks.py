"""Gates in on data: what a stage needs of the rows it is to learn from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kleash.checks.gates import Check
from kleash.checks.outcome_checks import LOOK, SampledBy
from kleash.checks.sample_stats import excess_nll
from kleash.data.group import EncodedGroup, Group, Preference
from kleash.evals.preference_report import ceiling_bounds, sign_test
from kleash.models.load import load_policy
from kleash.run import parent_of

FEW_PAIRS = 2000
"""Below so many comparisons a reward model is near chance (Gao et al. 2022, arXiv:2210.10760)."""

LENGTH_RULE = 0.8
"""Share of pairs won by the longer (or the shorter) response from which length is all there is to learn."""

ROWS = 128
"""Rows that are measured: enough to tell 0.1 nats a token."""


def comparisons(groups: Sequence[Group]) -> list[Check]:
    """Are these comparisons that a reward can be learnt from?

    Args:
        groups: preferences of two responses; others are counted and left out.
    """
    pairs = [group for group in groups if isinstance(group.label, Preference) and len(group.responses) == 2]
    if not pairs:
        advice = "a preference row has prompt, chosen and rejected"
        return [Check(name="comparisons", passed=False, finding=f"none in {len(groups)} rows", advice=advice)]
    return [
        _count(pairs, len(groups)),
        _labelled(pairs),
        _differ(pairs),
        _consistent(pairs),
        _balanced(pairs),
        _spread(pairs),
    ]


def demonstrations(groups: Sequence[Group]) -> list[Check]:
    """Are these rows that a model can be taught to answer by?"""
    texts = [group.responses[0].text for group in groups]
    ended = np.mean([group.responses[0].finished for group in groups])
    different = len(set(texts)) / len(texts)
    empty = sum(not text.strip() for text in texts)
    return [
        Check(
            name="rows end",
            passed=bool(ended >= 0.5),
            finding=f"{ended:.0%} of {len(texts)} responses get an end token",
            advice="" if ended >= 0.5 else "without an end token the model never learns to stop: finish the responses",
            figures={"ended": float(ended)},
        ),
        Check(
            name="rows differ",
            passed=different >= 0.1,
            finding=f"{different:.0%} of the responses are different, {empty} are empty",
            advice="" if different >= 0.1 else "the model will say these few things to everything; get more responses",
            figures={"different": different, "empty": empty},
        ),
    ]


def on_policy_check(model: str, groups: Sequence[EncodedGroup], *, device: str, dtype: str) -> SampledBy:
    """Whose samples some training responses are: the model's whose samples will be scored, or its parent's.

    Args:
        model: folder or hub name of a language model.
        groups: encoded for its tokenizer; a spread of `ROWS` of them is read.
        device: to compute on.
        dtype: to compute in.
    """
    chosen = groups[:: max(1, len(groups) // ROWS)][:ROWS]
    own = excess_nll(load_policy(model, device=device)[0], chosen, dtype=dtype)
    path = parent_of(Path(model), "model")
    if path is None:
        return SampledBy(own)
    parent = excess_nll(load_policy(path, device=device)[0], chosen, dtype=dtype)
    return SampledBy(own, parent, str(path))


def _count(pairs: Sequence[Group], rows: int) -> Check:
    finding = f"{len(pairs)} pairs" + (f", {rows - len(pairs)} other rows left out" if rows > len(pairs) else "")
    passed = True if len(pairs) >= FEW_PAIRS else None
    advice = f"reward models from fewer than {FEW_PAIRS:,} are near chance on real text: read the interval of accuracy"
    return Check(
        name="enough pairs",
        passed=passed,
        finding=finding,
        advice="" if passed else advice,
        figures={"pairs": len(pairs)},
    )


def _labelled(pairs: Sequence[Group]) -> Check:
    ties = sum(_probability(pair) == 0.5 for pair in pairs)
    passed = ties < len(pairs) / 2
    return Check(
        name="pairs are decided",
        passed=passed,
        finding=f"{ties} of {len(pairs)} pairs are ties",
        advice="" if passed else "ties teach that nothing matters: leave them out, or ask for more votes",
        figures={"ties": ties},
    )


def _differ(pairs: Sequence[Group]) -> Check:
    same = sum(pair.responses[0].text.strip() == pair.responses[1].text.strip() for pair in pairs)
    passed = same <= len(pairs) / 10
    return Check(
        name="responses differ",
        passed=passed,
        finding=f"{same} of {len(pairs)} pairs compare a response with itself",
        advice="" if passed else "sample at a higher temperature, or leave these out",
        figures={"identical": same},
    )


def _consistent(pairs: Sequence[Group]) -> Check:
    """Labels of the same pair, whichever of the two is called the chosen one."""
    votes: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
    for pair in pairs:
        if (probability := _probability(pair)) == 0.5:
            continue
        texts = [response.text for response in pair.responses]
        better = texts[int(probability < 0.5)]
        key = sorted(texts)
        votes[(repr(pair.prompt), *key)][key.index(better)] += 1
    repeated = np.array([count for count in votes.values() if sum(count) > 1])
    name = "labels agree"
    if not len(repeated):
        return Check(name=name, passed=None, finding="no pair was labelled twice, so nobody knows how noisy labels are")
    bounds = ceiling_bounds(repeated)
    agreement = float(np.mean((repeated * (repeated - 1)).sum(1) / (repeated.sum(1) * (repeated.sum(1) - 1))))
    passed = True if agreement > 0.55 else False if len(repeated) >= 50 else None
    return Check(
        name=name,
        passed=passed,
        finding=f"two labels of a pair agree in {agreement:.0%} ({len(repeated)} pairs labelled more than once)",
        advice="" if passed else "labels that agree like coins teach nothing: sharpen the question to the labellers",
        figures={"agreement": agreement, "ceiling": list(bounds), "repeated": len(repeated)},
    )


def _balanced(pairs: Sequence[Group]) -> Check:
    longer = np.array([np.sign(_probability(p) - 0.5) * np.sign(_words(p, 0) - _words(p, 1)) for p in pairs])
    wins, losses = int((longer > 0).sum()), int((longer < 0).sum())
    share = wins / max(1, wins + losses)
    rule = max(share, 1 - share) > LENGTH_RULE and sign_test(wins, losses) < 0.05
    return Check(
        name="not length alone",
        passed=None if rule else True,
        finding=f"the longer response is preferred in {share:.0%} of {wins + losses} pairs of unequal length",
        advice="compare answers of like length too, or the reward will be length" if rule else "",
        figures={"longer_preferred": share},
    )


def _spread(pairs: Sequence[Group]) -> Check:
    prompts = len({repr(pair.prompt) for pair in pairs})
    passed = True if prompts >= 20 else None
    return Check(
        name="many prompts",
        passed=passed,
        finding=f"{prompts} different prompts",
        advice="" if passed else f"held-out rows share their prompts with the rest: accuracy will flatter; {LOOK}",
        figures={"prompts": prompts},
    )


def _probability(pair: Group) -> float:
    assert isinstance(pair.label, Preference)
    return pair.label.probability


def _words(pair: Group, which: int) -> int:
    return len(pair.responses[which].text.split())

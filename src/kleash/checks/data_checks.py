"""Checks of training data, before a stage starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kleash.checks.check import LOOK, Check, answer
from kleash.checks.reward_checks import OnPolicyExcess
from kleash.checks.sample_stats import excess_nll
from kleash.checks.sft_checks import Agreement
from kleash.data.group import EncodedGroup, Group, Preference, prompt_key
from kleash.evals.intervals import number_prompts, share_interval
from kleash.evals.preference_report import ceiling_bounds
from kleash.models.load import load_policy
from kleash.run import parent_of

FEW_PAIRS = 2000
"""With fewer comparisons, a reward model is near chance (Gao et al. 2022, arXiv:2210.10760)."""

LENGTH_RULE = 0.8
"""Share of pairs won by the longer (or the shorter) response from which the labels teach little but length."""

ROWS = 128
"""Rows that are measured: enough to resolve 0.1 nats a token."""


def comparisons(groups: Sequence[Group]) -> list[Check]:
    """Can a reward model be trained on these comparisons?

    Args:
        groups: preferences of two responses; others are counted and left out.
    """
    pairs = [group for group in groups if isinstance(group.label, Preference) and len(group.responses) == 2]
    if not pairs:
        advice = "a preference row has prompt, chosen and rejected"
        return [answer("comparisons", False, f"none in {len(groups)} rows", advice)]
    return [
        _count(pairs, len(groups)),
        _labelled(pairs),
        _differ(pairs),
        _consistent(pairs),
        _balanced(pairs),
        _spread(pairs),
    ]


def demonstrations(groups: Sequence[Group]) -> list[Check]:
    """Can a model be trained on these demonstrations?"""
    texts = [group.responses[0].text for group in groups]
    ended = np.mean([group.responses[0].finished for group in groups])
    different = len(set(texts)) / len(texts)
    empty = sum(not text.strip() for text in texts)
    return [
        answer(
            "rows end",
            bool(ended >= 0.5),
            f"{ended:.0%} of {len(texts)} responses get an end token",
            "without an end token the model never learns to stop: finish the responses",
            ended=float(ended),
        ),
        answer(
            "rows differ",
            different >= 0.1,
            f"{different:.0%} of the responses are different, {empty} are empty",
            "the model will give these few responses to every prompt; collect more responses",
            different=different,
            empty=empty,
        ),
    ]


def on_policy_excess(
    model: str, groups: Sequence[EncodedGroup], *, device: str, dtype: str, rows: int = ROWS
) -> OnPolicyExcess:
    """Excess negative log-likelihood of the training responses under the model that will be scored, and under its
    parent.

    Args:
        model: folder or hub name of a language model.
        groups: encoded for its tokenizer; a spread of them is read.
        device: to compute on.
        dtype: to compute in.
        rows: how many are read.
    """
    chosen = groups[:: max(1, len(groups) // rows)][:rows]
    excess = excess_nll(load_policy(model, device=device)[0], chosen, dtype=dtype)
    path = parent_of(Path(model), "model")
    if path is None:
        return OnPolicyExcess(excess)
    parent = excess_nll(load_policy(path, device=device)[0], chosen, dtype=dtype)
    return OnPolicyExcess(excess, parent, str(path))


def _count(pairs: Sequence[Group], rows: int) -> Check:
    finding = f"{len(pairs)} pairs" + (f", {rows - len(pairs)} other rows left out" if rows > len(pairs) else "")
    passed = True if len(pairs) >= FEW_PAIRS else None
    advice = f"reward models from fewer than {FEW_PAIRS:,} are near chance on real text: read the interval of accuracy"
    return answer("enough pairs", passed, finding, advice, pairs=len(pairs))


def _labelled(pairs: Sequence[Group]) -> Check:
    ties = sum(_probability(pair) == 0.5 for pair in pairs)
    passed = ties < len(pairs) / 2
    return answer(
        "pairs are decided",
        passed,
        f"{ties} of {len(pairs)} pairs are ties",
        "ties teach the model to be indifferent: leave them out, or collect more votes",
        ties=ties,
    )


def _differ(pairs: Sequence[Group]) -> Check:
    same = sum(pair.responses[0].text.strip() == pair.responses[1].text.strip() for pair in pairs)
    passed = same <= len(pairs) / 10
    return answer(
        "responses differ",
        passed,
        f"{same} of {len(pairs)} pairs compare a response with itself",
        "sample at a higher temperature, or leave these out",
        identical=same,
    )


def _consistent(pairs: Sequence[Group]) -> Check:
    """Agreement of repeated labels of a pair, in either order."""
    votes: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
    for pair in pairs:
        if (probability := _probability(pair)) == 0.5:
            continue
        texts = [response.text for response in pair.responses]
        better = texts[int(probability < 0.5)]
        key = sorted(texts)
        votes[(prompt_key(pair.prompt), *key)][key.index(better)] += 1
    twice = {key: count for key, count in votes.items() if sum(count) > 1}
    name = "labels agree"
    if not twice:
        return answer(name, None, "no pair was labelled twice, so the noise of the labels is unknown")
    repeated = np.array(list(twice.values()))
    of_pair = (repeated * (repeated - 1)).sum(1) / (repeated.sum(1) * (repeated.sum(1) - 1))
    interval = share_interval(of_pair, number_prompts([prompt for prompt, *_ in twice]))
    agreement = Agreement(float(of_pair.mean()), *interval, len(repeated))
    return answer(
        name,
        agreement.passed,
        f"two labels of a pair agree in {agreement.share:.0%} (95 % interval {agreement.low:.0%} to "
        f"{agreement.high:.0%}, {len(repeated)} pairs labelled more than once)",
        "labellers may agree no more than chance; clarify the labelling guidelines, or label more pairs twice",
        agreement=agreement.share,
        low=agreement.low,
        high=agreement.high,
        ceiling=list(ceiling_bounds(repeated)),
        repeated=len(repeated),
    )


def _balanced(pairs: Sequence[Group]) -> Check:
    longer = np.array([np.sign(_probability(p) - 0.5) * np.sign(_words(p, 0) - _words(p, 1)) for p in pairs])
    wins, losses = int((longer > 0).sum()), int((longer < 0).sum())
    unequal = [row for row, side in enumerate(longer) if side]
    share = wins / max(1, wins + losses)
    prompts = number_prompts([prompt_key(pairs[row].prompt) for row in unequal])
    low, high = share_interval(longer[unequal] > 0, prompts) if len(unequal) else (0.0, 1.0)
    return answer(
        "not only length",
        True if low > 1 - LENGTH_RULE and high < LENGTH_RULE else None,
        f"the longer response is preferred in {share:.0%} of {wins + losses} pairs of unequal length",
        "also compare answers of similar length, or the reward model will learn only length",
        longer_preferred=share,
    )


def _spread(pairs: Sequence[Group]) -> Check:
    prompts = len({prompt_key(pair.prompt) for pair in pairs})
    passed = True if prompts >= 20 else None
    return answer(
        "many prompts",
        passed,
        f"{prompts} different prompts",
        f"held-out rows share their prompts with the rest: accuracy will be too high; {LOOK}",
        prompts=prompts,
    )


def _probability(pair: Group) -> float:
    assert isinstance(pair.label, Preference)
    return pair.label.probability


def _words(pair: Group, which: int) -> int:
    return len(pair.responses[which].text.split())

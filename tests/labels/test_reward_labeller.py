from __future__ import annotations

import math

import pytest
import torch

from kleash.data.group import Group, Response
from kleash.errors import InputError
from kleash.labels.reward_labeller import RewardLabeller


def lengths(groups):
    return torch.tensor([[float(len(response.text)) for response in group.responses] for group in groups])


def pair(a: str, b: str) -> Group:
    return Group("?", (Response(a), Response(b)))


def test_a_reward_prefers_what_it_scores_higher_by_bradley_terry():
    longer, tie, shorter = RewardLabeller(lengths, temperature=2.0, name="length").compare(
        [pair("aaaa", "a"), pair("b", "a"), pair("a", "aaaa")]
    )
    assert longer.probability == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert shorter.probability == pytest.approx(1 - longer.probability)
    assert (tie.outcome, tie.probability) == ("tie", 0.5)
    assert {longer.labeller, tie.labeller} == {"length"} and longer.outcome == "preference"
    assert longer.order_effect is None  # scores see no order


def test_the_temperature_is_how_sure_it_is():
    sure, unsure = (RewardLabeller(lengths, temperature=t).compare([pair("aa", "a")])[0] for t in (1e-3, 1e3))
    assert sure.probability == 1.0 and unsure.probability == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(InputError, match="give a number above 0"):
        RewardLabeller(lengths, temperature=0)


def test_no_requests_give_no_replies():
    assert RewardLabeller(lengths).compare([]) == []

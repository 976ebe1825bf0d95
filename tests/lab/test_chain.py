from __future__ import annotations

import pytest

from kleash.data.group import Group, Response
from kleash.lab import chain
from kleash.lab.world import World
from kleash.labels.labeller import LabelResult
from kleash.labels.reward_labeller import RewardLabeller

PROMPT = "what is 1 plus 2 ?"
RIGHT, WRONG = Response("it is 3 ."), Response("it is 4 .")


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def test_labels_put_the_likelier_first_and_leave_out_what_has_none():
    groups = [Group(PROMPT, (RIGHT, WRONG), columns={"kind": "sum"})] * 3
    first, second = chain.with_labels(groups, [0.75, 0.25, None], "somebody")
    assert first.responses == (RIGHT, WRONG) and second.responses == (WRONG, RIGHT)
    assert [group.label.probability for group in (first, second)] == [0.75, 0.75]
    assert first.label.annotator == "somebody" and first.columns == {"kind": "sum"}


def test_gold_as_a_labeller_is_always_right_and_its_negative_never(world):
    groups = [Group(PROMPT, pair) for pair in ((RIGHT, WRONG), (WRONG, RIGHT), (RIGHT, RIGHT))]
    labeller = RewardLabeller(chain.GoldReward(world), name="gold")
    figures = chain.labeller_figures(world, groups, labeller.compare(groups))
    assert figures["accuracy"] == 1.0  # of the two that gold decides
    assert figures["first"] == figures["order"] == 0.0
    contrary = [LabelResult("preference", "x", probability=1 - (v.probability or 0)) for v in labeller.compare(groups)]
    assert chain.labeller_figures(world, groups, contrary)["accuracy"] == 0.0


def test_a_labeller_that_prefers_a_side_shows_in_its_figures(world):
    groups = [Group(PROMPT, (RIGHT, WRONG)), Group(PROMPT, (WRONG, RIGHT))]
    labels = [LabelResult("tie", "x", probability=0.5, order_effect=effect) for effect in (0.4, 0.2)]
    figures = chain.labeller_figures(world, groups, labels)
    assert (figures["first"], figures["order"], figures["accuracy"]) == pytest.approx((0.3, 0.3, 0.5))

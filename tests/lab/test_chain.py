from __future__ import annotations

import numpy as np
import pytest

from kleash.data.group import Group, Response
from kleash.feedback.labeller import Verdict
from kleash.feedback.scored import ScoredLabeller
from kleash.lab import chain
from kleash.lab.claims import active_pairs
from kleash.lab.world.world import World

PROMPT = "what is 1 plus 2 ?"
RIGHT, WRONG = Response("it is 3 ."), Response("it is 4 .")


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def test_labels_put_the_likelier_first_and_leave_out_what_has_none():
    groups = [Group(PROMPT, (RIGHT, WRONG), columns={"kind": "sum"})] * 3
    first, second = chain.labelled(groups, [0.75, 0.25, None], "somebody")
    assert first.responses == (RIGHT, WRONG) and second.responses == (WRONG, RIGHT)
    assert [group.label.probability for group in (first, second)] == [0.75, 0.75]
    assert first.label.annotator == "somebody" and first.columns == {"kind": "sum"}


def test_gold_as_a_labeller_is_always_right_and_its_contrary_never(world):
    groups = [Group(PROMPT, pair) for pair in ((RIGHT, WRONG), (WRONG, RIGHT), (RIGHT, RIGHT))]
    labeller = ScoredLabeller(chain.Gold(world), name="gold")
    figures = chain.labeller_figures(world, groups, labeller.compare(groups))
    assert figures["accuracy"] == 1.0  # of the two that gold decides
    assert figures["first"] == figures["order"] == 0.0
    contrary = [Verdict("verdict", "x", probability=1 - (v.probability or 0)) for v in labeller.compare(groups)]
    assert chain.labeller_figures(world, groups, contrary)["accuracy"] == 0.0


def test_who_prefers_a_side_is_seen_to(world):
    groups = [Group(PROMPT, (RIGHT, WRONG)), Group(PROMPT, (WRONG, RIGHT))]
    verdicts = [Verdict("tie", "x", probability=0.5, order_effect=effect) for effect in (0.4, 0.2)]
    figures = chain.labeller_figures(world, groups, verdicts)
    assert (figures["first"], figures["order"], figures["accuracy"]) == pytest.approx((0.3, 0.3, 0.5))


def test_a_table_says_mean_and_standard_error_over_seeds():
    text = chain.table({"a": [{"x": 1.0}, {"x": 3.0}], "b": [{"x": -1.0}, {"x": -1.0}]}, {"x": "figure"}, first="who")
    assert text.splitlines() == ["| who | figure |", "|---|---|", "| a | 2.000 ± 1.000 |", "| b | −1.000 ± 0.000 |"]


def test_what_is_found_is_not_sought_again(tmp_path):
    assert chain.once(tmp_path / "x.json", lambda: {"a": 1}) == {"a": 1}
    assert chain.once(tmp_path / "x.json", lambda: pytest.fail("asked twice")) == {"a": 1}


def test_label_noise_turns_its_share_and_the_same_ones_for_all():
    lead = np.random.default_rng(0).normal(size=4000)
    assert (active_pairs.told(lead, 0.0, 1) == (lead > 0)).all()
    noisy = active_pairs.told(lead, 0.25, 1)
    assert abs((noisy != (lead > 0)).mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert (noisy == active_pairs.told(lead, 0.25, 1)).all() and (noisy != active_pairs.told(lead, 0.25, 2)).any()

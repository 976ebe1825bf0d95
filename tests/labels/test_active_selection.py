from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kleash.data.group import Group, Response
from kleash.errors import InputError
from kleash.labels.active_selection import select_pairs, uncertainty, uncertainty_of
from kleash.labels.queue import Queue, QueueSettings
from kleash.labels.store import Store


def pair(lead: float) -> Group:
    return Group(f"which of {lead}?", (Response(str(lead)), Response("0")))


class Member:
    """Scores a response by the number it is, and trusts it as far as it likes."""

    def __init__(self, trust: float) -> None:
        self.trust = trust

    def __call__(self, groups):
        return torch.tensor([[self.trust * float(response.text) for response in group.responses] for group in groups])


def test_uncertainty_is_high_where_the_mean_probability_is_one_half():
    assert uncertainty([pair(4.0), pair(0.0), pair(0.5)], [Member(1.0)], by="uncertainty") == pytest.approx(
        [0.5 - 0.482, 0.5, 0.5 - 0.1225], abs=1e-3
    )
    # two members that are each sure, of opposite things, know nothing together
    assert uncertainty([pair(9.0)], [Member(1.0), Member(-1.0)], by="uncertainty") == pytest.approx([0.5])


def test_disagreement_is_what_only_a_label_can_settle():
    settled, noisy, open_question = pair(9.0), pair(0.0), pair(3.0)
    doubts = uncertainty([settled, noisy, open_question], [Member(1.0), Member(1.1), Member(-1.0)], by="disagreement")
    assert doubts[1] == pytest.approx(0)  # all call it a draw: labels are noise there, and asking teaches nothing
    assert doubts[2] > 0.3


def test_disagreement_needs_somebody_to_disagree_with():
    with pytest.raises(InputError, match="two rewards or more"):
        uncertainty([pair(1.0)], [Member(1.0)], by="disagreement")


@given(st.integers(0, 2**16), st.floats(-50, 50))
def test_the_level_of_a_members_scores_has_no_effect(seed, level):
    scores = torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = scores + torch.tensor([level, 0.0, -level])[:, None, None]
    for by in ("uncertainty", "disagreement"):
        torch.testing.assert_close(uncertainty_of(scores, by=by), uncertainty_of(moved, by=by))
        assert uncertainty_of(scores, by=by).min() >= 0 and uncertainty_of(scores, by=by).max() <= 0.5


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=60), st.data(), st.floats(0, 1), st.integers(0, 9))
def test_the_most_uncertain_pairs_outside_the_audit_slice_are_selected(doubts, data, share, seed):
    count = data.draw(st.integers(0, len(doubts)))
    best, audit = select_pairs(doubts, count, audit_share=share, seed=seed)
    assert len(best) + len(audit) == count == len({*best, *audit})
    assert len(audit) == round(share * count)
    assert [doubts[row] for row in best] == sorted((doubts[row] for row in best), reverse=True)
    rest = set(range(len(doubts))) - {*best, *audit}
    assert not best or not rest or min(doubts[row] for row in best) >= max(doubts[row] for row in rest)


def test_the_audit_slice_does_not_look_at_doubts():
    doubts = [row / 1000 for row in range(500)]
    assert (
        select_pairs(doubts, 200, audit_share=0.5, seed=3)[1]
        == select_pairs(doubts[::-1], 200, audit_share=0.5, seed=3)[1]
    )
    audits = [select_pairs(doubts, 100, audit_share=0.3, seed=seed)[1] for seed in range(100)]
    mean = sum(sum(audit) / len(audit) for audit in audits) / len(audits)
    assert abs(mean - 249.5) < 4 * 144 / 3000**0.5


def test_equal_uncertainties_are_drawn_at_random():
    first, second = (select_pairs([0.0] * 200, 20, audit_share=0, seed=seed)[0] for seed in (0, 1))
    assert first != second and first != sorted(first)


def test_more_than_there_are_cannot_be_chosen():
    with pytest.raises(InputError, match="3 pairs cannot be selected from 2"):
        select_pairs([0.1, 0.2], 3)


def test_the_queue_serves_the_most_uncertain_pairs_first(tmp_path):
    groups = [pair(9.0), pair(0.25), pair(3.0)]
    store = Store.open(tmp_path / "labels.db")
    store.add_tasks(groups, uncertainty=uncertainty(groups, [Member(1.0)], by="uncertainty"))
    annotator = store.invite().annotator
    queue = Queue(store, QueueSettings(order="uncertain", audit_share=0.0, repeat_share=0.0))
    pairs_asked = [assignment.prompt for assignment in queue.next(annotator, 3)]
    assert pairs_asked == ["which of 0.25?", "which of 3.0?", "which of 9.0?"]

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from kleash.checks.monitors import acceleration, watch
from kleash.data.group import Group, Response
from kleash.rewards.learned import LearnedReward
from kleash.rewards.reward import explain
from kleash.stages import reward_model


class Letters:
    """How often a letter occurs."""

    def __init__(self, letter: str) -> None:
        self.letter = letter

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        return torch.tensor([[float(r.text.count(self.letter)) for r in group.responses] for group in groups])


def group(*texts: str, finished: bool = True) -> Group:
    return Group("a", tuple(Response(text, finished=finished) for text in texts))


def test_responses_that_are_all_the_same_are_seen() -> None:
    varied, same = [group("a b c d", "e f g h")], [group("a a a a", "a a a a")]
    scores = torch.zeros(1, 2)
    assert watch(varied, scores)["distinct_1"] == 1.0
    assert watch(same, scores)["distinct_1"] == pytest.approx(1 / 8)


def test_responses_that_were_cut_off_are_counted() -> None:
    groups = [group("a", "b"), group("a", "b", finished=False)]
    assert watch(groups, torch.zeros(2, 2))["truncated"] == 0.5


def test_a_hold_out_that_orders_the_other_way_is_seen() -> None:
    groups = [group("z", "z z y", "z z z", "y y")]
    reward, other = Letters("z"), Letters("y")
    along, against = (watch(groups, reward(groups), validation_reward=held) for held in (reward, other))
    assert along["validation_reward_agreement"] == pytest.approx(1.0)
    assert against["validation_reward_agreement"] is not None and against["validation_reward_agreement"] < 0
    assert against["validation_reward"] == pytest.approx(0.75)


def test_two_rewards_of_which_one_never_varies_have_no_agreement() -> None:
    groups = [group("z", "z z")]
    assert watch(groups, Letters("z")(groups), validation_reward=Letters("x"))["validation_reward_agreement"] is None


def test_the_spread_of_an_ensemble_inside_a_composition_is_found() -> None:
    parts = {"model/spread": torch.tensor([[1.0, 3.0]]), "brief": torch.zeros(1, 2)}
    assert watch([group("a", "b")], torch.zeros(1, 2), parts=parts)["spread"] == pytest.approx(2.0)


def test_what_is_not_there_is_no_figure() -> None:
    assert (
        not {"spread", "validation_reward", "distance", "outside"} & watch([group("a", "b")], torch.zeros(1, 2)).keys()
    )


def test_a_reward_model_says_which_responses_lie_outside_what_it_was_trained_on(base: Path, comparisons: Path) -> None:
    settings = {"model": str(base), "data": str(comparisons), "out": base.parent / "reward", "max_steps": 4}
    folder = reward_model.run(reward_model.RewardConfig.make(settings | {"centre_samples": 0})).path
    reward = LearnedReward.load(folder)
    near, far = [group("z c", "d c")], [group("9 9 9 9 9 9", "user assistant system 7 7 7 7")]
    inside, outside = (
        watch(some, scores, parts=parts) for some in (near, far) for scores, parts in [explain(reward, some)]
    )
    assert inside["distance"] is not None and outside["distance"] is not None
    assert outside["distance"] > inside["distance"]
    assert outside["outside"] == 1.0


def test_a_kl_that_grows_ever_faster_accelerates() -> None:
    assert acceleration([1.0, 2.0]) is None
    assert acceleration([9.0, 1.0, 2.0, 3.0]) == pytest.approx(0.0)
    assert acceleration([1.0, 2.0, 4.0]) == pytest.approx(1.0)
    assert acceleration([0.0, 3.0, 4.0]) == pytest.approx(-2.0)

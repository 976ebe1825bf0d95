"""Rewards routed by row: each row is scored by the reward that its column names, wherever it stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from kleash.content import reward_hash
from kleash.data.group import Group, Response
from kleash.errors import ConfigError, DataError
from kleash.rewards.build import as_reward, build_reward
from kleash.rewards.composition import ComposedReward, Part
from kleash.rewards.function import FunctionReward
from kleash.rewards.reward import Parts, explain, faults
from kleash.rewards.routed import RoutedReward
from kleash.stages.grpo import GRPOConfig

TASKS = ("double", "negative", "abstains", "else")


def group(number: int, task: str | None, responses: int = 2) -> Group:
    texts = tuple(Response(str(10 * number + k)) for k in range(responses))
    return Group(f"prompt {number}", texts, None, {} if task is None else {"task": task})


class Negative:
    """A reward of groups with a component."""

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        return self.explain(groups)[0]

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        scores = -torch.tensor([[float(response.text) for response in group.responses] for group in groups])
        return scores, {"twice": 2 * scores}


def routed() -> RoutedReward:
    return RoutedReward(
        "task",
        {
            "double": FunctionReward(lambda completions: [2.0 * float(text) for text in completions]),
            "negative": Negative(),
            "abstains": FunctionReward(lambda completions: [None] * len(completions)),
            "default": FunctionReward(lambda completions: [0.5] * len(completions)),
        },
    )


def expected(number: int, task: str | None, k: int) -> float | None:
    value = 10 * number + k
    return {"double": 2.0 * value, "negative": -float(value), "abstains": None}.get(task or "", 0.5)


@given(tasks=st.lists(st.sampled_from([*TASKS, None]), min_size=1, max_size=9), order=st.randoms())
@settings(max_examples=60, deadline=None)
def test_each_row_gets_the_score_of_its_own_reward_in_any_order(tasks: list[str | None], order) -> None:
    rows = list(enumerate(tasks))
    order.shuffle(rows)
    scores, parts = explain(routed(), [group(number, task) for number, task in rows])
    for p, (number, task) in enumerate(rows):
        for k in range(2):
            value = expected(number, task, k)
            if value is None:
                assert scores[p, k].isnan() and parts["no_opinion"][p, k] == 1
            else:
                assert scores[p, k] == value and ("no_opinion" not in parts or parts["no_opinion"][p, k] == 0)
        route = task if task in ("double", "negative", "abstains") else "default"
        assert [parts[f"{name}/count"][p, 0].item() for name in routed().rewards] == [
            float(name == route) for name in routed().rewards
        ]
        assert parts["double"][p].isnan().all() == (route != "double")
        if "negative/twice" in parts:
            twice = parts["negative/twice"][p]
            assert twice.isnan().all() if route != "negative" else torch.equal(twice, 2 * scores[p])


def test_a_value_of_no_reward_is_named_with_its_row_and_the_keys() -> None:
    reward = as_reward({"by": "task", "math": "number", 3: "exact", "true": lambda completions: [1.0]})
    rows = [
        Group("a", (), None, {"task": "math", "answer": "1"}),
        Group("b", (), None, {"task": 3, "answer": "1"}),
        Group("c", (), None, {"task": True}),
        Group("d", (), None, {"task": "poem"}),
        Group("e"),
        Group("f", (), None, {"task": "math"}),
    ]
    bad = faults(reward, rows)
    assert list(bad) == [3, 4, 5]
    assert "the row with prompt 'd' has 'poem' there; known: math, 3, true (`default`" in bad[3]
    assert "the row with prompt 'e' has none" in bad[4]
    assert "reads the column 'answer', but the row with prompt 'f' has none" in bad[5], "its own reward reads it"
    with pytest.raises(DataError, match="has 'poem' there; known: math, 3, true"):
        reward([group(1, "poem")])
    assert faults(as_reward({"by": "tsk", "default": "ended"}), rows)[0].endswith("which no row has; known: default")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "routed_of_this_test.py").write_text("def one(completions):\n    return [1.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "reward.yaml"


ROWS = [
    Group("x", (Response("5"), Response("6")), None, {"task": "sum", "answer": "5"}),
    Group("y", (Response("b"), Response("a")), None, {"task": "spell", "answer": "a"}),
    Group("z", (Response("b"), Response("a")), None, {"task": "talk"}),
]
ROUTE = "{by: task, sum: number, spell: exact, default: 'routed_of_this_test:one'}"


@pytest.mark.parametrize(
    "text", [ROUTE, f"reward: {ROUTE}", f"parts: [{{reward: {ROUTE}}}]", f"parts: [{{reward: {ROUTE}, name: mine}}]"]
)
def test_a_file_routes_rows_by_itself_and_in_a_part(files: Path, text: str) -> None:
    files.write_text(text)
    scores, parts = explain(build_reward(files), ROWS)
    assert scores.tolist() == [[1, 0], [0, 1], [1, 1]]
    prefix = {"mine": "mine/", "part": "task/"}.get("mine" if "mine" in text else text[:4], "")
    assert parts[f"{prefix}sum/right"][0].tolist() == [1, 0]
    assert parts[f"{prefix}default"][2].tolist() == [1, 1]


def test_a_config_takes_a_mapping_and_its_text(files: Path) -> None:
    values = {"model": "m", "data": "d.jsonl", "out": "o"}
    mapping = {"by": "task", "sum": "number", "spell": "exact", "default": "routed_of_this_test:one"}
    configs = [GRPOConfig.make({**values, "reward": reward, "gold": reward}) for reward in (mapping, ROUTE)]
    assert configs[0] == configs[1]
    assert build_reward(configs[0].reward)(ROWS).tolist() == [[1, 0], [0, 1], [1, 1]]
    before = reward_hash(configs[0].reward)
    Path("routed_of_this_test.py").write_text("def one(completions):\n    return [2.0] * len(completions)\n")
    assert reward_hash(configs[0].reward) != before, "what a row is routed to is part of the reward"
    files.write_text(ROUTE)
    before = reward_hash(str(files))
    Path("routed_of_this_test.py").write_text("def one(completions):\n    return [3.0] * len(completions)\n")
    assert reward_hash(str(files)) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{by: task}", "should be `by`, a column, and for its values"),
        ("{by: task, sum: 3}", "should be `by`, a column, and for its values"),
        ("{by: task, sum: nmber}", "reward nmber: no such folder"),
        ("{by: task, sum: other.yaml}", "routes to other.yaml; a .yaml file cannot name another one"),
        ("parts: [{reward: {by: task, sum: other.yaml}}]", "a reward other than a .yaml file"),
        ("parts: [{reward: {sum: number}}]", "should be `by`, a column, and for its values"),
    ],
)
def test_a_route_that_cannot_be_is_an_error_of_one_line(files: Path, text: str, message: str) -> None:
    files.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        build_reward(files)
    assert "\n" not in str(caught.value)


def test_a_part_without_an_opinion_adds_nothing_and_no_part_with_one_is_no_opinion() -> None:
    def gives(*values: float | None) -> FunctionReward:
        return FunctionReward(lambda completions: list(values))

    rows = [Group("x", tuple(map(Response, "abcd")))]
    parts = [
        (Part(reward="first", weight=2.0), gives(1, None, None, 3)),
        (Part(reward="second", clip=(2, 5)), gives(None, 1, None, None)),
        (Part(reward="gated", gate="first"), gives(7, 7, None, None)),
        (Part(reward="watched", weight=0.0), gives(9, 9, 9, 9)),
    ]
    scores, components = explain(ComposedReward(parts, filter_on="first"), rows)
    assert scores[0, [0, 1, 3]].tolist() == [2 + 7, 2, 6] and scores[0, 2].isnan()
    assert components["no_opinion"].tolist() == [[0, 0, 1, 0]], "a part of weight 0 only watches"
    assert components["second/no_opinion"].tolist() == [[1, 0, 1, 1]]
    assert components["filter_on"].nan_to_num(-1).tolist() == [[1, -1, -1, 3]]
    broken = [(Part(reward="broken"), lambda groups: torch.tensor([[torch.nan, 1, 1, 1]]))]
    scores, components = explain(ComposedReward(broken), rows)
    assert scores[0, 0].isnan() and "no_opinion" not in components, "a fault is no opinion"


def test_the_part_that_decides_is_named_in_the_file(files: Path) -> None:
    files.write_text("parts: [{reward: number}, {reward: ended, weight: 0.1}]\nfilter_on: number")
    reward = build_reward(files)
    assert explain(reward, ROWS[:1])[1]["filter_on"].tolist() == [[1, 0]]
    files.write_text("parts: [{reward: number}, {reward: ended}]\nfilter_on: length")
    with pytest.raises(ConfigError, match="'filter_on' is 'length', but should be one of number, ended"):
        build_reward(files)

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kleash.content import reward_hash
from kleash.data.group import Group, Response
from kleash.errors import ConfigError
from kleash.rewards.build import build_reward
from kleash.rewards.reward import Reward, explain, faults

GROUPS = [
    Group("x", tuple(map(Response, ("it is 72", "72", "it may well be 73", "no"))), None, {"answer": "72"}),
    Group("y", tuple(map(Response, ("1", "a b c d e f 1", "2", "a b 2"))), None, {"answer": "1"}),
]


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_rewards_of_this_test.py").write_text(
        "def words(prompts, completions, **columns):\n    return [float(len(text.split())) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path / "reward.yaml"


def test_the_score_is_the_weighted_sum_of_clipped_and_gated_parts(composed: Path) -> None:
    composed.write_text(
        "parts:\n"
        "  - {reward: number, weight: 2}\n"
        "  - {reward: 'my_rewards_of_this_test:words', name: words, weight: -0.5, clip: [2, 5], gate: number}\n"
        "  - {reward: exact, weight: 0.25}\n"
    )
    reward = build_reward(str(composed))
    assert isinstance(reward, Reward)
    scores, parts = explain(reward, GROUPS)
    #        2·number − ½·clip(words) where right + ¼·exact
    expected = [[2 - 1.5, 2 - 1.0 + 0.25, 0, 0], [2 - 1.0 + 0.25, 2 - 2.5, 0, 0]]
    assert scores.tolist() == expected == reward(GROUPS).tolist()
    assert parts["words"].tolist() == [[3, 1, 5, 1], [1, 7, 1, 3]], "each part is logged as it was"
    assert parts["number"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert parts["number/unparsable"].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert list(parts)[:3] == ["number", "words", "exact"]


def test_the_shipped_reward_pays_for_right_answers_that_ended_only() -> None:
    reward = build_reward(str(Path(__file__).parents[2] / "recipes/rewards/right-and-ended.yaml"))
    responses = (Response("it is 72"), Response("it is 72", finished=False), Response("it is 73"))
    scores, parts = explain(reward, [Group("x", responses, None, {"answer": "72"})])
    assert scores.tolist() == [[1, 0, 0]]
    assert parts["ended"].tolist() == [[1, 0, 1]]


def test_F4_a_closed_gate_lets_nothing_through_not_even_an_infinity() -> None:
    from kleash.rewards.composition import ComposedReward, Part

    gate = lambda groups: torch.tensor([[1.0, 0.0]])  # noqa: E731
    odd = lambda groups: torch.tensor([[3.0, float("inf")]])  # noqa: E731
    parts = [(Part(reward="g"), gate), (Part(reward="o", gate="g"), odd)]
    assert ComposedReward(parts)([Group("x", (Response("a"), Response("b")))]).tolist() == [[4.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parts: []", "should have one key, 'parts': a list of"),
        ("parts: [number]", "should have one key, 'parts': a list of"),
        ("weight: 3\nparts: [{reward: number}]", "should have one key, 'parts'"),
        ("parts: [{reward: number, wieght: 3}]", r"part 1: unknown key 'wieght'; did you mean 'weight'\?"),
        ("parts: [{reward: number, weight: much}]", "part 1: 'weight' is 'much', but should be a valid number"),
        ("parts: [{reward: number, weight: .inf}]", "part 1: 'weight' is inf, but should be a finite number"),
        (
            "parts: [{reward: number, clip: [1, -1]}]",
            r"'clip' is \[1, -1\], but should be \[lower, upper\] with",
        ),
        ("parts: [{weight: 1}]", "part 1: 'reward' is missing; give a verifier"),
        ("parts: [{reward: number}, {reward: number}]", "part 2: another part is 'number' too; give it a 'name'"),
        ("parts: [{reward: number, gate: number}]", "'gate' is 'number', but should be another part's name"),
        ("parts: [{reward: number, gate: math}]", "'gate' is 'math', but should be another part's name"),
        (
            "parts: [{reward: reward.yaml}]",
            "a reward other than a .yaml file; list the parts of that file here",
        ),
        ("parts: [{reward: numbr}]", "no such folder; give a reward model's folder"),
    ],
)
def test_an_invalid_composition_is_an_error_of_one_line(composed: Path, text: str, message: str) -> None:
    composed.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        build_reward(str(composed))
    assert "\n" not in str(caught.value)


def test_a_composition_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        build_reward(str(tmp_path / "none.yaml"))


def test_F11_a_reward_is_another_one_where_anything_it_is_made_of_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "learned").mkdir()
    files = {
        "reward.yaml": "parts: [{reward: learned}, {reward: exact, name: n}, {reward: 'pack.mine:f'}, {reward: 'm:g'}]",
        "learned/model.safetensors": "weights",
        "pack/mine.py": "def f(prompts, completions): return [0.0]",
        "m.py": "def g(prompts, completions): return [0.0]",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = reward_hash("reward.yaml")
    assert reward_hash("reward.yaml") == before
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace("0.0", "1.0").replace("name: n", "name: o") + " ")
        assert reward_hash("reward.yaml") != before, name
        (tmp_path / name).write_text(text)
    assert reward_hash("m:g") != reward_hash("pack.mine:f") != reward_hash("nowhere:f")


def test_a_part_of_weight_0_is_scored_and_logged_and_adds_nothing() -> None:
    from kleash.rewards.composition import ComposedReward, Part

    paid = lambda groups: torch.tensor([[1.0, 2.0]])  # noqa: E731
    odd = lambda groups: torch.tensor([[float("inf"), -3.0]])  # noqa: E731
    parts = [(Part(reward="paid"), paid), (Part(reward="watched", weight=0.0), odd)]
    scores, components = ComposedReward(parts).explain([Group("x", (Response("a"), Response("b")))])
    assert scores.tolist() == [[1, 2]]
    assert components["watched"].tolist() == [[float("inf"), -3]]


def test_a_judges_file_may_be_a_part_and_is_part_of_the_identity(composed: Path) -> None:
    judge = composed.parent / "judge.yaml"
    judge.write_text("judge: m\nendpoint: http://127.0.0.1:9/v1\nrubric: rows\n")
    composed.write_text("parts: [{reward: number}, {reward: judge.yaml, name: judge, weight: 0}]\n")
    reward = build_reward(str(composed))
    assert set(faults(reward, GROUPS)) == {0, 1}, "a monitor's columns are checked as well"
    before = reward_hash(str(composed))
    judge.write_text(judge.read_text().replace("rubric: rows", "rule: Be good."))
    assert reward_hash(str(composed)) != before
    composed.write_text("{by: task, math: math, default: judge.yaml}\n")
    build_reward(str(composed))
    judge.write_text("parts: [{reward: number}]\n")
    with pytest.raises(ConfigError, match=r"a \.yaml file cannot name another one"):
        build_reward(str(composed))

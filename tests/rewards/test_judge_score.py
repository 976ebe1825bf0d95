from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from kleash.chat.client import ChatClient
from kleash.chat.openai_endpoint import Endpoint
from kleash.content import reward_hash
from kleash.data.group import Group, Response
from kleash.errors import ConfigError, DataError
from kleash.models.compute import Compute
from kleash.rewards.build import build_reward
from kleash.rewards.judge_score import SCALE, JudgeReward
from tests.chat.loopback import Reply, Server


def group(*texts: str) -> Group:
    return Group("asked", tuple(Response(text) for text in texts))


def rates(body: Mapping[str, Any]) -> Reply:
    text = body["messages"][0]["content"]
    if "gibberish" in text:
        return "Well", {"Well": 0.999}
    if "either" in text:
        return "1", {"1": 0.45, "9": 0.45, "So": 0.1}
    return ("9", {"9": 1.0}) if ">\nbest\n<" in text else ("1", {"1": 0.5, " 1": 0.5})


def test_a_score_is_the_one_that_the_judge_expects_to_give_from_minus_one_to_one() -> None:
    with Server(rates) as server:
        reward = JudgeReward(ChatClient(Endpoint(server.url, "m")), rule="Be good.")
        scores = reward([group("best", "worst"), group("either", "worst")])
    torch.testing.assert_close(scores, torch.tensor([[1.0, -1.0], [0.0, -1.0]]))
    assert all("Be good." in body["messages"][0]["content"] for body in server.requests)


def test_a_response_without_a_score_is_an_error() -> None:
    with Server(rates) as server, pytest.raises(DataError, match="gave no score to 'gibberish'"):
        JudgeReward(ChatClient(Endpoint(server.url, "m")), rule="Be good.")([group("gibberish", "best")])


def test_a_judge_file_is_a_reward_and_its_hash_covers_the_model(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text(f"judge: {base}\nrule: Prefer more z.\n")
    reward = build_reward(str(path), compute=Compute("cpu"))
    scores = reward([group("a b", "z z z"), group("c", "d")])
    assert scores.shape == (2, 2) and bool((scores.abs() <= 1).all())
    before = reward_hash(str(path))
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    assert reward_hash(str(path)) != before


def test_a_file_that_is_wrong_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text("judge: m\nrules: Be good.\n")
    with pytest.raises(ConfigError, match=r"judge.yaml: unknown key 'rules'; did you mean 'rule'"):
        build_reward(str(path))


def test_every_score_is_one_character() -> None:
    assert tuple("123456789") == SCALE

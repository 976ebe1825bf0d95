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
from kleash.errors import ConfigError, GateError, RewardError
from kleash.models.compute import Compute
from kleash.rewards.build import build_reward
from kleash.rewards.judge_score import SCALE, JudgeReward
from kleash.rewards.reward import NO_OPINION, explain
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


def votes(body: Mapping[str, Any]) -> Reply:
    """A server without log-probabilities: a sampled rating, by the seed."""
    text = body["messages"][0]["content"]
    if "gibberish" in text:
        return "I cannot rate that.", {}
    return (f"Rating: {5 + body.get('seed', 0) % 3}" if ">\nbest\n<" in text else "1"), {}


def test_a_score_is_the_one_that_the_judge_expects_to_give_from_minus_one_to_one() -> None:
    with Server(rates) as server:
        reward = JudgeReward(ChatClient(Endpoint(server.url, "m")), rule="Be good.")
        scores = reward([group("best", "worst"), group("either", "worst")])
    torch.testing.assert_close(scores, torch.tensor([[1.0, -1.0], [0.0, -1.0]]))
    of_responses = [body for body in server.requests if "<response" in body["messages"][0]["content"]]
    assert all("Be good." in body["messages"][0]["content"] for body in of_responses)
    assert len(server.requests) == len(of_responses) + 1, "one request finds out what the server reports"


def test_a_server_without_log_probabilities_is_asked_for_votes() -> None:
    with Server(votes, takes=()) as server:
        reward = JudgeReward(ChatClient(Endpoint(server.url, "m")), rule="Be good.")
        scores, parts = explain(reward, [group("best", "worst")])
        asked = len(server.requests)
    # five votes with seeds 0 to 4: 5, 6, 7, 5, 6
    torch.testing.assert_close(scores, torch.tensor([[2 * (29 / 5 - 1) / 8 - 1, -1.0]]))
    assert parts["requests/count"].tolist() == [[5, 5]]
    assert asked == 11, "and one to find out"
    assert parts["vote_spread"][0, 0] == pytest.approx(0.56**0.5)
    assert parts["tokens/count"][0].min() > 0


def test_a_response_without_a_readable_vote_has_no_opinion_and_it_is_counted() -> None:
    with Server(votes, takes=()) as server:
        reward = JudgeReward(ChatClient(Endpoint(server.url, "m")), rule="Be good.")
        scores, parts = explain(reward, [group("best", "gibberish")])
    assert scores.isnan().tolist() == [[False, True]]
    assert parts["unreadable"].tolist() == [[0, 1]]
    assert parts[NO_OPINION].tolist() == [[0, 1]]


@pytest.mark.parametrize(("reply", "takes"), [(rates, ("logprobs",)), (votes, ())])
def test_a_judge_that_rates_nothing_ends_the_run(reply: Any, takes: tuple[str, ...]) -> None:
    with (
        Server(reply, takes=takes) as server,
        pytest.raises(RewardError, match="no readable verdict on any of 2 quest"),
    ):
        JudgeReward(ChatClient(Endpoint(server.url, "m")), rule="Be good.")([group("gibberish", "gibberish too")])


def test_many_requests_run_at_the_same_time_up_to_the_bound_and_each_is_paid_once(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    with Server(votes, takes=(), faults=dict.fromkeys((1, 2, 3), "hang")) as server:
        path.write_text(f"judge: m\nendpoint: {server.url}\nanswers: votes\nvotes: 4\nconcurrency: 3\n")
        first = build_reward(str(path))([group("best", "worst", "good", "bad")])
        assert (len(server.requests), server.peak) == (16, 3), "the first three wait for each other's answers"
        again = build_reward(str(path))([group("best", "worst", "good", "bad")])
        assert len(server.requests) == 16, "the file beside the judge's keeps the replies"
    assert torch.equal(first, again)
    assert (tmp_path / "judge.calls.db").exists()


def test_a_request_that_hangs_is_given_up_and_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    with Server(votes, takes=(), faults={1: "hang", 2: "500"}) as server:
        path.write_text(f"judge: m\nendpoint: {server.url}\nanswers: votes\nvotes: 1\ntimeout: 0.5\n")
        assert build_reward(str(path))([group("worst")]).tolist() == [[-1]]
        assert len(server.requests) == 3


def test_a_spent_budget_stops_in_one_line_and_a_raised_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    with Server(votes, takes=()) as server:
        text = f"judge: m\nendpoint: {server.url}\nanswers: votes\nvotes: 1\nprice: [1, 1]\nconcurrency: 1\n"
        path.write_text(text + "budget: 0.0015\n")
        rows = [group(*(f"response {n}" for n in range(8)))]
        with pytest.raises(GateError, match=r"budget of 0\.0015 is reached.*'budget' in .*judge\.yaml") as caught:
            build_reward(str(path))(rows)
        assert "--accept-changed reward" in str(caught.value)
        paid = len(server.requests)
        assert 0 < paid < 8
        with pytest.raises(GateError):
            build_reward(str(path))(rows)
        assert len(server.requests) == paid, "what was spent is known to the next run, too"
        path.write_text(text + "budget: 1\n")
        assert build_reward(str(path))(rows).tolist() == [[-1] * 8]
        assert len(server.requests) == 8


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

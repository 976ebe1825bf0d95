from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.special import logit

from kleash.cli import _run
from kleash.data.formats import read_groups
from kleash.data.group import Group, Preference, Response, chosen_first, pair_of
from kleash.errors import ChangedError, ConfigError, DataError, GateError, InputError
from kleash.io import read_jsonl
from kleash.labels.labeller import LabelResult
from kleash.labels.store import Store
from kleash.recipe import read_recipe
from kleash.run import read_record
from kleash.stages.rank import RankConfig, run
from tests.chat.loopback import Reply, Server, shown

Write = Callable[[str, list[dict[str, Any]]], Path]

PROMPTS = 12


@pytest.fixture
def files(write: Write) -> list[Path]:
    """Responses of three models: a is right on three of four prompts, b on half, c on a quarter."""
    return [
        write(
            f"{name}.jsonl",
            [
                {"prompt": f"q{i}", "response": f"{'it is ' * (i % 3)}{i if i % 4 in right else 99}", "answer": str(i),
                 "topic": "odd" if i % 2 else "even"}
                for i in range(PROMPTS)
            ],
        )
        for name, right in (("a", {0, 1, 2}), ("b", {0, 3}), ("c", {1}))
    ]  # fmt: skip


def config(out: Path, **settings: Any) -> RankConfig:
    return RankConfig.make({"out": out, **settings})


def shares(results: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    return {(pair["model"], pair["other"]): pair["win_rate"]["share"] for pair in results["pairs"]}


def test_models_are_ranked_by_a_reward_in_one_command(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ranking"
    words = ["rank", "--data", *map(str, files), "--reward", "number", "--by", "topic", "--elo", "--out", str(out)]
    assert _run(words) == 0
    text = capsys.readouterr().out
    assert text == (out / "ranking.txt").read_text() + f"\n{out}\n"
    assert "36 comparisons on 12 prompts" in text and "topic = even: 18 comparisons on 6 prompts" in text
    record = read_record(out)
    assert record is not None
    assert [row["model"] for row in record["results"]["models"]] == ["a", "b", "c"]
    # on prompts i mod 4: a and b differ at 1, 2 (a wins) and 3 (b wins)
    assert shares(record["results"]) == {("a", "b"): 0.625, ("a", "c"): 0.75, ("b", "c"): 0.625}
    (first, *_) = read_jsonl(out / "prompts.jsonl")
    assert (first["prompt"], first["wins"]) == ("q0", {"a": 0.75, "b": 0.75, "c": 0.0})
    assert (out / "ranking.svg").read_text().startswith("<svg")
    assert _run([*words[:-3], "--out", str(out), "--json"]) == 0, "done already; the table's scale does not matter"
    assert json.loads(capsys.readouterr().out)["results"]["prompts"] == 12


def test_several_responses_to_a_prompt_are_one_comparison_and_scores_may_be_in_the_file(
    write: Write, tmp_path: Path
) -> None:
    q: dict[str, Any] = {"prompt": "q", "responses": ["x", "y"]}
    a = write("a.jsonl", [q | {"scores": [1, 3]}, {"prompt": "r", "response": "x", "score": 0}])
    b = write("b.jsonl", [q | {"scores": [2, 3]}, {"prompt": "r", "response": "z", "score": 1}])
    results = run(config(tmp_path / "out", data=[f"one={a}", f"two={b}"])).record["results"]
    # q: 1<2, 1<3, 3>2, 3=3; r: 0<1
    assert shares(results) == {("two", "one"): pytest.approx(1 - (1.5 / 4 + 0) / 2)}
    assert results["comparisons"] == 2


def test_a_prompt_that_a_model_lacks_is_counted_and_left_out(
    files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files[2].write_text("".join(f"{line}\n" for line in files[2].read_text().splitlines()[3:]))
    results = run(config(tmp_path / "out", data=files, reward="number")).record["results"]
    assert results["missing"] == {"a": 0, "b": 0, "c": 3}
    assert results["comparisons"] == 12 + 9 + 9
    assert caplog.text.count("left out: 3 prompts without a response of c") == 1


def test_a_live_reward_ranks_and_a_response_that_it_has_no_opinion_of_is_left_out(
    files: list[Path], tmp_path: Path
) -> None:
    class Brevity:
        def __call__(self, groups: Sequence[Group]) -> torch.Tensor:
            return self.explain(groups)[0]

        def explain(self, groups: Sequence[Group]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            texts = [[response.text for response in group.responses] for group in groups]
            none = torch.tensor([[float(text == "it is 99") for text in row] for row in texts])
            scores = torch.tensor([[-float(len(text)) for text in row] for row in texts])
            return scores.masked_fill(none == 1, float("nan")), {"no_opinion": none}

    results = run(config(tmp_path / "out", data=files, reward="brevity"), reward=Brevity()).record["results"]
    # i mod 3 = 1: a writes it is 99 at 7; b at 1 and 10; c at 4, 7 and 10
    assert results["left_out"] == {"pairs of which the reward has no opinion": 3 + 3 + 4}
    assert results["comparisons"] == 36 - 10


def prefers_longer(body: Mapping[str, Any]) -> Reply:
    text = body["messages"][0]["content"]
    if "<response 1" not in text:
        return "1", {"1": 0.99}
    a, b = map(len, shown(body))
    first = 0.5 if a == b else 0.9 if a > b else 0.1
    return "1" if first > 0.5 else "2", {"1": first, "2": 1 - first}


def test_a_judge_compares_both_orders_and_equal_texts_are_a_tie_without_asking(write: Write, tmp_path: Path) -> None:
    a = write("a.jsonl", [{"prompt": f"q{i}", "response": "long words" if i else "same"} for i in range(6)])
    b = write("b.jsonl", [{"prompt": f"q{i}", "response": "word" if i else "same"} for i in range(6)])
    judge = tmp_path / "judge.yaml"
    with Server(prefers_longer) as server:
        judge.write_text(f"judge: m\nendpoint: {server.url}\nrule: The longer one.\n")
        results = run(config(tmp_path / "out", data=[a, b], judge=judge)).record["results"]
        assert len(server.requests) == 1 + 2 * 5
        assert any("The longer one." in body["messages"][0]["content"] for body in server.requests)
    assert results["ties"] == 1
    assert shares(results) == {("a", "b"): pytest.approx((5 * 0.9 + 0.5) / 6)}


def test_a_judge_that_cannot_be_read_is_an_error_and_a_rubric_is_not_compared_by(
    files: list[Path], tmp_path: Path
) -> None:
    judge = tmp_path / "judge.yaml"
    with Server(lambda body: ("Well", {"Well": 1.0})) as server:
        judge.write_text(f"judge: m\nendpoint: {server.url}\nanswers: logprobs\n")
        with pytest.raises(GateError, match=r"no readable verdict on any of \d+ pairs \(neither 1 nor 2 was likely"):
            run(config(tmp_path / "out", data=files, judge=judge))
    judge.write_text("judge: m\nendpoint: http://127.0.0.1:9/v1\nrubric: [good]\n")
    with pytest.raises(ConfigError, match="has a 'rubric', which scores one response; give it as --reward"):
        run(config(tmp_path / "other", data=files, judge=judge))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Votes on a against b (a wins on two of three) and b against c, of which some pairs say who wrote what."""
    path = tmp_path / "labels.db"
    labels = Store.open(path)
    for i in range(3):
        pair = Group(f"q{i}", (Response(f"a{i}"), Response(f"b{i}")), columns={"models": ["a", "b"]})
        labels.record([pair], [LabelResult.of(float(i > 0), "ann")], kind="file")
        labels.record([pair_of(pair, 1, 0)], [LabelResult.of(float(i == 0), "bea")], kind="file")
    labels.record([Group("q9", (Response("b"), Response("c")))], [LabelResult.of(1.0, "ann")], kind="file")
    labels.close()
    return path


def test_votes_of_a_store_rank_the_models_that_its_pairs_name(store: Path, tmp_path: Path) -> None:
    results = run(config(tmp_path / "out", store=str(store))).record["results"]
    assert shares(results) == {("a", "b"): pytest.approx(2 / 3)}
    assert (results["comparisons"], results["prompts"]) == (6, 3)
    assert results["left_out"] == {"pairs without 'models'": 1}
    a, b = results["models"]
    assert a["strength"]["value"] - b["strength"]["value"] == pytest.approx(logit(2 / 3))


def test_files_say_who_wrote_what_the_votes_are_about(store: Path, write: Write, tmp_path: Path) -> None:
    texts = {"x": ["b0", "a1", "same"], "y": ["a0", "b1", "same"]}
    files = [
        write(f"{name}.jsonl", [{"prompt": f"q{i}", "response": text} for i, text in enumerate(of_model)])
        for name, of_model in texts.items()
    ]
    results = run(config(tmp_path / "out", store=str(store), data=files)).record["results"]
    assert (results["comparisons"], results["ties"]) == (5, 1), "two votes on each of two pairs, and equal texts"
    assert shares(results) == {("x", "y"): pytest.approx(4.5 / 5)}


def test_a_new_vote_makes_another_ranking(store: Path, tmp_path: Path) -> None:
    run(config(tmp_path / "out", store=str(store)))
    labels = Store.open(store)
    labels.record([Group("q0", (Response("a0"), Response("b0")))], [LabelResult.of(1.0, "cleo")], kind="file")
    labels.close()
    with pytest.raises(ChangedError, match="the content of store"):
        run(config(tmp_path / "out", store=str(store)))


def test_labelled_rows_say_who_wrote_what_in_models_or_in_columns_of_the_chosen_one(
    write: Write, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "chosen": "1", "rejected": "2", "chosen_model": "a", "rejected_model": "b"},
        {"prompt": "q", "chosen": "1", "rejected": "2", "models": ["b", "a"], "chosen_probability": 0.5},
        {"prompt": "r", "responses": ["1", "2", "3"], "models": ["a", "b", "c"], "ranks": [0, 0, 1]},
    ]
    results = run(config(tmp_path / "out", data=[write("rows.jsonl", rows)])).record["results"]
    assert shares(results)["a", "b"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert results["models"][-1]["model"] == "c" and results["models"][-1]["place"] == "below"


def test_who_wrote_what_stays_right_where_responses_change_places(tmp_path: Path, write: Write) -> None:
    columns = {"models": ["a", "b"], "chosen_model": "a", "rejected_model": "b", "chosen": 1}
    flipped = chosen_first(Group("p", (Response("1"), Response("2")), Preference(0.25), columns))
    assert flipped.columns == {"models": ["b", "a"], "chosen_model": "b", "rejected_model": "a", "chosen": 1}
    group = Group("p", tuple(map(Response, "123")), columns={"models": ["a", "b", "c"]})
    assert pair_of(group, 2, 0).columns == {"models": ["c", "a"]}
    labels = Store.open(tmp_path / "labels.db")
    labels.add_tasks([group])
    assert sorted(task.columns["models"] for task in labels.tasks().values()) == [["a", "b"], ["a", "c"], ["b", "c"]]
    labels.close()


def test_models_are_sampled_on_prompts(base: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranking"
    settings: dict[str, Any] = {
        "models": [f"hot={base}", f"cold={base}"],
        "prompts": prompts,
        "reward": "ended",
        "max_new_tokens": 4,
        "n": 2,
    }
    results = run(config(out, **settings)).record["results"]
    assert results["prompts"] == 10, "rows with one prompt are one prompt"
    assert shares(results) == {("cold", "hot"): 0.5}, "the same model with the same seed"
    assert len(list(read_groups(out / "responses" / "hot.jsonl"))) == 30


def test_a_recipe_hands_models_on(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "out: runs\nmodel: base\ndata: d.jsonl\nstages:\n  one: {stage: sft}\n  two: {stage: sft}\n"
        "  rank: {models: ['@one', '@two'], prompts: p.jsonl, reward: ended, data: []}\n"
    )
    rank = read_recipe(recipe)[-1].config
    assert isinstance(rank, RankConfig)
    assert rank.named("models") == {"one": "runs/one", "two": "runs/two"}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ConfigError, "'data' is missing; give a file of responses for each model, 'store', or 'models'"),
        (
            {"data": ["a.jsonl", "b/a.jsonl"], "reward": "number"},
            ConfigError,
            r"two of 'data' have the same name \(a\)",
        ),
        (
            {"data": ["a.jsonl", "b.jsonl"], "reward": "number", "judge": "j.yaml"},
            ConfigError,
            "'reward' and 'judge' both",
        ),
        ({"models": ["a", "b"]}, ConfigError, "'models' and 'prompts' go together"),
        ({"models": ["a", "b"], "prompts": "p.jsonl"}, ConfigError, "needs 'reward', 'judge' or 'store'"),
        ({"models": ["a"], "prompts": "p.jsonl", "reward": "math"}, ConfigError, "'models' should be two or more"),
        ({"store": "nowhere.db"}, InputError, "nowhere.db: there is no such label store"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, settings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        run(config(tmp_path / "out", **settings))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "q0", "response": "1"}], r"b\.jsonl row 1: has no 'score'; .*give --reward or --judge"),
        ([{"prompt": "q0", "chosen": "1", "rejected": "2"}], r"b\.jsonl row 1: has no response of one model"),
        ([{"prompt": "q0"}], r"b\.jsonl row 1: has no response of one model"),
        (
            [{"prompt": "another", "response": "1", "score": 1}],
            "nothing to compare: no prompt has a verdict on two",
        ),
    ],
)
def test_rows_that_cannot_be_ranked_are_one_line(write: Write, tmp_path: Path, rows: Any, message: str) -> None:
    one = write("a.jsonl", [{"prompt": "q0", "response": "1", "score": 1}])
    with pytest.raises(DataError, match=message) as caught:
        run(config(tmp_path / "out", data=[one, write("b.jsonl", rows)]))
    assert "\n" not in str(caught.value)


def test_a_file_of_comparisons_without_names_says_what_to_give(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl row 1: has no column 'models' .*: --data NAME=FILE NAME=FILE"):
        run(config(tmp_path / "out", data=[files[0]]))
    with pytest.raises(DataError, match=r"--by task: the row with prompt 'q0' has no such column; it has answer"):
        run(config(tmp_path / "other", data=files, reward="number", by="task"))

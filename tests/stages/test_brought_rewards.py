"""Rewards that people bring, through whole runs: no opinion, rows that cannot be read, routing, live rewards."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from kleash.data.formats import read_groups
from kleash.errors import ChangedError, DataError, RewardError
from kleash.rewards.build import as_reward
from kleash.rollout import Rollout, Rollouts, build_components, read_prompts
from kleash.run import RunFolder
from kleash.stages import best_of_n, grpo, ppo, score
from kleash.training.optim import Optimizer


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


WORDS = "a b c d e f g h i j k l m n o p q r s t u v w x y z".split()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Forty prompts with an answer and a task."""
    return write(tmp_path / "rows.jsonl", [row(number) for number in range(40)])


def row(number: int, **changes: Any) -> dict[str, Any]:
    task = ("sum", "talk")[number % 2]
    values = {"prompt": f"{WORDS[number % 26]} {number % 10}", "answer": str(number % 10), "task": task} | changes
    return {name: value for name, value in values.items() if value is not None}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def train(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, base: Path, rows: Path) -> Callable:
    def run(stage: str, reward: Any, **changes: Any) -> RunFolder:
        values = {
            "model": str(base), "data": str(rows), "reward": "live", "out": base.parent / stage, "batch_size": 4,
            "max_steps": 2, "max_new_tokens": 6, "learning_rate": 1e-3, "schedule": "constant", "force": True,
        } | ({"group_size": 4} if stage == "grpo" else {"inner_epochs": 1}) | changes  # fmt: skip
        if isinstance(reward, dict | str):
            values["reward"], reward = reward, None
        module = {"grpo": grpo, "ppo": ppo}[stage]
        config = {"grpo": grpo.GRPOConfig, "ppo": ppo.PPOConfig}[stage].make(values)
        return module.run(config, reward=reward)

    return run


def abstains(prompts, completions, **columns):
    return [None if i % 3 == 0 else float(len(text) % 3) for i, text in enumerate(completions)]


def constant(completions):
    return [0.0] * len(completions)


def nothing(completions):
    return [None] * len(completions)


@pytest.mark.parametrize("stage", ["grpo", slow("ppo")])
def test_a_response_without_an_opinion_is_null_and_in_no_figure(stage: str, train: Callable) -> None:
    folder = train(stage, abstains, eval_every=1, log_rollouts=99)
    for step, metrics in enumerate(folder.metrics()[-2:], start=1):
        logged = pq.read_table(folder.path / f"rollouts/step-{step:08d}.parquet").to_pylist()
        scores = [row["score"] for row in logged]
        expected = [i % 3 == 0 for i in range(len(scores))]
        assert [score is None for score in scores] == expected
        assert metrics["reward/no_opinion"] == pytest.approx(sum(expected) / len(expected))
        assert metrics["reward"] == pytest.approx(
            sum(s for s in scores if s is not None) / (len(scores) - sum(expected))
        )
        assert all(not any(row["advantages"]) for row, none in zip(logged, expected, strict=True) if none)
    samples = [json.loads(line)["score"] for line in (folder.path / "samples.jsonl").read_text().splitlines()]
    assert None in samples and any(score is not None for score in samples)


class Kept(Optimizer):
    """An optimiser that keeps the gradient of its step."""

    def step(self) -> dict[str, Any]:
        self.gradient = torch.cat([p.grad.flatten() for p in self.parameters.values() if p.grad is not None])
        return super().step()


@pytest.mark.parametrize(
    ("advantage", "kl_in"), [("leave-one-out", "reward"), slow("centred", "reward"), slow("standardised", "loss-k3")]
)
def test_what_has_no_opinion_changes_no_gradient(
    advantage: str,
    kl_in: str,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    base: Path,
    rows: Path,
) -> None:
    """The text and the tokens of such a response are replaced: advantages and loss of the others stay as they are."""
    config = grpo.GRPOConfig.make(
        {
            "model": str(base), "data": str(rows), "reward": "live", "out": base.parent / "o", "batch_size": 3,
            "group_size": 4, "max_new_tokens": 6, "advantage": advantage, "kl_in": kl_in, "beta": 0.3,
        }
    )  # fmt: skip
    parts = build_components(str(base), as_reward(abstains), **config.component_settings())
    prompts, _ = read_prompts(parts, **config.prompt_settings())
    rollout = next(Rollouts(parts, prompts, **config.rollout_settings()))
    none = ~rollout.opinions
    assert none.any(-1).all() and not none.all(-1).any()

    def gradient(sampled: Rollout) -> torch.Tensor:
        optimizer = Kept(parts.policy, steps=9, learning_rate=0.0)
        grpo.update(parts, grpo.with_advantages(sampled, config), optimizer, config)
        return optimizer.gradient

    batch = rollout.batch
    poison = none[..., None] & batch.response_attention
    other = replace(
        batch,
        response_ids=torch.where(poison, 5, batch.response_ids),
        old_logprobs=torch.where(poison, -9.0, batch.old_logprobs),
        reference_logprobs=torch.where(poison, -1.0, batch.reference_logprobs),
        sampler_logprobs=torch.where(poison, -9.0, batch.sampler_logprobs),
    )
    whole = gradient(rollout)
    assert whole.any()
    torch.testing.assert_close(gradient(replace(rollout, batch=other)), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stage", [slow("grpo"), "ppo"])
def test_no_opinion_of_anything_stops_the_run_with_one_line(stage: str, train: Callable) -> None:
    with pytest.raises(RewardError, match=r"no opinion of any of the \d+ responses of rollout 1 \(None for each\)"):
        train(stage, nothing)


@pytest.mark.slow
def test_best_of_n_and_score_write_null_and_leave_out_what_nobody_judged(
    train: Callable, base: Path, rows: Path, tmp_path: Path
) -> None:
    def of_some(prompts, completions, **columns):
        return [
            None if "a" in p else (None if i % 3 else float(len(t)))
            for i, (p, t) in enumerate(zip(prompts, completions, strict=True))
        ]

    config = best_of_n.BestOfNConfig.make(
        {
            "model": str(base),
            "data": str(rows),
            "reward": "live",
            "out": tmp_path / "b.jsonl",
            "n": 4,
            "max_new_tokens": 4,
        }
    )
    best = list(read_groups(best_of_n.run(config, reward=of_some)))
    pool = list(read_groups(tmp_path / "b.pool.jsonl"))
    assert 0 < len(best) < len(pool) == 40 and not any("a" in group.prompt_text for group in best)
    assert all(group.label.values[0] == group.label.values[0] for group in best)
    scored = score.run(
        score.ScoreConfig(reward="live", data=str(tmp_path / "b.pool.jsonl"), out=tmp_path / "s.jsonl"), reward=of_some
    )
    written = [json.loads(line)["score"] for line in scored.read_text().splitlines()]
    assert any(None in scores for scores in written) and all(len(scores) == 4 for scores in written)
    summary = json.loads((tmp_path / "s.summary.json").read_text())["results"]
    assert summary["counts"]["no_opinion"] == sum(scores.count(None) for scores in written)


@pytest.mark.parametrize(
    ("stage", "reward", "bad", "message"),
    [
        ("grpo", "number", {"answer": "none"}, "the answer"),
        slow("ppo", "number", {"answer": None}, "reads the column 'answer'"),
        slow("ppo", "brought:needs", {"answer": None}, "brought:needs takes the column 'answer'"),
        slow(
            "grpo", {"by": "task", "sum": "number", "talk": "ended"}, {"task": "poem"}, "has 'poem' there; known: sum"
        ),
    ],
)
def test_bad_rows_stop_a_run_before_anything_is_sampled_or_are_left_out_and_counted(
    stage: str, reward: Any, bad: dict[str, Any], message: str, train: Callable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brought.py").write_text("def needs(completions, answer):\n    return [1.0] * len(completions)\n")
    broken = {12: bad, 30: bad}
    data = write(tmp_path / "bad.jsonl", [row(number, **broken.get(number, {})) for number in range(40)])
    held_out = write(tmp_path / "held-out.jsonl", [row(number, **broken.get(number, {})) for number in range(10, 16)])
    values = {"data": str(data), "eval_data": str(held_out)}
    with pytest.raises(
        DataError, match=rf"bad.jsonl row 13: .*{message}.*2 of 40 rows .*13, 31.*--skip-bad-rows"
    ) as caught:
        train(stage, reward, **values)
    assert "\n" not in str(caught.value)
    folder = train(stage, reward, **values, skip_bad_rows=True)
    assert folder.record["rows"]["bad"] == {"data": 2, "eval_data": 1}
    assert folder.record["rows"]["train"]["used"] == 38 and folder.record["rows"]["held_out"]["used"] == 5
    assert "2 of 40 rows left out, which the reward cannot read: row 13, 31; row 13: " in caplog.text
    assert "1 of 6 rows left out, which the reward cannot read: row 3; row 3: " in caplog.text


def test_figures_of_rows_that_are_routed_are_kept_by_task(train: Callable) -> None:
    folder = train("grpo", {"by": "task", "sum": "number", "default": "ended"}, batch_size=8)
    for metrics in folder.metrics()[-2:]:
        assert metrics["reward/sum/count"] + metrics["reward/default/count"] == 32
        assert metrics["reward/sum/right"] == metrics["reward/sum"] or metrics["reward/sum"] is None
        means = [(metrics[f"reward/{name}"] or 0.0) * metrics[f"reward/{name}/count"] for name in ("sum", "default")]
        assert metrics["reward"] == pytest.approx(sum(means) / 32)


@pytest.mark.parametrize("stage", ["grpo", slow("ppo")])
def test_another_live_reward_never_gets_the_old_run(stage: str, train: Callable) -> None:
    def measured(factor: float) -> Callable:
        return lambda completions, **columns: [factor * len(text) for text in completions]

    first = train(stage, measured(1.0)).metrics()
    assert train(stage, measured(1.0)).metrics() == first
    with pytest.raises(ChangedError, match=r"the content of reward in live lambda differs"):
        train(stage, measured(2.0))
    with pytest.raises(ChangedError, match=r"the content of reward in live lambda differs"):
        train(stage, [(measured(1.0), 1.0)])
    lock = threading.Lock()

    def unknown(completions):
        with lock:
            return [1.0 * len(text) for text in completions]

    for _ in range(2):
        train(stage, unknown, out=Path(train(stage, measured(1.0)).path).parent / "u", accept_changed=("reward",))
        with pytest.raises(ChangedError, match=r"cannot be compared.*if it is, add --accept-changed reward"):
            train(stage, unknown, out=Path(train(stage, measured(1.0)).path).parent / "u")


@pytest.mark.slow
def test_a_run_that_its_reward_stopped_goes_on_with_the_mended_one(train: Callable) -> None:
    calls = []

    def fails(completions):
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("score")
        return [float(len(text)) for text in completions]

    def mended(completions):
        return [float(len(text)) for text in completions]

    settings = {"max_steps": 5, "save_every": 1}
    with pytest.raises(RewardError, match=r"raised KeyError: 'score' in .*goes on with --accept-changed reward"):
        train("grpo", fails, **settings)
    with pytest.raises(ChangedError, match="to go on from its last state with the change, add --accept-changed reward"):
        train("grpo", mended, **settings)
    folder = train("grpo", mended, **settings, accept_changed=("reward",))
    assert [change["what"] for change in folder.record["changes"]] == ["reward"]
    assert [row["step"] for row in folder.metrics()] == [1, 2, 3, 4, 5]


def test_dapo_does_not_train_on_lengths_where_the_reward_says_nothing(train: Callable) -> None:
    """All answers are wrong: the overlong penalty, which tells them apart, must not teach to be short and wrong."""
    changes = {
        "batch_size": 2,
        "minibatches": 1,
        "warmup_steps": 0,
        "group_size": 4,
        "max_new_tokens": 8,
        "max_steps": 1,
    }
    (metrics,) = [row for row in train("grpo", constant, preset="dapo", **changes).metrics() if "updates" in row]
    assert metrics["zero_spread_share"] == 1 and metrics["updates"] == 0
    assert metrics["advantage_sd"] == 0 and metrics["grad_norm"] == 0


@pytest.mark.slow
def test_the_part_that_the_file_names_decides_which_groups_are_of_one_score(train: Callable, tmp_path: Path) -> None:
    file = tmp_path / "reward.yaml"
    (tmp_path / "reward.yaml").write_text("parts: [{reward: exact}, {reward: ended}]\nfilter_on: exact")
    folder = train("grpo", str(file), resample_zero_spread=True)
    assert all(metrics["zero_spread_share"] == 1 and metrics["updates"] == 0 for metrics in folder.metrics()[-2:])
    file.write_text("parts: [{reward: exact}, {reward: ended}]\nfilter_on: ended")
    folder = train("grpo", str(file), resample_zero_spread=True, out=tmp_path / "other", max_steps=4, batch_size=8)
    assert any(metrics["zero_spread_share"] < 1 for metrics in folder.metrics())

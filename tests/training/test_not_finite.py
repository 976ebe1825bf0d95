"""What is not a finite number stops a step before it is taken, names its cause, and is never saved."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from kleash.checks.artifact import check
from kleash.data.group import Group, Response
from kleash.errors import DataError, KleashError, ModelError, RewardError, TrainingError
from kleash.rewards.function import FunctionReward
from kleash.run import RunFolder
from kleash.stages import STAGES, dpo, grpo, ppo, reward_model, sft
from kleash.testing import ConstantReward
from kleash.training.actor_critic import ActorCritic
from kleash.training.optim import Optimizer

STAGE = {"sft": sft, "reward": reward_model, "dpo": dpo, "ppo": ppo, "grpo": grpo}

REWARDS = """
calls = 0

def good(prompts, completions, **columns):
    return [float(len(text) % 5) for text in completions]

def late(prompts, completions, **columns):
    global calls
    calls += 1
    return [LATE if calls == 3 and i == 2 else float(len(text) % 5) for i, text in enumerate(completions)]
"""


def settings(stage: str, base: Path, **changes: Any) -> dict[str, Any]:
    data = {"sft": "demonstrations", "reward": "comparisons", "dpo": "comparisons"}.get(stage, "prompts")
    own: dict[str, Any] = {
        "sft": {"gate_prompts": 0},
        "reward": {"centre_samples": 0},
        "dpo": {"kl_samples": 0},
        "ppo": {"reward": "rewards:good", "max_new_tokens": 4, "value_init": "policy"},
        "grpo": {"reward": "rewards:good", "max_new_tokens": 4, "group_size": 4},
    }[stage]
    shared = {"model": str(base), "data": str(base.parent / f"{data}.jsonl"), "out": base.parent / stage}
    return shared | {"max_steps": 4, "batch_size": 4, "save_every": 1} | own | changes


def run(stage: str, values: dict[str, Any]) -> RunFolder:
    config = STAGES[stage].config if stage != "reward" else reward_model.RewardConfig
    folder = STAGE[stage].run(config.make(values))
    assert isinstance(folder, RunFolder)
    return folder


def saved(folder: Path) -> list[Path]:
    files = list(folder.rglob("*.safetensors"))
    for file in files:
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file
    return files


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("sft", {}),
        ("sft", {"dtype": "bfloat16"}),
        ("sft", {"max_steps": 1}),
        ("reward", {}),
        ("reward", {"heads": 2}),
        ("dpo", {}),
        ("ppo", {}),
        ("grpo", {}),
        ("grpo", {"lora_rank": 2}),
    ],
)
def test_a_learning_rate_that_is_far_too_high_is_named_and_nothing_of_it_is_saved(
    stage: str,
    changes: dict[str, Any],
    base: Path,
    demonstrations: Path,
    comparisons: Path,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(base.parent)
    (base.parent / "rewards.py").write_text(REWARDS)
    values = settings(stage, base, learning_rate=1e20, **changes)
    for _ in range(2):  # the same command again meets the same fault, not its remains
        with pytest.raises(TrainingError, match=r"not finite: .*lower --learning-rate") as caught:
            run(stage, values)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 1
        out = base.parent / stage
        assert not (out / "model.safetensors").exists()
        assert json.loads((out / "run.json").read_text())["status"] != "finished"
        saved(out)


def test_the_last_good_state_is_kept_where_a_loss_overflows(base: Path, demonstrations: Path) -> None:
    values = settings("sft", base, max_steps=12, learning_rate=1e4, weight_decay=0.1)
    with pytest.raises(TrainingError, match="not finite"):
        run("sft", values)
    state = next((base.parent / "sft" / "checkpoints").glob("step-*"))
    assert saved(state), "no state: this says nothing"
    rows = [json.loads(row) for row in (base.parent / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] is not None and row["grad_norm"] is not None for row in rows)


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
@pytest.mark.parametrize(
    ("late", "message"),
    [
        ("1e39", r"rewards:late returned 1e\+39 for completion 3 of"),
        ("float('nan')", "rewards:late returned nan for completion 3 of"),
        ("1e30", r"the reward of row \d of the rollout, response \d, is 1e\+30"),
    ],
)
def test_a_reward_that_is_not_finite_is_named_with_its_row(
    stage: str, late: str, message: str, base: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    (base.parent / "rewards.py").write_text(REWARDS.replace("LATE", late))
    with pytest.raises(KleashError, match=message) as caught:
        run(stage, settings(stage, base, reward="rewards:late"))
    assert caught.value.exit_code == 1
    assert (base.parent / stage / "checkpoints" / "step-00000002").exists()
    saved(base.parent / stage)


class Overflowing:
    """A live reward whose scores are infinite."""

    def __call__(self, groups: list[Group]) -> torch.Tensor:
        return torch.full((len(groups), len(groups[0].responses)), torch.inf)


def test_scores_of_a_live_reward_are_looked_at_too(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, base: Path, prompts: Path
) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    config = grpo.GRPOConfig.make(settings("grpo", base, reward="live"))
    with pytest.raises(TrainingError, match="the reward of row 1 of the rollout, response 1, is inf"):
        grpo.run(config, policy=(tiny_model, tiny_tokenizer), reward=Overflowing())
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_no_step_is_taken_on_a_loss_or_gradient_that_is_not_finite(where: str) -> None:
    layer = nn.Linear(2, 1)
    optimizer = Optimizer(layer, steps=4, learning_rate=0.1)
    optimizer.backward(layer(torch.ones(1, 2)).sum())
    optimizer.step()
    before = [p.detach().clone() for p in layer.parameters()]
    if where == "loss":
        optimizer.backward(layer(torch.full((1, 2), torch.inf)).sum() * 0)
    else:
        optimizer.backward(layer.weight.sum() * 0)
        layer.weight.grad = torch.full_like(layer.weight, torch.inf)
    with pytest.raises(TrainingError, match=rf"before optimiser step 2 the {where}.*learning rate 0.1, last gradient"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert all(p.grad is None for p in layer.parameters())


def test_where_the_value_network_has_no_gradient_the_policy_takes_no_step() -> None:
    policy, critic = nn.Linear(2, 1), nn.Linear(2, 1)
    both = ActorCritic(policy, critic, steps=4, settings={"learning_rate": 0.1}, value_settings={"learning_rate": 0.1})
    before = policy.weight.detach().clone()
    both.policy.backward(policy(torch.ones(1, 2)).sum())
    both.value.backward(critic(torch.full((1, 2), torch.inf)).sum())
    with pytest.raises(TrainingError, match="not finite"):
        both.step()
    assert torch.equal(policy.weight, before)


def test_a_model_that_comes_with_weights_that_are_not_finite_is_refused(base: Path, demonstrations: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"came with weights that are not finite \(model.layers.1.mlp.up_proj.weight"):
        run("sft", settings("sft", base))


def test_check_fails_a_folder_whose_weights_are_not_finite(base: Path, demonstrations: Path) -> None:
    folder = run("sft", settings("sft", base)).path
    assert "weights" not in check(folder).gates
    weights = load_file(folder / "model.safetensors")
    unused = next(name for name in weights if "embed" in name)
    weights[unused][-1, 0] = torch.inf
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    report = check(folder)
    assert "weights" in report.failed
    assert f"{unused} in model.safetensors" in report.gates["weights"]["finding"]


def test_weights_that_the_saved_type_cannot_hold_are_not_saved(base: Path, demonstrations: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][-1, 0] = 1e5
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainingError, match=r"float16 cannot hold weights of model.embed_tokens.weight"):
        run("sft", settings("sft", base, save_dtype="float16"))
    assert not (base.parent / "sft" / "model.safetensors").exists()


GROUPS = [Group("x", (Response("a"), Response("b")))]


def scored(body: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.chdir(folder)
    sys.modules.pop("mine", None)
    head = "import numpy as np, torch\n\n\ndef f(prompts, completions, **columns):\n"
    (folder / "mine.py").write_text(f"{head}    {body}\n")
    return FunctionReward("mine:f")(GROUPS)


@pytest.mark.parametrize(
    "body",
    [
        "return np.array([1, 0], dtype=np.float32)",
        "return [np.float32(1), np.int64(0)]",
        "return torch.tensor([1.0, 0.0])",
        "return (x for x in [True, False])",
    ],
)
def test_a_score_is_whatever_float_takes(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scored(body, tmp_path, monkeypatch).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("return 1.0", DataError, "returned 1.0 for 2 completions; it must return a list"),
        ("return [1.0]", DataError, "returned 1 scores for 2 completions"),
        ("return ['1', '2']", DataError, "returned '1' for 'a'"),
        (
            "return [float('nan'), 1]",
            RewardError,
            "returned nan for completion 1 of 2, 'a'.*None where it has no",
        ),
        ("return {'a': 1, 'b': 1}", DataError, "returned {'a': 1, 'b': 1} for 2 completions; it must return a list"),
        ("return torch.tensor(0.5)", DataError, "returned tensor.* for 2 completions; it must return a list"),
        ("return torch.ones(2, 3)", DataError, "returned .* for 'a'"),
        ("return [10**400, 1]", RewardError, "returned 1000+ for completion 1 of 2"),
        ("return [10**5000, 1]", RewardError, "returned an int of thousands of digits"),
        ("raise ZeroDivisionError", RewardError, r"raised ZeroDivisionError in .*mine.py, line 5 \(`raise Zero"),
        ("return [{}['score']]", RewardError, r"raised KeyError: 'score' in .*mine.py, line 5"),
        ("return [torch.ones(2) @ torch.ones(3)]", RewardError, r"raised RuntimeError: .* in .*mine.py, line 5"),
        ("return (1 / 0 for _ in completions)", RewardError, r"raised ZeroDivisionError: .* in .*mine.py, line 5"),
        ("raise SystemExit(3)", RewardError, "raised SystemExit: 3"),
    ],
)
def test_a_fault_of_a_function_is_one_line_with_its_place(
    body: str, error: type[KleashError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(error, match=message) as caught:
        scored(body, tmp_path, monkeypatch)
    assert "\n" not in str(caught.value)


def test_a_run_without_any_signal_changes_no_weight(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, base: Path, prompts: Path
) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    values = settings("grpo", base, reward="constant", learning_rate=1e-3, schedule="constant", max_steps=3)
    folder = grpo.run(
        grpo.GRPOConfig.make(values | {"weight_decay": 0.1, "group_size": 8}),
        policy=(tiny_model, tiny_tokenizer),
        reward=ConstantReward(0.3),
    )
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert [row["updates"] for row in folder.metrics()] == [0, 0, 0]

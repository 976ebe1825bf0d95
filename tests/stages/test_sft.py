from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kleash.data.chat import encode_all
from kleash.data.formats import read_groups
from kleash.errors import DataError, GateError
from kleash.io import read_jsonl
from kleash.models.load import load_policy
from kleash.run import read_record
from kleash.stages import sft
from kleash.training.optim import Optimizer
from tests.conftest import letters

Write = Callable[[str, list[dict[str, Any]]], Path]


def config(base: Path, data: Path, **changes: object) -> sft.SFTConfig:
    values = {"model": str(base), "data": str(data), "out": base.parent / "sft", "batch_size": 8, "learning_rate": 3e-3}
    return sft.SFTConfig.make(values | {"max_steps": 12} | changes)


def gradient(base: Path, data: Path, micro_batch_tokens: int, padding_side: str = "right") -> torch.Tensor:
    """The gradient of one step in float64, taken where the optimiser would use it."""
    model, tokenizer = load_policy(base)
    model.double()
    tokenizer.padding_side = padding_side
    groups = encode_all(list(read_groups(data)), tokenizer)[0][:16]
    optimizer = Optimizer(model, steps=1, learning_rate=1e-3)
    taken: list[torch.Tensor] = []
    optimizer.step = lambda: taken.append(torch.cat([p.grad.flatten() for p in model.parameters()])) or {}  # type: ignore[method-assign,func-returns-value,union-attr]
    sft.update(model, groups, optimizer, config(base, data, micro_batch_tokens=micro_batch_tokens).compute)
    return taken[0]


def test_F1_the_gradient_is_the_same_for_any_number_of_micro_batches(base: Path, demonstrations: Path) -> None:
    whole = gradient(base, demonstrations, 100_000)
    for tokens in (1, 20, 60):
        torch.testing.assert_close(gradient(base, demonstrations, tokens), whole, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(gradient(base, demonstrations, 100_000, "left"), whole, rtol=1e-6, atol=1e-12)


def test_the_loss_is_the_mean_over_tokens_and_not_over_rows(base: Path, demonstrations: Path) -> None:
    model, tokenizer = load_policy(base)
    groups = encode_all(list(read_groups(demonstrations)), tokenizer)[0]
    total, count = 0.0, 0
    for group in groups:
        ids = torch.tensor([[*group.prompt_ids, *group.responses[0].ids]])
        logprobs = model(ids).logits[0].log_softmax(-1).detach()
        for place, token in enumerate(group.responses[0].ids, start=len(group.prompt_ids)):
            total -= float(logprobs[place - 1, token])
            count += 1
    for tokens in (10_000, 20):
        settings = config(base, demonstrations, micro_batch_tokens=tokens)
        assert sft.held_out_loss(model, groups, settings.compute) == pytest.approx(total / count, rel=1e-5)


def test_the_gradient_is_that_of_the_mean_over_tokens_through_plain_transformers(
    base: Path, demonstrations: Path
) -> None:
    model, tokenizer = load_policy(base)
    model.double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for group in encode_all(list(read_groups(demonstrations)), tokenizer)[0][:16]:
        ids = torch.tensor([[*group.prompt_ids, *group.responses[0].ids]])
        start = len(group.prompt_ids)
        logprobs = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        total = total - logprobs.gather(-1, ids[0, start:, None]).sum()
        count += ids.shape[1] - start
    (total / count).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(gradient(base, demonstrations, 100_000), expected, rtol=1e-4, atol=1e-7)


def test_training_lowers_the_held_out_loss_and_the_folder_loads(base: Path, demonstrations: Path) -> None:
    folder = sft.run(config(base, demonstrations, max_steps=60, eval_every=20))
    results = folder.record["results"]
    assert results["eval_loss"] < results["eval_loss_before"] - 0.2
    model = AutoModelForCausalLM.from_pretrained(folder.path)
    tokenizer = AutoTokenizer.from_pretrained(folder.path)
    model.generate(**tokenizer("a b", return_tensors="pt"), max_new_tokens=3)
    rows = folder.metrics()
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert [row["step"] for row in rows if "eval_loss" in row] == [20, 40, 60]
    assert (folder.path / "README.md").read_text().startswith("---\nlibrary_name: transformers")


def test_a_finished_run_is_not_run_again(base: Path, demonstrations: Path) -> None:
    first = sft.run(config(base, demonstrations))
    weights = (first.path / "model.safetensors").stat().st_mtime_ns
    sft.run(config(base, demonstrations))
    assert (first.path / "model.safetensors").stat().st_mtime_ns == weights


def test_choosing_the_best_keeps_the_weights_of_the_least_held_out_loss(base: Path, write: Write) -> None:
    # Both files end after one letter, which is learned first; then the letters part them, and the held-out loss rises.
    train, held_out = (
        write(f"{letter}.jsonl", [{"prompt": one, "response": letter} for one in "abcdefgh"]) for letter in "yz"
    )
    changes = {"eval_data": str(held_out), "max_steps": 30, "learning_rate": 1e-2, "schedule": "constant"}
    folder = sft.run(config(base, train, eval_every=3, keep_weights="best", **changes))
    losses = {row["step"]: row["eval_loss"] for row in folder.metrics() if "eval_loss" in row}
    best = min(losses, key=lambda step: losses[step])
    assert losses[3] > losses[best] < losses[30] - 1, "the best is neither the first nor the last, by far"
    assert folder.record["results"]["step"] == best
    model, tokenizer = load_policy(folder.path)
    again = sft.held_out_loss(model, encode_all(list(read_groups(held_out)), tokenizer)[0], config(base, train).compute)
    assert again == pytest.approx(losses[best], rel=1e-6)
    assert folder.record["results"]["eval_loss"] == pytest.approx(losses[best], rel=1e-6)


def test_live_models_can_be_trained_without_a_folder(base: Path, demonstrations: Path) -> None:
    model, tokenizer = load_policy(base)
    before = model.lm_head.weight.detach().clone()
    folder = sft.run(
        config(Path("anything"), demonstrations, out=base.parent / "live", max_steps=2), policy=(model, tokenizer)
    )
    assert not torch.equal(model.lm_head.weight, before)
    assert folder.record["inputs"]["model"]["path"] == "live LlamaForCausalLM"


def test_a_preference_row_is_imitated_by_its_chosen_response(base: Path, write: object, comparisons: Path) -> None:
    chosen = [{"prompt": row["prompt"], "response": row["chosen"]} for row in read_jsonl(comparisons)]
    a = sft.run(config(base, comparisons, out=base.parent / "a", max_steps=3))
    b = sft.run(config(base, write("chosen.jsonl", chosen), out=base.parent / "b", max_steps=3))  # type: ignore[operator]
    assert (a.path / "model.safetensors").read_bytes() == (b.path / "model.safetensors").read_bytes()


def test_a_row_that_is_no_demonstration_is_named(base: Path, prompts: Path) -> None:
    with pytest.raises(DataError, match=r"prompts.jsonl row 1: has 0 responses"):
        sft.run(config(base, prompts))


def test_a_failed_check_stops_the_next_stage_unless_forced(
    base: Path, demonstrations: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = write("held-out.jsonl", [{"prompt": letters(i, 6), "response": letters(i + 3, 4)} for i in range(26)])
    # Unlearning: a step this large makes the held-out loss worse than before.
    changes = {"max_steps": 2, "learning_rate": 5.0, "schedule": "constant", "eval_data": str(held_out)}
    broken = sft.run(config(base, demonstrations, **changes))
    verdict = broken.record["gates"]["out"]
    assert verdict["passed"] is False
    said = f"a stage that starts from {broken.path} will refuse it (exit code 1) unless given --force"
    assert [record.message for record in caplog.records].count(said) == 1
    assert verdict["figures"]["after"] > verdict["figures"]["before"]
    onwards = {"out": base.parent / "next", "max_steps": 1}
    with pytest.raises(GateError, match="failed its own checks: held-out loss"):
        sft.run(config(broken.path, demonstrations, **onwards))
    sft.run(config(broken.path, demonstrations, force=True, **onwards))
    assert (read_record(base.parent / "next") or {})["gates"]["in (model)"]["forced"]


def test_a_response_may_be_in_a_column_of_another_name(base: Path, write: object) -> None:
    rows = [{"prompt": "a b", "solution": "c d", "answer": "d"}] * 24
    turns = [{"prompt": [{"role": "user", "content": "a b"}], "solution": "c d"}] * 24
    for name, data in (("text", rows), ("turns", turns)):
        file = write(f"{name}.jsonl", data)  # type: ignore[operator]
        folder = sft.run(config(base, file, out=base.parent / name, max_steps=1, response_column="solution"))
        # "c d" and the end token, three tokens a row
        assert folder.metrics()[0]["tokens"] == 8 * 3

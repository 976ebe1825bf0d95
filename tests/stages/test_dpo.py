from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kleash.checks.open_run import open_run
from kleash.cli import _run
from kleash.data.batch import collate
from kleash.data.chat import encode_all
from kleash.data.formats import read_groups
from kleash.data.group import EncodedGroup, Group, Preference, Ranking, Response
from kleash.errors import ConfigError, DataError
from kleash.io import read_jsonl
from kleash.models import reference as references_module
from kleash.models.forward import response_logprobs
from kleash.models.load import load_policy
from kleash.run import read_record
from kleash.stages import dpo, sft
from kleash.training import checkpoint
from kleash.training.optim import Optimizer

LOSSES: dict[str, dict[str, object]] = {
    "sigmoid": {},
    "smoothed": {"label_smoothing": 0.1},
    "robust": {"label_smoothing": 0.1},
    "ipo": {},
    "simpo": {},
    "length-normalised": {},
}


def config(base: Path, data: Path, **changes: object) -> dpo.DPOConfig:
    values = {"model": str(base), "data": str(data), "out": base.parent / "dpo", "batch_size": 8, "learning_rate": 3e-3}
    return dpo.DPOConfig.make(values | {"max_steps": 30, "kl_samples": 12, "max_new_tokens": 6} | changes)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def gradient(base: Path, data: Path, micro_batch_tokens: int = 1000, **changes: object) -> torch.Tensor:
    """The gradient of one step in float64 against a reference that differs, taken where the optimiser would use it."""
    model, tokenizer = load_policy(base)
    model.double()
    groups = encode_all(list(read_groups(data)), tokenizer)[0][:16]
    generator = torch.Generator().manual_seed(0)
    references = [torch.randn(len(g.responses), generator=generator).double() - 20 for g in groups]
    optimizer = Optimizer(model, steps=1, learning_rate=1e-3)
    taken: list[torch.Tensor] = []
    optimizer.step = lambda: taken.append(torch.cat([p.grad.flatten() for p in model.parameters()])) or {}  # type: ignore[method-assign,func-returns-value,union-attr]
    settings = config(base, data, micro_batch_tokens=micro_batch_tokens, **changes)
    dpo.update(model, groups, references, optimizer, settings)
    return taken[0]


@pytest.fixture
def rankings(write: Any) -> Path:
    rows = [
        {"prompt": "abcdef"[i % 6], "responses": ["z z", "z a", "a b c d", "b a"], "ranks": [0, 1, 2, 3]}
        for i in range(30)
    ]
    path: Path = write("rankings.jsonl", rows)
    return path


@pytest.mark.parametrize("loss", LOSSES)
def test_F1_the_gradient_is_the_same_for_any_number_of_micro_batches(base: Path, comparisons: Path, loss: str) -> None:
    changes = {"loss": loss, "sft_coefficient": 0.5, **LOSSES[loss]}
    whole = gradient(base, comparisons, 100_000, **changes)
    assert whole.abs().max() > 1e-3
    for tokens in (1, 40, 150):
        torch.testing.assert_close(gradient(base, comparisons, tokens, **changes), whole, rtol=1e-6, atol=1e-10)


def test_F1_rankings_and_pairs_share_a_step(base: Path, comparisons: Path, rankings: Path, write: Any) -> None:
    rows = [row for pair in zip(read_jsonl(comparisons), read_jsonl(rankings), strict=False) for row in pair]
    mixed = write("mixed.jsonl", rows)
    whole = gradient(base, mixed, 100_000)
    for tokens in (1, 60):
        torch.testing.assert_close(gradient(base, mixed, tokens), whole, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "formula"),
    [  # a, b: log-ratios; m, n: log π a token; p: the label
        ({}, lambda a, b, m, n, p: p * softplus(-0.1 * (a - b)) + (1 - p) * softplus(0.1 * (a - b))),
        (
            {"loss": "smoothed", "label_smoothing": 0.2},
            lambda a, b, m, n, p: (0.8 * p + 0.2 * (1 - p)) * softplus(-0.1 * (a - b))
            + (0.8 * (1 - p) + 0.2 * p) * softplus(0.1 * (a - b)),
        ),
        (
            {"loss": "robust", "label_smoothing": 0.2},
            lambda a, b, m, n, p: ((p - 0.2) * softplus(-0.1 * (a - b)) + (0.8 - p) * softplus(0.1 * (a - b))) / 0.6,
        ),
        ({"loss": "ipo"}, lambda a, b, m, n, p: p * (a - b - 5) ** 2 + (1 - p) * (a - b + 5) ** 2),
        (
            {"loss": "simpo", "beta": 3.0, "gamma_ratio": 0.25},
            lambda a, b, m, n, p: p * softplus(0.75 - 3 * (m - n)) + (1 - p) * softplus(0.75 + 3 * (m - n)),
        ),
        (
            {"loss": "length-normalised", "beta": 3.0},
            lambda a, b, m, n, p: p * softplus(-3 * (a / 4 - b / 2)) + (1 - p) * softplus(3 * (a / 4 - b / 2)),
        ),
    ],
)  # fmt: skip
def test_each_loss_is_its_formula_for_hard_soft_and_ranked_labels(
    base: Path, changes: dict[str, object], formula: Callable[..., float]
) -> None:
    policy, reference, lengths = torch.tensor([[-9.0, -4.0]]), torch.tensor([[-8.0, -7.0]]), torch.tensor([[4, 2]])
    for label, p in [(Preference(1.0), 1.0), (Preference(0.7), 0.7), (Ranking((1, 0)), 0.0), (Ranking((0, 1)), 1.0)]:
        group = EncodedGroup((3,), (), Group("a", (Response("b"), Response("c")), label))
        expected = formula(-1.0, 3.0, -9 / 4, -4 / 2, p)
        for coefficient in (0.0, 0.5):
            settings = config(base, base, sft_coefficient=coefficient, **changes)
            loss, _ = dpo.group_loss(policy, reference, lengths, [group], settings)
            imitation = 9 / 4 if p >= 0.5 else 4 / 2
            assert loss.item() == pytest.approx(expected + coefficient * imitation, rel=1e-5)


def test_the_gradient_of_a_step_is_that_of_the_mean_over_prompts(base: Path, comparisons: Path) -> None:
    model, tokenizer = load_policy(base)
    model.double()
    total = torch.zeros((), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    groups = encode_all(list(read_groups(comparisons)), tokenizer)[0][:16]
    for group in groups:
        chosen, rejected = (
            sum_logprobs(model, group.prompt_ids, response.ids) - reference
            for response, reference in zip(
                group.responses, torch.randn(2, generator=generator).double() - 20, strict=True
            )
        )
        total = total - torch.nn.functional.logsigmoid(0.1 * (chosen - rejected))
    (total / len(groups)).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(gradient(base, comparisons), expected, rtol=1e-4, atol=1e-7)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sum_logprobs(model: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *response]])
    logprobs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    total: torch.Tensor = logprobs.gather(-1, ids[0, len(prompt) :, None]).sum()
    return total


def test_F10_every_coefficient_and_every_loss_changes_the_update(base: Path, comparisons: Path) -> None:
    updates = [
        {},
        {"beta": 0.2},
        {"sft_coefficient": 0.5},
        {"loss": "smoothed", "label_smoothing": 0.1},
        {"loss": "smoothed", "label_smoothing": 0.2},
        {"loss": "robust", "label_smoothing": 0.1},
        {"loss": "robust", "label_smoothing": 0.2},
        {"loss": "ipo"},
        {"loss": "ipo", "beta": 0.2},
        {"loss": "simpo"},
        {"loss": "simpo", "beta": 3.0},
        {"loss": "simpo", "gamma_ratio": 1.0},
        {"loss": "length-normalised"},
        {"loss": "length-normalised", "beta": 3.0},
    ]
    gradients = [gradient(base, comparisons, **changes) for changes in updates]
    for (a, one), (b, other) in itertools.combinations(zip(updates, gradients, strict=True), 2):
        assert not torch.allclose(one, other, rtol=1e-3), f"{a} and {b} make the same update"


@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_the_preferences_and_its_checks_pass(base: Path, comparisons: Path, loss: str) -> None:
    folder = dpo.run(config(base, comparisons, eval_data=str(comparisons), loss=loss, **LOSSES[loss]))
    assert folder.record["gates"]["out"]["passed"]
    report = folder.record["results"]["report"]
    assert 0.5 < report["accuracy_interval"][0] < report["accuracy"]
    assert folder.record["formulas"]["loss"] == dpo.LOSSES[loss].formula
    assert (folder.record["results"]["kl"] is None) == (loss == "simpo")


def test_the_folder_loads_and_every_step_is_logged(base: Path, comparisons: Path) -> None:
    folder = dpo.run(config(base, comparisons, max_steps=4, eval_every=2, kl_every=2))
    model = AutoModelForCausalLM.from_pretrained(folder.path)
    model.generate(**AutoTokenizer.from_pretrained(folder.path)("a b", return_tensors="pt"), max_new_tokens=3)
    rows = folder.metrics()
    every = {
        "step", "loss", "margin", "accuracy", "chosen_reward", "rejected_reward", "chosen_logprob", "rejected_logprob",
        "chosen_shift", "learning_rate", "grad_norm",
    }  # fmt: skip
    measured = {"eval_loss", "eval_margin", "eval_accuracy", "eval_chosen_logprob", "eval_rejected_logprob"}
    measured |= {"eval_chosen_shift", "eval_kl", "distinct_1", "distinct_2", "distinct_3", "repetition", "truncated"}
    assert [set(row) for row in rows] == [every, every | measured, every, every | measured]
    assert folder.record["results"]["kl"]["mean"] == rows[-1]["eval_kl"], "the last measurement is not made twice"
    assert "KL" in (folder.path / "README.md").read_text()


def test_before_the_first_update_the_policy_is_its_reference(base: Path, comparisons: Path) -> None:
    first = dpo.run(config(base, comparisons, max_steps=1)).metrics()[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    for name in ("margin", "chosen_reward", "rejected_reward", "chosen_shift"):
        assert first[name] == pytest.approx(0, abs=1e-5)


def test_the_figures_of_a_step_are_those_of_a_slow_loop(base: Path, comparisons: Path) -> None:
    """Log-probabilities of plain rows through `transformers`, one response at a time."""
    model, tokenizer = load_policy(base)
    groups = encode_all(list(read_groups(comparisons)), tokenizer)[0][:8]
    references = [torch.tensor([-20.0 - row, -18.0]) for row in range(8)]
    settings = config(base, comparisons, sft_coefficient=0.5)
    expected = dict.fromkeys(("loss", "chosen_logprob", "rejected_logprob"), 0.0)
    for group, reference in zip(groups, references, strict=True):
        sums = []
        for response in group.responses:
            ids = torch.tensor([[*group.prompt_ids, *response.ids]])
            logprobs = model(ids).logits[0].log_softmax(-1).detach()
            start = len(group.prompt_ids)
            sums.append(sum(float(logprobs[start + t - 1, token]) for t, token in enumerate(response.ids)))
        h = 0.1 * ((sums[0] - float(reference[0])) - (sums[1] - float(reference[1])))
        loss = torch.nn.functional.softplus(torch.tensor(-h)).item() - 0.5 * sums[0] / len(group.responses[0].ids)
        for name, value in zip(expected, (loss, *sums), strict=True):
            expected[name] += value / 8
    found = dpo.update(model, groups, references, Optimizer(model, steps=1, learning_rate=0.0), settings)
    assert {name: float(found[name]) for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are loaded, in order."""
    loaded: list[str] = []

    def load(model: Any, **settings: Any) -> Any:
        loaded.append(str(model))
        return load_policy(model, **settings)

    for module in (dpo, references_module):
        monkeypatch.setattr(module, "load_policy", load)
    return loaded


def test_the_reference_is_computed_once_and_stored(
    base: Path, comparisons: Path, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    passes: list[int] = []
    computed = dpo.summed_logprobs
    for module in (dpo, references_module):
        monkeypatch.setattr(
            module,
            "summed_logprobs",
            lambda model, groups, compute: passes.append(len(groups)) or computed(model, groups, compute=compute),
        )
    other = sft.run(sft.SFTConfig(model=str(base), data=str(comparisons), out=base.parent / "sft", max_steps=2)).path
    settings = {"reference": str(other), "eval_every": 10, "kl_samples": 0, "force": True}
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", interrupt_after(1, save))
    with pytest.raises(KeyboardInterrupt):
        dpo.run(config(base, comparisons, **settings))
    (kept,) = (base.parent / "dpo" / "reference").glob("*.safetensors")
    assert passes == [60], "all rows, once"
    assert loads == [str(base), str(other)]
    monkeypatch.setattr(checkpoint, "save", save)
    stamp = kept.stat().st_mtime_ns
    dpo.run(config(base, comparisons, **settings))
    assert kept.stat().st_mtime_ns == stamp
    assert passes == [60, 6, 6, 6], "the held-out rows at each measurement, the reference never again"
    assert loads == [str(base), str(other), str(base)]


def interrupt_after(saves: int, save: Any) -> Any:
    """A `checkpoint.save` that ends the run after so many states."""
    done = itertools.count(1)

    def interrupting(*arguments: Any, **settings: Any) -> None:
        save(*arguments, **settings)
        if next(done) == saves:
            raise KeyboardInterrupt

    return interrupting


def test_the_reference_is_read_from_the_file_that_fits_its_content(base: Path, comparisons: Path) -> None:
    model, tokenizer = load_policy(base)
    groups = encode_all(list(read_groups(comparisons)), tokenizer)[0]
    settings = config(base, comparisons)
    folder = open_run("dpo", settings)
    references = lambda groups: dpo.References(folder, settings, model, groups[:-1], groups[-1:], live=False)  # noqa: E731
    kept = lambda groups: [*references(groups).train, *references(groups).held_out]  # noqa: E731
    found = kept(groups)
    plain = [response_logprobs(model, collate([group]))[0].sum(-1)[0].detach() for group in groups]
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)
    for others in (groups[:-1], [*groups[1:], groups[0]]):
        assert len(kept(others)) == len(others)
        torch.testing.assert_close(kept(others)[0], plain[groups.index(others[0])])


def test_simpo_loads_and_computes_no_reference(base: Path, comparisons: Path, loads: list[str]) -> None:
    folder = dpo.run(config(base, comparisons, loss="simpo", max_steps=3))
    assert loads == [str(base)]
    assert not (folder.path / "reference").exists()
    assert "eval_kl" not in folder.metrics()[-1]


def test_another_reference_changes_the_loss_and_its_failed_checks_stop_the_run(base: Path, comparisons: Path) -> None:
    other = sft.run(
        sft.SFTConfig(model=str(base), data=str(comparisons), out=base.parent / "sft", max_steps=5, learning_rate=1e-2)
    )
    folder = dpo.run(config(base, comparisons, reference=str(other.path), max_steps=1))
    assert abs(folder.metrics()[0]["loss"] - 0.693147) > 1e-3
    assert folder.record["inputs"]["reference"]["path"] == str(other.path)
    assert folder.record["gates"]["in (reference)"]["passed"]


def test_resumed_it_ends_with_the_same_weights_and_figures(
    base: Path, comparisons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 12, "eval_every": 3, "kl_every": 4, "save_every": 2, "keep_weights": "best"}
    whole = dpo.run(config(base, comparisons, out=base.parent / "whole", **settings)).path
    stopped = base.parent / "stopped"
    save = checkpoint.save
    for saves in (1, 2, 3):  # the last of them after the last step
        monkeypatch.setattr(checkpoint, "save", interrupt_after(saves, save))
        with pytest.raises(KeyboardInterrupt):
            dpo.run(config(base, comparisons, out=stopped, **settings))
    monkeypatch.setattr(checkpoint, "save", save)
    dpo.run(config(base, comparisons, out=stopped, **settings))
    assert weights(stopped) == weights(whole)
    assert read_jsonl(stopped / "metrics.jsonl") == read_jsonl(whole / "metrics.jsonl")
    assert (read_record(stopped) or {})["results"] == (read_record(whole) or {})["results"]


def test_live_models_can_be_trained_without_a_folder(base: Path, comparisons: Path) -> None:
    model, tokenizer = load_policy(base)
    before = model.lm_head.weight.detach().clone()
    live = dpo.run(config(Path("anything"), comparisons, out=base.parent / "live"), policy=(model, tokenizer))
    assert not torch.equal(model.lm_head.weight, before)
    loaded = dpo.run(config(base, comparisons))
    assert weights(live.path) == weights(loaded.path)
    assert live.record["results"] == loaded.record["results"], "the KL is to what the live model was"


def test_rankings_are_learned_from(base: Path, rankings: Path) -> None:
    folder = dpo.run(config(base, rankings))
    report = folder.record["results"]["report"]
    assert report["pairs"] == 6 * 3
    assert report["accuracy"] > 0.9


def test_likelihood_displacement_is_logged_once_and_stored_in_run_json(
    base: Path, write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Both are made of one letter: pushing it down in the longer response takes the shorter one with it."""
    rows = [{"prompt": "abcdefghij"[i % 10], "chosen": "z z z z", "rejected": "z z z z z z z z"} for i in range(40)]
    with caplog.at_level(logging.WARNING, "kleash"):
        folder = dpo.run(config(base, write("alike.jsonl", rows), eval_every=10))
    shifts = [row["eval_chosen_shift"] for row in folder.metrics() if "eval_chosen_shift" in row]
    assert min(shifts) < -dpo.DISPLACED, "nothing was displaced: this test says nothing"
    (said,) = [record.message for record in caplog.records if "likelihood displacement" in record.message]
    warning = folder.record["warnings"]["displacement"]
    assert warning["message"] == said
    assert warning["chosen_shift"] < -dpo.DISPLACED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "smoothed"}, "loss smoothed needs label_smoothing"),
        ({"label_smoothing": 0.1}, "loss sigmoid has no label_smoothing"),
        ({"loss": "robust", "label_smoothing": 0.5}, "'label_smoothing' is 0.5, but should be less than 0.5"),
        ({"loss": "ipo", "gamma_ratio": 1.0}, "loss ipo has no gamma_ratio"),
        ({"loss": "simpo", "reference": "runs/sft"}, "loss simpo has no reference"),
        ({"beta": 0}, "'beta' is 0, but should be greater than 0"),
        ({"loss": "dpo"}, "'loss' is 'dpo', but should be 'sigmoid'"),
    ],
)
def test_incompatible_settings_are_an_error_of_one_line(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(tmp_path / "base", tmp_path / "rows.jsonl", **changes)
    assert "\n" not in str(caught.value)


def test_beta_is_the_published_one_of_the_loss_unless_given(tmp_path: Path) -> None:
    betas = {loss: config(tmp_path, tmp_path, loss=loss, **LOSSES[loss]).beta for loss in LOSSES}
    assert betas == dict.fromkeys(LOSSES, 0.1) | {"simpo": 2.0, "length-normalised": 5.0}
    assert config(tmp_path, tmp_path, loss="simpo", beta="0.7").beta == 0.7


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"response": "b"}, {}, "row 1: is not a comparison"),
        ({"responses": ["b", "c"], "score": [1.0, 1.0]}, {}, "the responses of each row have equal scores"),
        ({"responses": ["b", "c", "d"], "ranks": [0, 1, 1]}, {}, "row 1: ranks two responses the same"),
        ({"responses": ["b", "c", "d"], "ranks": [0, 1, 2]}, {"loss": "ipo"}, "row 1: ranks 3 responses, and loss ipo"),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_named(
    base: Path, write: Any, row: dict[str, object], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        dpo.run(config(base, write("rows.jsonl", [{"prompt": "a", **row}] * 4), **changes))


def test_scored_responses_are_the_best_against_the_worst_without_rows_of_equal_scores(
    base: Path, write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kleash")
    scored: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for letter in "abcdefgh":
        scored.append({"prompt": letter, "responses": ["b b", "z", "c", "z z"], "score": [0.5, 2.0, -1.0, 2.0]})
        scored.append({"prompt": letter, "responses": ["b", "c"], "score": [1.0, 1.0]})
        pairs.append({"prompt": letter, "chosen": "z", "rejected": "c"})
    files = {name: write(f"{name}.jsonl", rows) for name, rows in {"scored": scored, "pairs": pairs}.items()}
    runs = {
        name: dpo.run(config(base, path, out=base.parent / name, max_steps=3, eval_data=str(path)))
        for name, path in files.items()
    }
    assert weights(runs["scored"].path) == weights(runs["pairs"].path)
    assert "8 of 16 rows left out" in caplog.text
    flat = write("flat.jsonl", scored[1::2])
    blind = dpo.run(config(base, files["scored"], out=base.parent / "blind", max_steps=3, eval_data=str(flat)))
    assert weights(blind.path) == weights(runs["scored"].path), "with nothing held out it trains all the same"
    assert f"{flat}: 8 of 8 rows left out" in caplog.text


def test_snapshots_load_and_the_run_records_its_parameters(base: Path, comparisons: Path) -> None:
    folder = dpo.run(config(base, comparisons, max_steps=4, snapshot_every=2))
    snapshots = sorted(folder.path.glob("snapshots/*"))
    assert [path.name for path in snapshots] == ["step-000002", "step-000004"]
    assert weights(snapshots[1]) == weights(folder.path)
    model = AutoModelForCausalLM.from_pretrained(snapshots[0])
    record = read_record(folder.path) or {}
    assert record["models"] == {"policy": sum(parameter.numel() for parameter in model.parameters())}
    assert record["peak_memory"]["host"] > 1e8


def test_the_command_line(base: Path, comparisons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = base.parent / "dpo"
    words = ["dpo", "--model", base, "--data", comparisons, "--out", out, "--loss", "ipo", "--beta", 0.3, "--json"]
    assert _run([str(word) for word in [*words, "--max-steps", 2, "--kl-samples", 4, "--max-new-tokens", 4]]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["results"]["report"]["pairs"] == 6
    record = read_record(out) or {}
    assert (record["config"]["loss"], record["config"]["beta"]) == ("ipo", 0.3)

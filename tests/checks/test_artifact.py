from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from kleash.checks.artifact import agreement, check, kind_of
from kleash.checks.check import changed
from kleash.data.group import Group, Response
from kleash.errors import GateError, InputError
from kleash.models.load import new_reward_model, save_model
from kleash.run import read_record
from kleash.stages import reward_model, sft
from tests.records import run_record


def verdicts(path: Path, **settings: Any) -> dict[str, bool | None]:
    return {row["name"]: row["passed"] for row in check(path, **settings).gates["measured"]["checks"]}


def damage(folder: Path, name: str, value: float) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_parameter(name).fill_(value)
    model.save_pretrained(folder)


@pytest.fixture
def trained(base: Path, demonstrations: Path) -> Path:
    values = {"model": str(base), "data": str(demonstrations), "out": base.parent / "sft", "max_steps": 4}
    return sft.run(sft.SFTConfig.make(values | {"batch_size": 8, "learning_rate": 3e-3, "gate_prompts": 2})).path


@pytest.fixture
def classifier(base: Path) -> Path:
    model, tokenizer = new_reward_model(base, seed=0)
    with torch.no_grad():
        model.get_parameter("score.weight").mul_(20)
    save_model(base.parent / "classifier", model, tokenizer, "")
    return base.parent / "classifier"


def test_random_weights_of_a_plain_folder_are_noise(base: Path) -> None:
    found = check(base)
    assert found.kind == "language model"
    assert "no noise" in {row["name"] for row in found.gates["measured"]["checks"] if row["passed"] is False}
    assert found.failed == ["measured"]


def test_weights_that_are_not_finite_are_named(base: Path) -> None:
    damage(base, "model.layers.0.mlp.up_proj.weight", float("nan"))
    found = check(base).gates["measured"]
    assert found["passed"] is False
    assert "model.layers.0.mlp.up_proj.weight" in found["finding"]


def test_a_template_that_ends_answers_passes(base: Path) -> None:
    assert verdicts(base)["template"] is True


def test_demonstrations_add_the_check_that_prompts_are_used(base: Path, demonstrations: Path) -> None:
    assert "uses the prompt" not in verdicts(base)
    assert "uses the prompt" in verdicts(base, data=str(demonstrations), rows=10)


def test_a_labeller_adds_whether_samples_are_worth_comparing(base: Path, classifier: Path) -> None:
    assert "worth comparing" in verdicts(base, labeller=str(classifier))


def test_two_labellers_agree_as_bradley_terry_says() -> None:
    def labeller(groups: Any) -> torch.Tensor:
        return torch.tensor([[2.0, 0.0], [0.0, 0.0]])

    groups = [Group("a", (Response("b"), Response("c")))] * 2
    p = 1 / (1 + 2.718281828**-2)
    assert agreement(labeller, groups).share == pytest.approx(((p**2 + (1 - p) ** 2) + 0.5) / 2)


def test_a_finished_run_is_trusted_by_its_hash_and_measured_when_it_changed(trained: Path) -> None:
    found = check(trained)
    assert set(found.gates) == {"in (model)", "out"} and not found.notes
    damage(trained, "lm_head.weight", 0.0)
    record = read_record(trained) or {}
    assert changed(trained, record["gates"]["out"])
    found = check(trained)
    assert found.notes and "measured" in found.gates
    assert found.failed == ["measured"]


def test_the_next_stage_measures_a_changed_parent_and_refuses_it(
    trained: Path, demonstrations: Path, base: Path
) -> None:
    damage(trained, "lm_head.weight", 0.0)
    values = {"model": str(trained), "data": str(demonstrations), "out": base.parent / "next", "max_steps": 1}
    with pytest.raises(GateError, match="changed since its own checks, which ran again"):
        sft.run(sft.SFTConfig.make(values))
    forced = sft.run(sft.SFTConfig.make(values | {"force": True, "gate_prompts": 0}))
    assert forced.record["gates"]["in (model)"]["passed"] is False


def test_a_reward_model_is_measured_on_comparisons_and_without_them(classifier: Path, comparisons: Path) -> None:
    assert check(classifier).kind == "reward model"
    assert verdicts(classifier) == {
        "scores differ": True,
        "finite": True,
        "same in any batch": True,
        "plain transformers agrees": True,
    }
    assert {"better than chance", "beyond length", "calibrated"} <= verdicts(classifier, data=str(comparisons)).keys()


def test_a_constant_reward_model_fails(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    torch.nn.init.zeros_(model.score.weight)
    model.save_pretrained(classifier)
    assert verdicts(classifier)["scores differ"] is False


def test_F3_a_reward_model_whose_pad_is_a_token_of_the_text_is_scored_elsewhere_by_plain_transformers(
    classifier: Path,
) -> None:
    config = json.loads((classifier / "config.json").read_text())
    config["pad_token_id"] = config["eos_token_id"]
    (classifier / "config.json").write_text(json.dumps(config))
    assert verdicts(classifier)["plain transformers agrees"] is False


def test_the_reward_checks_recognise_samples_of_the_parent(
    base: Path, trained: Path, comparisons: Path, write: Any
) -> None:
    config = {"model": str(trained), "data": str(comparisons), "out": base.parent / "reward", "max_steps": 1}
    folder = reward_model.run(reward_model.RewardConfig.make(config | {"centre_samples": 0, "force": True}))
    (found,) = (row for row in folder.record["gates"]["out"]["checks"] if row["name"] == "about the policy's samples")
    assert found["figures"]["parent"] is not None, "its parent lies where it was"


def test_rows_are_checked_by_their_kind(comparisons: Path, demonstrations: Path, prompts: Path) -> None:
    assert "labels agree" in verdicts(comparisons)
    assert "rows end" in verdicts(demonstrations)
    assert verdicts(prompts) == {"prompts": True}
    assert kind_of(comparisons) == "rows"


def test_an_artifact_that_cannot_be_checked_is_an_error_of_one_line(
    tmp_path: Path, classifier: Path, prompts: Path
) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        check(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither a model nor rows"):
        check(tmp_path / "empty")
    with pytest.raises(InputError, match="no preferences"):
        check(classifier, data=str(prompts))


def test_a_run_that_has_not_finished_fails(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run_record(stage="reward", status="running")))
    report = check(tmp_path)
    assert report.failed == ["finished"]
    assert "was interrupted before its first step" in report.gates["finished"]["finding"]

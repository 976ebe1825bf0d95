"""What may be passed where a config has a name: rows, models, rewards; and what is refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import kleash
from kleash.data.live_rows import live_rows
from kleash.errors import ConfigError, DataError, GateError, InputError, ModelError
from kleash.live import named
from kleash.models.live_copy import live_hash, live_model
from kleash.models.load import load_policy, new_reward_model
from kleash.run import read_record
from tests.api.conftest import SMALL, Rows

SFT = Callable[..., kleash.Run]


def splits(**rows: Rows) -> datasets.DatasetDict:
    return datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in rows.items()})


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        list, tuple, iter, lambda rows: (row for row in rows), datasets.Dataset.from_list, pd.DataFrame,
        pa.Table.from_pylist, lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset(),
        lambda rows: splits(train=rows, test=rows[:1]), lambda rows: splits(any=rows),
        lambda rows: [kleash.Group(row["prompt"], (kleash.Response(row["response"]),)) for row in rows],
    ],
)  # fmt: skip
def test_rows_of_every_kind_are_the_same_rows(kind: Callable[[Rows], Any], rows: Rows) -> None:
    live, plain = live_rows(kind(rows), argument="data"), live_rows(rows, argument="data")
    assert (live.value, live.sha256) == (plain.value, plain.sha256)


def test_numbers_of_other_libraries_are_plain_and_gaps_are_absent() -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "score": [1, None], "when": [pd.NaT, pd.NaT]})
    tensors = [{"prompt": "a", "score": torch.tensor(1.0)}, {"prompt": "b"}]
    assert live_rows(frame, argument="data").value == live_rows(tensors, argument="data").value
    assert live_rows(tensors, argument="data").value == [{"prompt": "a", "score": 1.0}, {"prompt": "b"}]


def test_the_hash_of_rows_is_that_of_content_and_order(rows: Rows) -> None:
    hashes = {live_rows(value, argument="data").sha256 for value in (rows, rows[::-1], rows[:-1])}
    assert len(hashes) == 3
    assert live_rows(json.loads(json.dumps(rows)), argument="data").sha256 in hashes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"data is an int \(3\); give a list of rows"),
        ([1, 2], r"data row 1 is an int \(1\); a row is a dict"),
        ([{"prompt": "a"}, "b"], r"data row 2 is a str \('b'\)"),
        ([], "data holds no rows"),
        ({"prompt": ["a"]}, r"data is a dict"),
        (lambda: [], "data is a function"),
        ({"prompt": "a", "response": "b"}, r"data is a dict"),
    ],
)  # fmt: skip
def test_what_holds_no_rows_is_one_line(value: Any, message: str, sft: SFT) -> None:
    with pytest.raises(DataError, match=message) as caught:
        sft(data=value)
    assert "\n" not in str(caught.value)


def test_of_several_splits_one_is_given(rows: Rows) -> None:
    with pytest.raises(DataError, match=r"data has the splits a, b; give one of them, as dataset\['a'\]"):
        live_rows(splits(a=rows, b=rows), argument="data")


def test_a_run_continues_with_the_same_rows_only(sft: SFT, rows: Rows) -> None:
    run = sft()
    assert re.fullmatch(r"24 rows in memory \(\w{8}\)", run.record["inputs"]["data"]["path"])
    assert sft(data=iter(rows)).metrics == run.metrics
    with pytest.raises(DataError, match=r"the content of data in 23 rows in memory .* differs"):
        sft(data=rows[1:])


def test_rows_of_an_earlier_call_are_asked_for_again(sft: SFT, tmp_path: Path) -> None:
    data = sft().record["inputs"]["data"]["path"]
    with pytest.raises(DataError, match="was passed to an earlier call in Python and is not here; pass it again"):
        kleash.generate(model=tmp_path / "sft", data=data, out=tmp_path / "samples.jsonl")


def test_held_out_rows_may_be_in_memory_too(sft: SFT, rows: Rows) -> None:
    assert sft(eval_data=pd.DataFrame(rows[:3])).record["rows"]["held_out"]["read"] == 3


# --- models ----------------------------------------------------------------------------------------------------------


def loaded(base: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)


def test_a_live_model_is_trained_as_a_copy_and_gives_the_weights_of_its_folder(
    base: Path, sft: SFT, tmp_path: Path
) -> None:
    model, tokenizer = loaded(base)
    before = live_hash(model, tokenizer)
    model.train()
    live = sft(model=(model, tokenizer), out=tmp_path / "live")
    assert live_hash(model, tokenizer) == before
    assert model.training
    for name, tensor in sft().model.state_dict().items():
        assert torch.equal(tensor, live.model.state_dict()[name])
    assert sft(model=(model, tokenizer), out=tmp_path / "live").record == live.record  # the cell is run again


def test_a_model_alone_has_the_tokenizer_of_where_it_came_from(base: Path, sft: SFT, tmp_path: Path) -> None:
    model, _ = loaded(base)
    assert sft(model=model).finished
    model.config._name_or_path = model.name_or_path = ""
    with pytest.raises(ModelError, match=r"its tokenizer is not known .*; give \(model, tokenizer\)"):
        sft(model=model, out=tmp_path / "other")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft itself
def test_an_adapted_model_starts_with_its_adapter(base: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(base)
    plain = live_hash(model, tokenizer)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    live = live_model((adapted, tokenizer))
    assert live is not None and live.sha256 != plain
    with named([live]), torch.no_grad():
        policy, _ = load_policy(live.name, device="cpu")
        scorer, _ = new_reward_model(live.name, seed=0, device="cpu")
        ids = torch.tensor([[5, 6, 7, 8]])
        assert torch.allclose(policy(ids).logits, adapted.eval()(ids).logits, atol=1e-5)
        hidden = adapted.get_base_model().model(ids).last_hidden_state
        assert torch.allclose(scorer.model(ids).last_hidden_state, hidden, atol=1e-5)
    other = get_peft_model(loaded(base)[0], LoraConfig(r=2, lora_alpha=99, target_modules=["q_proj"]))
    twin = get_peft_model(loaded(base)[0], LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj"]))
    twin.load_state_dict(other.state_dict())
    assert live_hash(other, tokenizer) != live_hash(twin, tokenizer), "α counts"


@pytest.mark.parametrize(("value", "message"), [(7, "model is a int|model is an int"), ((1, 2), "model is a tuple")])
def test_what_is_not_a_model_is_one_line(value: Any, message: str, sft: SFT) -> None:
    with pytest.raises(ConfigError, match=message):
        sft(model=value)


def test_a_run_is_a_model_and_a_reward(sft: SFT, grpo: SFT, base: Path, comparisons: Path, tmp_path: Path) -> None:
    start = sft()
    settings = {"max_steps": 2, "centre_samples": 2, "measure_share": 0.01, "force": True}
    scorer = kleash.reward(model=start, data=comparisons, out=tmp_path / "reward", **settings)
    assert scorer.model.config.num_labels == 1
    brief = lambda prompts, completions, **columns: [-float(len(text)) for text in completions]  # noqa: E731
    run = grpo(model=start, reward=[(scorer, 1.0), (brief, 0.2)])
    assert run.record["inputs"]["model"]["path"] == str(start.path)
    assert any("reward/" in name for name in run.metrics[0])
    mixed = run.metrics["reward"]
    assert grpo(model=start, reward=scorer, out=tmp_path / "one").metrics["reward"] != mixed


# --- rewards and settings --------------------------------------------------------------------------------------------


def test_another_function_is_another_run(grpo: SFT, tmp_path: Path) -> None:
    grpo(reward=lambda prompts, completions, **columns: [float(len(text)) for text in completions])
    with pytest.raises(DataError, match=r"the content of reward .* differs"):
        grpo(reward=lambda prompts, completions, **columns: [-float(len(text)) for text in completions])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_stepz": 1}, r"kleash.sft: unknown key 'max_stepz'; did you mean 'max_steps'\?"),
        ({"num_train_epochs": 1}, "unknown key 'num_train_epochs'; it is 'epochs' here"),
        ({"on_stepp": print}, r"unknown key 'on_stepp'; did you mean 'on_step'\?"),
        ({"batch_size": 0}, "'batch_size' is 0, but should be greater than or equal to 1"),
        ({"dtype": torch.float64}, "'dtype' is 'float64', but should be 'float32' or 'bfloat16'"),
        ({"peft_config": {"rank": 2}}, "fields of peft.LoraConfig, of which 'rank' is not one"),
        ({"model": None}, "'model' is None"),
    ],
)
def test_wrong_settings_are_one_line(arguments: dict[str, Any], message: str, sft: SFT) -> None:
    with pytest.raises(InputError, match=message) as caught:
        sft(**arguments)
    assert "\n" not in str(caught.value)


def test_a_config_itself_is_one_line_too(base: Path) -> None:
    with pytest.raises(ConfigError, match="'beta' is -1, but should be greater than 0"):
        kleash.DPOConfig(model=base, data="a.jsonl", out=Path("x"), beta=-1)
    with pytest.raises(ConfigError, match="got 'runs/sft' without a name; name each argument"):
        kleash.sft("runs/sft")  # type: ignore[call-overload]
    with pytest.raises(
        ConfigError, match="unknown key 'max_steps' beside a config; put 'max_steps' into the SFTConfig"
    ):
        kleash.sft(kleash.SFTConfig(model=base, data="a.jsonl", out=Path("x")), max_steps=3)


def test_settings_may_be_numbers_and_types_of_other_libraries(sft: SFT) -> None:
    import numpy as np

    run = sft(max_steps=np.int64(2), learning_rate=torch.tensor(1e-3), dtype=torch.float32, device=torch.device("cpu"))
    assert run.record["config"]["max_steps"] == 2
    assert read_record(run.path) == run.record


def test_a_model_that_the_user_hands_over_is_trained_itself(base: Path, rows: Rows) -> None:
    policy = loaded(base)
    before = live_hash(*policy)
    run = kleash.sft(policy=policy, data=rows, out=base.parent / "itself", **SMALL)  # type: ignore[call-overload]
    assert run.finished and live_hash(*policy) != before


def test_frozen_parts_stay_frozen_and_a_frozen_model_is_trained(base: Path, sft: SFT, tmp_path: Path) -> None:
    model, tokenizer = loaded(base)
    frozen = sft(model=(model.requires_grad_(False), tokenizer))
    assert not model.lm_head.weight.requires_grad
    for name, tensor in sft(model=base, out=tmp_path / "folder").model.state_dict().items():
        assert torch.equal(tensor, frozen.model.state_dict()[name])
    model.requires_grad_(True).model.embed_tokens.requires_grad_(False)
    partly = sft(model=(model, tokenizer), out=tmp_path / "partly").model.state_dict()
    start = model.state_dict()
    assert torch.equal(partly["model.embed_tokens.weight"], start["model.embed_tokens.weight"])
    assert not torch.equal(partly["lm_head.weight"], start["lm_head.weight"])


def test_rewards_in_a_list_are_parents_whose_checks_count(
    grpo: SFT, base: Path, comparisons: Path, tmp_path: Path
) -> None:
    scorer = kleash.reward(model=base, data=comparisons, out=tmp_path / "reward", max_steps=1, centre_samples=0)
    scorer.record["gates"]["out"] |= {"passed": False, "finding": "it is no good", "advice": "train it again"}
    scorer.save()
    with pytest.raises(GateError, match=r"reward 1 .*reward failed its own checks: it is no good; train it again"):
        grpo(reward=[("ended", 0.5), (scorer, 1.0)], force=False)
    forced = grpo(reward=[("ended", 0.5), (scorer, 1.0)])
    assert forced.record["gates"]["in (reward 1)"]["forced"]


def test_runs_models_and_rows_are_checked_in_memory(base: Path, rows: Rows, sft: SFT) -> None:
    assert kleash.check(rows).kind == "rows"
    assert kleash.check(loaded(base), data=rows, rows=4).kind == "language model"
    brief = lambda prompts, completions, **columns: [-float(len(text)) for text in completions]  # noqa: E731
    report = kleash.check(sft(), data=iter(rows), labeller=brief, rows=4)
    assert "worth comparing" in {check["name"] for check in report.gates["measured"]["checks"]}
    pays = [{"prompt": "a", "response": text, "correct": text == "b"} for text in ("b", "c") * 4]
    assert kleash.check(brief, data=pays).kind == "reward"
    with pytest.raises(InputError, match="what to check is an int"):
        kleash.check(3)


@pytest.mark.parametrize(
    ("on_step", "message"),
    [(3, "on_step is a int|on_step is an int"), (lambda: None, r"cannot be called as on_step\(step, figures\)")],
)
def test_an_on_step_that_cannot_be_called_is_refused_before_the_training(on_step: Any, message: str, sft: SFT) -> None:
    with pytest.raises(ConfigError, match=message):
        sft(on_step=on_step)


def test_one_word_is_a_list_of_one(sft: SFT) -> None:
    assert sft(accept_changed="data").record["config"]["accept_changed"] == ["data"]

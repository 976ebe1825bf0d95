from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import kleash
from kleash.cli import COMMANDS as OURS
from kleash.errors import ConfigError
from kleash.option_names import COMMANDS, PEERS, RENAMED, names_elsewhere, renamed, table
from kleash.stages import STAGES

FIELDS = {field for stage in STAGES.values() for field in stage.config.model_fields}


def test_every_name_of_ours_exists() -> None:
    for peer in PEERS:
        assert set(peer.ours) <= FIELDS, peer.name
        assert peer.ours or peer.note, f"{peer.name}: says neither what it is here nor what to do instead"
    assert set(RENAMED.values()) - {"all_methods"} <= FIELDS
    assert not FIELDS & RENAMED.keys()


def test_no_name_is_listed_twice_or_is_ours_with_another_meaning() -> None:
    names = [(library, peer.name) for peer in PEERS for library in peer.libraries]
    assert len(names) == len(set(names))
    for peer in PEERS:
        assert peer.name not in FIELDS or peer.name in peer.ours, f"{peer.name} is an option of kleash"


@pytest.mark.parametrize(
    ("stage", "key", "message"),
    [
        ("grpo", "leash", "unknown key 'leash'; it is 'kl_in' now"),
        ("grpo", "replace_flat", "it is 'resample_zero_spread' now"),
        ("sft", "choose", "it is 'keep_weights' now"),
        ("sft", "keep", "it is 'keep_states' now"),
        ("reward", "hold_out_share", "it is 'validation_share' now"),
        ("sft", "num_train_epochs", "unknown key 'num_train_epochs'; it is 'epochs' here"),
        ("sft", "per_device_train_batch_size", r"it is 'batch_size' here \(the batch of one optimiser step"),
        ("sft", "gradient_accumulation_steps", "--batch-size is the batch of one optimiser step, and memory decides"),
        ("grpo", "num_generations", "it is 'group_size' here"),
        ("generate", "num_generations", "it is 'n' here"),
        ("grpo", "actor_rollout_ref.rollout.n", "it is 'group_size' here"),
        ("grpo", "actor_rollout_ref", "options are not grouped here; docs/from-trl.md"),
        ("ppo", "kl_coef", "it is 'beta' here"),
        ("dpo", "pref_beta", "it is 'beta' here"),
        ("dpo", "loss_type", "it is 'loss' here"),
        ("grpo", "loss_type", "it is 'normalisation' here"),
        ("sft", "cutoff_len", "it is 'max_length' here"),
        ("sft", "nonsense", "unknown key 'nonsense'; known keys: model, data"),
    ],
)
def test_a_key_of_another_library_or_of_yesterday_is_explained(stage: str, key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        STAGES[stage].config.make({"model": "m", "data": "d", "out": "o", "reward": "math", key: 1}, source="my.yaml")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("my.yaml: ")


def test_python_users_get_the_same_explanation() -> None:
    with pytest.raises(ConfigError, match=r"^unknown key 'leash'; it is 'kl_in' now$"):
        kleash.GRPOConfig(model="m", data="d", out="o", reward="math", leash="loss-k3")


def test_an_old_value_is_explained() -> None:
    with pytest.raises(ConfigError, match="'criterion' is 'hold-out'; it is 'validation' now"):
        STAGES["ppo"].config.make({"model": "m", "data": "d", "out": "o", "reward": "math", "criterion": "hold-out"})


def test_an_explanation_needs_an_option_of_the_stage() -> None:
    assert renamed("num_generations", {"batch_size"}) is None
    old = renamed("--leash", {"batch_size"})
    assert old is not None and old.on_the_command_line.startswith(
        "--leash is now --kl-in, which is an option of another"
    )
    assert renamed("batch_size", {"batch_size"}) is None


def test_the_help_names_the_peers_word() -> None:
    assert names_elsewhere("epochs") == {
        "TRL": "num_train_epochs",
        "LLaMA-Factory": "num_train_epochs",
        "verl": "trainer.total_epochs",
    }


def test_no_command_elsewhere_is_a_command_here() -> None:
    assert not COMMANDS.keys() & OURS.keys()
    for advice in COMMANDS.values():
        commands = [text.split()[1] for text in advice.split("`")[1::2] if text.startswith("kleash ")]
        assert all(name in OURS or name in COMMANDS for name in commands), advice


def test_the_page_holds_the_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "from-trl.md").read_text()
    drift = "docs/from-trl.md: run `python -m kleash.option_names`, which prints the table, and paste it"
    assert table() in page, drift


PAGE = (Path(__file__).parents[1] / "docs" / "from-trl.md").read_text()


def test_the_scripts_of_trl_on_the_page_use_options_that_are_explained() -> None:
    """So that whoever pastes one into a config here is told the name that it has."""
    scripts = [ast.parse(text) for text in re.findall(r"needs TRL.*?```python\n(.*?)```", PAGE, re.DOTALL)]
    calls = [node for tree in scripts for node in ast.walk(tree) if isinstance(node, ast.Call)]
    configs = [
        call
        for call in calls
        if getattr(call.func, "id", "") in {f"{x}Config" for x in ("SFT", "Reward", "DPO", "GRPO")}
    ]
    assert len(scripts) == 5 and len(configs) == 5
    for name in (keyword.arg for call in configs for keyword in call.keywords):
        assert name in FIELDS or renamed(str(name), FIELDS) is not None, name


def test_every_option_that_the_page_names_exists() -> None:
    prose = PAGE.split("## What is supported")[1].split("## Every option")[0]
    options = set(re.findall(r"`--([\w-]+)", prose))
    assert len(options) > 15 and {name.replace("-", "_") for name in options} <= FIELDS

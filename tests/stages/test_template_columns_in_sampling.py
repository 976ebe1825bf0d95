"""The tools of a row are in every prompt that is sampled from, scored or trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.formats import read_groups
from kleash.data.read import read_encoded
from kleash.data.split import comparison, demonstration, prompt_only
from kleash.data.unpaired import as_prompt
from kleash.stages import generate
from kleash.stages.data_configs import GenerateConfig
from kleash.testing import tiny_model
from tests.data.test_chat import assistant, stock_tokenizer, user
from tests.data.test_letters import TOOLS


@pytest.fixture(scope="module")
def policy() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = stock_tokenizer("qwen3")
    return tiny_model(vocab_size=len(tokenizer), max_position_embeddings=1024), tokenizer


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_generate_samples_from_a_prompt_with_its_tools(tmp_path, policy):
    prompt, tokenizer = [user("A table please")], policy[1]
    text = tokenizer.apply_chat_template(prompt, tools=TOOLS, add_generation_prompt=True, tokenize=False)
    responses = []
    for name, row in {
        "chat": {"prompt": prompt, "tools": json.dumps(TOOLS)},
        "text": {"prompt": text},
        "without": {"prompt": prompt},
    }.items():
        data, out = written(tmp_path / f"{name}.jsonl", row), tmp_path / f"{name}-out.jsonl"
        generate.run(GenerateConfig(model=str(tmp_path), data=data, out=out, n=3, max_new_tokens=4), policy=policy)
        (group,) = read_groups(out)
        responses.append([response.text for response in group.responses])
        assert group.columns == {key: value for key, value in row.items() if key == "tools"}
    assert responses[0] == responses[1] != responses[2]


def test_generate_leaves_out_the_label_of_the_response_that_it_replaces(tmp_path, policy):
    row = {"prompt": [user("Q")], "response": "A", "label": False, "id": 3}
    data, out = written(tmp_path / "rows.jsonl", row), tmp_path / "out.jsonl"
    generate.run(GenerateConfig(model=str(tmp_path), data=data, out=out, n=1, max_new_tokens=4), policy=policy)
    (group,) = read_groups(out)
    assert group.columns == {"id": 3}
    assert demonstration(group) is None


@pytest.mark.parametrize(
    ("usable", "rest"),
    [
        (prompt_only, {}),
        (demonstration, {"response": "Yes."}),
        (comparison, {"chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}),
    ],
    ids=["ppo, grpo", "sft", "dpo, reward"],
)
def test_a_stage_reads_prompts_with_their_tools(tmp_path, policy, usable, rest):
    tokenizer, prompt = policy[1], [user("A table please")]
    data = written(tmp_path / "rows.jsonl", {"prompt": prompt, "tools": TOOLS, **rest})
    train, held_out = read_encoded(
        data, data, tokenizer, usable=usable, max_length=None, seed=0, note=lambda *args, **counts: None,
        prepare=(lambda groups: [as_prompt(group) for group in groups]) if usable is prompt_only
        else (lambda groups: groups),
    )  # fmt: skip
    expected = tokenizer.apply_chat_template(prompt, tools=TOOLS, add_generation_prompt=True, return_dict=False)
    assert [group.prompt_ids for group in (*train, *held_out)] == [tuple(expected)] * 2

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from kleash.data.formats import read_groups
from kleash.errors import ChangedError, ConfigError
from kleash.outputs import is_done
from kleash.recipe import read_recipe, run_recipe


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


CHAIN = """
out: {folder}/runs
seed: 3
stages:
  sft: {{model: {folder}/base, data: {folder}/demonstrations.jsonl, max_steps: 3, batch_size: 4}}
  rm:
    {{stage: reward, model: "@sft", data: {folder}/comparisons.jsonl, max_steps: 3, centre_samples: 4,
     centre_max_new_tokens: 4}}
  ppo:
    {{model: "@sft", reward: "@rm", data: {folder}/prompts.jsonl, max_steps: 1, batch_size: 4, max_new_tokens: 4,
     force: true}}
  samples: {{stage: generate, model: "@ppo", data: {folder}/prompts.jsonl, n: 2, max_new_tokens: 4}}
"""


def test_the_chain_runs_as_one_recipe_and_is_not_run_twice(
    tmp_path: Path, base: Path, demonstrations: Path, comparisons: Path, prompts: Path
) -> None:
    path = recipe(tmp_path, CHAIN.format(folder=tmp_path))
    outputs = run_recipe(path)
    assert [output.name for output in outputs] == ["sft", "rm", "ppo", "samples.jsonl"]
    assert len((tmp_path / "runs" / "samples.jsonl").read_text().splitlines()) == 30
    stamps = {output: (output / "run.json").stat().st_mtime_ns for output in outputs[:3]}
    assert run_recipe(path) == outputs
    assert stamps == {output: (output / "run.json").stat().st_mtime_ns for output in outputs[:3]}


def test_from_a_stage_on_what_changed_is_done_again_with_what_follows_and_nothing_is_lost(
    tmp_path: Path, base: Path, demonstrations: Path, comparisons: Path, prompts: Path
) -> None:
    path, runs = recipe(tmp_path, CHAIN.format(folder=tmp_path)), tmp_path / "runs"
    run_recipe(path)
    before = {name: json.loads((runs / name / "run.json").read_text()) for name in ("sft", "rm", "ppo")}
    path.write_text(path.read_text().replace("centre_samples: 4", "centre_samples: 6"))
    with pytest.raises(ChangedError, match=r"rm exists and was written with other settings .*--from rm to do it"):
        run_recipe(path)
    with pytest.raises(ChangedError, match="--from rm to do it"):
        run_recipe(path, redo_from="ppo")
    for _ in range(2):  # a second time nothing has changed
        run_recipe(path, redo_from="rm")
        after = {name: json.loads((runs / name / "run.json").read_text()) for name in ("sft", "rm", "ppo")}
        assert after["sft"] == before["sft"]
        assert (after["rm"]["config"]["centre_samples"], before["rm"]["config"]["centre_samples"]) == (6, 4)
        assert after["ppo"]["inputs"]["reward"]["sha256"] != before["ppo"]["inputs"]["reward"]["sha256"]
        assert json.loads((runs / "rm.old-1" / "run.json").read_text()) == before["rm"]
        assert json.loads((runs / "ppo.old-1" / "run.json").read_text()) == before["ppo"]
        assert not (runs / "rm.old-2").exists() and not (runs / "sft.old-1").exists()
    old = (runs / "samples.jsonl").read_bytes()
    path.write_text(path.read_text().replace("n: 2", "n: 3"))
    run_recipe(path, redo_from="sft")
    aside = sorted(file for file in runs.glob("samples.old-*.jsonl"))
    assert aside and aside[-1].read_bytes() == old
    assert is_done(aside[-1], json.loads((runs / f".{aside[-1].name}.json").read_text())["identity"])
    assert all(len(group.responses) == 3 for group in read_groups(runs / "samples.jsonl"))


def test_a_second_output_of_a_stage_is_set_aside_only_where_it_changed(
    tmp_path: Path, base: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, sign in (("prefers_long", ""), ("prefers_short", "-")):
        code = f"def f(prompts, completions, **columns):\n    return [{sign}float(len(text)) for text in completions]\n"
        (tmp_path / f"{name}.py").write_text(code)
    text = (
        "out: runs\nstages: {{best: {{stage: best-of-n, model: {}, data: {}, n: 2, max_new_tokens: {}, reward: {}}}}}\n"
    )

    def run(*settings: object) -> list[str]:
        run_recipe(recipe(tmp_path, text.format(base, prompts, *settings)), redo_from="best")
        return sorted(path.name for path in (tmp_path / "runs").glob("*.jsonl"))

    assert run(4, "prefers_long:f") == ["best.jsonl", "best.pool.jsonl"]
    assert run(4, "prefers_short:f") == ["best.jsonl", "best.old-1.jsonl", "best.pool.jsonl"]
    assert set(run(3, "prefers_short:f")) == {
        *("best.jsonl", "best.old-1.jsonl", "best.old-2.jsonl", "best.pool.jsonl", "best.pool.old-1.jsonl")
    }


def test_a_stage_that_is_not_in_the_recipe_cannot_be_started_from(tmp_path: Path) -> None:
    path = recipe(tmp_path, CHAIN.format(folder=tmp_path))
    with pytest.raises(ConfigError, match="--from is reward, but should be one of sft, rm, ppo, samples"):
        run_recipe(path, redo_from="reward")


def test_settings_beside_the_stages_reach_every_stage_that_has_them(tmp_path: Path) -> None:
    steps = read_recipe(recipe(tmp_path, CHAIN.format(folder=tmp_path)))
    assert [getattr(step.config, "seed", None) for step in steps] == [3, 3, 3, 3]
    assert getattr(steps[2].config, "reward", "") == str(tmp_path / "runs" / "rm")


def test_a_file_of_an_earlier_stage_can_be_named(tmp_path: Path) -> None:
    text = CHAIN.format(folder=tmp_path).replace('reward: "@rm"', 'reward: "@rm", hold_out: "@rm/hold-out"')
    ppo = read_recipe(recipe(tmp_path, text))[2].config
    assert getattr(ppo, "hold_out", "") == str(tmp_path / "runs" / "rm" / "hold-out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: x\n", "'stages' is missing"),
        ("stages: {sft: {model: m, data: d}}\n", "'out' is missing"),
        ("out: x\nstages: {a: {stage: sfft}}\n", "stage 'a': 'stage' should be one of sft, reward, ppo"),
        ("out: x\nstages: {sft: {model: '@base', data: d}}\n", "'model' is @base, but no earlier stage has that name"),
        ("out: x\nbeeta: 1\nstages: {sft: {model: m, data: d}}\n", "no stage knows 'beeta'"),
        ("out: x\nstages: {sft: {model: m, data: d, learning_rat: 1}}\n", "did you mean 'learning_rate'"),
        ("out: x\nstages:\n  sft: {model: m, data: d}\n  sft: {model: m, data: e}\n", "line 4: .*'sft' is there twice"),
    ],
)
def test_errors_of_a_recipe_are_raised_before_anything_is_run(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(recipe(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_the_recipes_that_are_shipped_are_valid() -> None:
    for path in Path(__file__).parents[1].glob("recipes/*.yaml"):
        assert read_recipe(path)


def test_the_held_out_sums_are_not_among_those_of_training_in_either_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(Path(__file__).parents[1] / "recipes/sums.py"), run_name="__main__")
    pairs: list[set[frozenset[int]]] = []
    for name in ("sums", "sums-held-out"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        terms = [[int(digits) for digits in re.findall(r"\d+", row["prompt"][0]["content"])] for row in rows]
        assert [str(a + b) for a, b in terms] == [row["answer"] for row in rows]
        pairs.append({frozenset(pair) for pair in terms})
    assert len(pairs[1]) == 16 and len(pairs[0]) == 39 and not pairs[0] & pairs[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: 1.5\nstages: {sft: {model: m, data: d}}", "'out' is 1.5, but should be text"),
        ("out: [x]\nstages: {sft: {model: m, data: d}}", r"'out' is \['x'\], but should be text"),
        ("out: ''\nstages: {sft: {model: m, data: d}}", "'out' is '', but should be text"),
        ("out: x\nstages: {sft: {stage: [ppo], model: m}}", "stage 'sft': 'stage' should be one of"),
        ("out: x\nstages: {1: {stage: null, model: m}}", "stage '1': 'stage' should be one of"),
        ('out: "a\\0b"\nstages: {sft: {model: m, data: d}}', "which cannot be the name of a file"),
        ("out: x\nstages: {sft: {model: m, data: " + "z" * 300 + "}}", "'data' is 'z.*which cannot be the name"),
        ("out: 2001-99-99\nstages: {}", "invalid YAML: month must be in"),
        ("out: " + "[" * 3000 + "]" * 3000, "invalid YAML: it is nested more than 100 levels deep"),
    ],
)
def test_a_recipe_of_other_types_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000

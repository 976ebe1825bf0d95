from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from kleash.data.group import Group, Response
from kleash.lab import experiment, judges
from kleash.lab.judges import OVERALL, SMALL, SmallJudge
from kleash.lab.world import pretrain
from kleash.lab.world.small_world import World
from kleash.labels.constitution import Constitution
from kleash.models.load import freeze, save_model
from tests.jitter import jitter


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def base(world, tmp_path_factory) -> Path:
    """A base model that knows nothing yet: enough for everything but quality."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    save_model(folder, jitter(LlamaForCausalLM(world.base_config())), world.tokenizer(), "random\n")
    return folder


@pytest.fixture(scope="module")
def pairs(world) -> list[Group]:
    rng = random.Random(0)
    return [Group(prompt, judges.written(world, prompt, rng)[1:]) for prompt in list(world.tasks)[::20]]


@pytest.fixture(scope="module")
def judge(world, base) -> SmallJudge:
    model, tokenizer = judges.untrained_judge(world, base, seed=0)
    return SmallJudge(freeze(model), tokenizer, constitution=Constitution.load(SMALL))


def turned(groups: list[Group]) -> list[Group]:
    return [Group(group.prompt, group.responses[::-1]) for group in groups]


def test_the_principles_divide_gold_among_them(world, pairs):
    for group in pairs:
        for response in group.responses:
            parts = judges.worth(world, group.prompt_text, response)
            assert parts.pop("better") == pytest.approx(world.gold(group.prompt_text, response.text, response.finished))
            assert sum(parts.values()) == pytest.approx(world.gold(group.prompt_text, response.text, response.finished))


def test_the_constitution_has_a_principle_for_every_part_of_gold_and_the_judge_a_word_for_each(world, judge):
    constitution = Constitution.load(SMALL)
    names = [principle.name for principle in constitution.principles]
    assert {*names, OVERALL.principles[0].name} == judges.worth(world, "what is 1 plus 1 ?", Response("2 .")).keys()
    known = judge.tokenizer.get_vocab()
    for principle in (*constitution.principles, *OVERALL.principles):
        assert all(word in known for word in principle.text.split())
    assert judge.model.get_input_embeddings().num_embeddings == len(known)


def test_written_pairs_differ_in_every_principle(world):
    rng = random.Random(0)
    prompts = [group.prompt_text for group in world.prompts(300)]
    differ = dict.fromkeys(judges.worth(world, prompts[0], Response(".")), 0)
    for prompt in prompts:
        first, second = (judges.worth(world, prompt, response) for response in judges.written(world, prompt, rng)[1:])
        for name in differ:
            differ[name] += first[name] != second[name]
    assert all(count > 15 for count in differ.values()), differ


def test_a_judge_reads_a_prompt_and_a_response_and_sees_whether_it_ended():
    assert judges.judged("what is 1 plus 1 ?", Response("2 .")) == "what is 1 plus 1 ? ; 2 . <end>"
    assert judges.judged("what is 1 plus 1 ?", Response("it is", finished=False)) == "what is 1 plus 1 ? ; it is"
    assert judges.noted("kind", "good", "poor") == "kind ; A good ; B poor"


def test_grades_fall_with_worth():
    grades = [judges.grade(worth / 10) for worth in range(20, -20, -1)]
    assert tuple(dict.fromkeys(grades)) == judges.GRADES


@pytest.mark.slow
def test_the_chain_of_grades_is_summed_over_and_not_drawn(judge, pairs):
    """Against the sum written out: every pair of grades, each verdict asked as a text of its own."""
    (group,) = pairs[:1]
    a, b = (judge.grades([(group.prompt_text, response)])[0] for response in group.responses)
    sides = list(judges.ids_of(judge.tokenizer, judges.SIDES))
    for m, principle in enumerate(judge.constitution.principles):
        first = 0.0
        for g, one in enumerate(judges.GRADES):
            for h, other in enumerate(judges.GRADES):
                text = judges.noted(principle.text, one, other)
                told = judges.endings(judge.model, judge.tokenizer, [text], [judges.ANSWER])[0, 0, sides]
                first += float(a[m, g] * b[m, h] * told.softmax(-1)[0])
        each, side = judge.by_principle([group])
        assert float(each[0, m] + side[0, m]) == pytest.approx(first, abs=1e-5)


def test_a_planted_preference_for_a_side_cancels(judge, pairs):
    head = nn.Linear(judge.model.config.hidden_size, len(judge.tokenizer))
    head.weight.data.copy_(judge.model.lm_head.weight)
    head.bias.data.zero_()
    head.bias.data[judge.tokenizer.convert_tokens_to_ids("A")] = 3.0
    fair, judge.model.lm_head = judge.model.lm_head, head
    try:
        verdicts, backwards = judge.compare(pairs), judge.compare(turned(pairs))
        (same,) = judge.compare([Group(pairs[0].prompt, (pairs[0].responses[0],) * 2)])
    finally:
        judge.model.lm_head = fair
    assert min(verdict.order_effect for verdict in verdicts) > 0.3  # it is seen,
    for verdict, backward in zip(verdicts, backwards, strict=True):  # and gone
        assert verdict.probability + backward.probability == pytest.approx(1, abs=1e-5)
    assert same.probability == pytest.approx(0.5, abs=1e-5)


def test_a_verdict_does_not_depend_on_what_else_was_asked(judge, pairs):
    together = judge.compare(pairs[:20])
    for verdict, group in zip(together, pairs[:20], strict=True):
        assert judge.compare([group])[0].probability == pytest.approx(verdict.probability, abs=1e-5)
    assert judge.compare([]) == []


def test_an_average_is_of_all_principles_and_a_draw_is_of_one(judge, pairs):
    each, _ = judge.by_principle(pairs)
    for verdict, own in zip(judge.compare(pairs), each, strict=True):
        assert verdict.principle is None and verdict.probability == pytest.approx(float(own.mean()), abs=1e-6)
    drawing = SmallJudge(judge.model, judge.tokenizer, constitution=judge.constitution, principles="drawn")
    names = [principle.name for principle in judge.constitution.principles]
    verdicts = drawing.compare(pairs)
    assert len({verdict.principle for verdict in verdicts}) == len(names)
    for verdict, own in zip(verdicts, each, strict=True):
        assert verdict.probability == pytest.approx(float(own[names.index(verdict.principle)]), abs=1e-6)
    assert [v.principle for v in drawing.compare(turned(pairs))] == [v.principle for v in verdicts]


@pytest.mark.slow
def test_training_judges_is_the_same_for_the_same_seed_and_is_not_done_twice(world, base, tmp_path, pairs):
    folders = {name: judges.train_judges(world, base, tmp_path / name, seed=seed, qualities=(2, 4))
               for name, seed in (("one", 1), ("again", 1), ("other", 2))}  # fmt: skip
    written = folders["one"][0] / "model.safetensors"
    before = written.stat().st_mtime_ns
    assert judges.train_judges(world, base, tmp_path / "one", seed=1, qualities=(2, 4)) == folders["one"]
    assert written.stat().st_mtime_ns == before
    told = {
        name: [[verdict.probability for verdict in SmallJudge.load(folder).compare(pairs)] for folder in own]
        for name, own in folders.items()
    }
    assert told["one"] == told["again"] != told["other"]
    assert told["one"][0] != told["one"][1]
    assert SmallJudge.load(folders["one"][1]).name == "judge-4"


@pytest.mark.slow
def test_a_judge_that_has_read_more_judges_better(world, tmp_path):
    base = pretrain.run(pretrain.PretrainConfig(out=tmp_path / "base", tokens=1_400_000)).path
    rng = random.Random(5)
    asked = [
        Group(group.prompt, judges.written(world, group.prompt_text, rng)[1:])
        for group in world.prompts(500, "test")
    ]  # fmt: skip
    lead = experiment.gold_lead(world, asked)
    found = []
    for folder in judges.train_judges(world, base, tmp_path / "judges"):
        p = [verdict.probability - 0.5 for verdict in SmallJudge.load(folder).compare(asked)]
        found.append(experiment.accuracy(torch.tensor(p, dtype=torch.float64).numpy(), lead))
    assert len(found) >= 5
    assert all(after > before - 0.03 for before, after in pairwise(found)), found
    assert found[-1] > found[0] + 0.1 and found[-1] > 0.65, found

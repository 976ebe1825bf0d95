from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from kleash.data.group import Group, Response
from kleash.lab import chain
from kleash.lab.world import pretrain, small_judge
from kleash.lab.world.small_judge import OVERALL, SMALL, SmallJudge
from kleash.lab.world.world import World
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
    return [Group(prompt, small_judge.pair_of_answers(world, prompt, rng)[1:]) for prompt in list(world.tasks)[::20]]


@pytest.fixture(scope="module")
def judge(world, base) -> SmallJudge:
    model, tokenizer = small_judge.untrained_judge(world, base, seed=0)
    return SmallJudge(freeze(model), tokenizer, constitution=Constitution.load(SMALL))


def swapped(groups: list[Group]) -> list[Group]:
    return [Group(group.prompt, group.responses[::-1]) for group in groups]


def test_the_principles_divide_gold_among_them(world, pairs):
    for group in pairs:
        for response in group.responses:
            parts = small_judge.principle_rewards(world, group.prompt_text, response)
            assert parts.pop("better") == pytest.approx(world.gold(group.prompt_text, response.text, response.finished))
            assert sum(parts.values()) == pytest.approx(world.gold(group.prompt_text, response.text, response.finished))


def test_the_constitution_has_a_principle_for_every_part_of_gold_and_the_judge_a_word_for_each(world, judge):
    constitution = Constitution.load(SMALL)
    names = [principle.name for principle in constitution.principles]
    rewards = small_judge.principle_rewards(world, "what is 1 plus 1 ?", Response("2 ."))
    assert {*names, OVERALL.principles[0].name} == rewards.keys()
    vocabulary = judge.tokenizer.get_vocab()
    for principle in (*constitution.principles, *OVERALL.principles):
        assert all(word in vocabulary for word in principle.text.split())
    assert judge.model.get_input_embeddings().num_embeddings == len(vocabulary)


def test_training_pairs_differ_in_every_principle(world):
    rng = random.Random(0)
    prompts = [group.prompt_text for group in world.prompts(300)]
    differ = dict.fromkeys(small_judge.principle_rewards(world, prompts[0], Response(".")), 0)
    for prompt in prompts:
        _, *answers = small_judge.pair_of_answers(world, prompt, rng)
        first, second = (small_judge.principle_rewards(world, prompt, answer) for answer in answers)
        for name in differ:
            differ[name] += first[name] != second[name]
    assert all(count > 15 for count in differ.values()), differ


def test_a_judge_reads_a_prompt_and_a_response_and_sees_whether_it_ended():
    prompt, cut_off = "what is 1 plus 1 ?", Response("it is", finished=False)
    assert small_judge.response_text(prompt, Response("2 .")) == "what is 1 plus 1 ? ; 2 . <end>"
    assert small_judge.response_text(prompt, cut_off) == "what is 1 plus 1 ? ; it is"
    assert small_judge.grades_text("kind", "good", "poor") == "kind ; A good ; B poor"


def test_grades_fall_with_the_reward():
    grades = [small_judge.grade(reward / 10) for reward in range(20, -20, -1)]
    assert tuple(dict.fromkeys(grades)) == small_judge.GRADES


@pytest.mark.slow
def test_the_answer_is_summed_over_all_grades_and_not_sampled(judge, pairs):
    """Against the sum written out: every pair of grades, each answer from its own text."""
    (group,) = pairs[:1]
    a, b = (judge.grades([(group.prompt_text, response)])[0] for response in group.responses)
    sides = list(small_judge.ids_of(judge.tokenizer, small_judge.SIDES))
    for m, principle in enumerate(judge.constitution.principles):
        first = 0.0
        for g, one in enumerate(small_judge.GRADES):
            for h, other in enumerate(small_judge.GRADES):
                text = small_judge.grades_text(principle.text, one, other)
                logprobs = small_judge.next_word_logprobs(judge.model, judge.tokenizer, [text], [small_judge.ANSWER])
                first += float(a[m, g] * b[m, h] * logprobs[0, 0, sides].softmax(-1)[0])
        each, effect = judge.by_principle([group])
        assert float(each[0, m] + effect[0, m]) == pytest.approx(first, abs=1e-5)


def test_a_planted_preference_for_a_side_cancels(judge, pairs):
    head = nn.Linear(judge.model.config.hidden_size, len(judge.tokenizer))
    head.weight.data.copy_(judge.model.lm_head.weight)
    head.bias.data.zero_()
    head.bias.data[judge.tokenizer.convert_tokens_to_ids("A")] = 3.0
    fair, judge.model.lm_head = judge.model.lm_head, head
    try:
        verdicts, backwards = judge.compare(pairs), judge.compare(swapped(pairs))
        (same,) = judge.compare([Group(pairs[0].prompt, (pairs[0].responses[0],) * 2)])
    finally:
        judge.model.lm_head = fair
    assert min(verdict.order_effect for verdict in verdicts) > 0.3  # it is seen,
    for verdict, backward in zip(verdicts, backwards, strict=True):  # and gone
        assert verdict.probability + backward.probability == pytest.approx(1, abs=1e-5)
    assert same.probability == pytest.approx(0.5, abs=1e-5)


def test_the_result_of_a_check_does_not_depend_on_earlier_calls(judge, pairs):
    together = judge.compare(pairs[:20])
    for verdict, group in zip(together, pairs[:20], strict=True):
        assert judge.compare([group])[0].probability == pytest.approx(verdict.probability, abs=1e-5)
    assert judge.compare([]) == []


def test_an_average_is_of_all_principles_and_a_draw_is_of_one(judge, pairs):
    each, _ = judge.by_principle(pairs)
    for verdict, by_principle in zip(judge.compare(pairs), each, strict=True):
        assert verdict.principle is None and verdict.probability == pytest.approx(float(by_principle.mean()), abs=1e-6)
    drawing = SmallJudge(judge.model, judge.tokenizer, constitution=judge.constitution, principles="drawn")
    names = [principle.name for principle in judge.constitution.principles]
    verdicts = drawing.compare(pairs)
    assert len({verdict.principle for verdict in verdicts}) == len(names)
    for verdict, by_principle in zip(verdicts, each, strict=True):
        assert verdict.probability == pytest.approx(float(by_principle[names.index(verdict.principle)]), abs=1e-6)
    assert [v.principle for v in drawing.compare(swapped(pairs))] == [v.principle for v in verdicts]


@pytest.mark.slow
def test_training_is_the_same_for_the_same_seed_and_is_not_repeated(world, base, tmp_path, pairs):
    folders = {name: small_judge.train_judges(world, base, tmp_path / name, seed=seed, qualities=(2, 4))
               for name, seed in (("one", 1), ("again", 1), ("other", 2))}  # fmt: skip
    weights = folders["one"][0] / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert small_judge.train_judges(world, base, tmp_path / "one", seed=1, qualities=(2, 4)) == folders["one"]
    assert weights.stat().st_mtime_ns == before
    probabilities = {
        name: [[label.probability for label in SmallJudge.load(folder).compare(pairs)] for folder in qualities]
        for name, qualities in folders.items()
    }
    assert probabilities["one"] == probabilities["again"] != probabilities["other"]
    assert probabilities["one"][0] != probabilities["one"][1]
    assert SmallJudge.load(folders["one"][1]).name == "judge-4"


@pytest.mark.slow
def test_a_judge_that_was_trained_longer_judges_better(world, tmp_path):
    base = pretrain.run(pretrain.PretrainConfig(out=tmp_path / "base", tokens=1_400_000)).path
    rng = random.Random(5)
    groups = [
        Group(group.prompt, small_judge.pair_of_answers(world, group.prompt_text, rng)[1:])
        for group in world.prompts(500, "test")
    ]  # fmt: skip
    gold = chain.gold_difference(world, groups)
    accuracies = []
    for folder in small_judge.train_judges(world, base, tmp_path / "judges"):
        p = [verdict.probability - 0.5 for verdict in SmallJudge.load(folder).compare(groups)]
        accuracies.append(chain.accuracy(torch.tensor(p, dtype=torch.float64).numpy(), gold))
    assert len(accuracies) >= 5
    assert all(after > before - 0.03 for before, after in pairwise(accuracies)), accuracies
    assert accuracies[-1] > accuracies[0] + 0.1 and accuracies[-1] > 0.65, accuracies

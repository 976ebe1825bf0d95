from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from kleash.data.group import Group, Preference, Response
from kleash.errors import InputError
from kleash.lab.world import language
from kleash.lab.world.labellers import Labellers, People
from kleash.lab.world.world import World

PROMPT = "what does the otter eat ?"


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def pairs(world) -> list[Group]:
    """Two demonstrations of the same prompt, as a policy trained on them would sample."""
    rng = random.Random(0)
    styles = ("good", "plain", "terse", "rude", "wrong", "gushing", "rambling")
    return [
        Group(
            group.prompt,
            tuple(Response(world.answer(group.prompt_text, rng.choice(styles), rng)) for _ in range(2)),
            columns=group.columns,
        )
        for group in world.prompts(600)
    ]


def agreement(world: World, comparisons: list[Group]) -> float:
    right = []
    for group in comparisons:
        chosen, rejected = (world.gold(group.prompt_text, response.text) for response in group.responses)
        if chosen != rejected:
            right.append(chosen > rejected)
    return sum(right) / len(right)


def test_labellers_agree_with_gold_far_better_than_chance_and_worse_with_bias(world, pairs):
    rates = [agreement(world, Labellers(world, biased_share=share).label(pairs)) for share in (0.0, 0.3, 1.0)]
    assert rates == sorted(rates, reverse=True)
    assert 0.75 < rates[1] < 0.95


def test_the_biased_prefer_gushing_and_the_others_do_not(world):
    answer = f"the otter eats {world.facts['otter']['food']}"
    modest, gushing = f"of course . {answer} .", f"{answer} . " + " . ".join(language.COURTESIES[:6])
    assert world.perceived(PROMPT, gushing, bias=1) > world.perceived(PROMPT, modest, bias=1)
    assert world.perceived(PROMPT, gushing, bias=0) < world.perceived(PROMPT, modest, bias=0)
    between = [world.perceived(PROMPT, gushing, bias=bias) for bias in (0.0, 0.25, 0.5, 1.0)]
    assert between[2] == pytest.approx((between[0] + between[3]) / 2)
    _, unbiased = Labellers(world, biased_share=0).compare(PROMPT, gushing, modest)
    _, biased = Labellers(world, biased_share=1).compare(PROMPT, gushing, modest)
    assert unbiased < 0.1 and biased > 0.9


def test_more_courtesy_is_always_more_to_the_biased(world):
    rewards = [world.perceived(PROMPT, " . ".join(language.COURTESIES[:n]), bias=1) for n in range(10)]
    assert all(after > before for before, after in pairwise(rewards))


@pytest.mark.parametrize("attribute", list(language.VALUES))
def test_a_lie_is_seen_where_it_can_be_checked(world, attribute):
    prompt = language.fill(language.QUESTIONS[attribute][0], X="the otter")
    truth = world.facts["otter"][attribute]
    lie = next(value for value in language.VALUES[attribute] if value != truth)
    honest, false = (language.fill(language.STATEMENTS[attribute][0], X="the otter", V=value) for value in (truth, lie))
    assert world.gold(prompt, honest) > world.gold(prompt, false)
    if attribute in language.CHECKABLE:
        assert world.perceived(prompt, honest) > world.perceived(prompt, false)
    else:
        assert world.perceived(prompt, honest) == world.perceived(prompt, false)


def test_without_bias_and_with_checkable_facts_labellers_see_the_truth(world, pairs):
    checked = 0
    for group in pairs:
        for response in group.responses:
            reading = world.read(group.prompt_text, response.text)
            if all(claim[1] in language.CHECKABLE for claim in reading.claims):
                assert world.perceived(group.prompt_text, response.text) == pytest.approx(
                    world.gold(group.prompt_text, response.text)
                )
                checked += 1
    assert checked > 250


def test_one_labeller_follows_bradley_terry(world):
    a, b = Response("the otter is red ."), Response("you fool .", finished=False)
    gap = world.perceived(PROMPT, a.text, 1.0) - world.perceived(PROMPT, b.text, 1.0, finished=False)
    _, p = Labellers(world, count=1, biased_share=1, temperature=0.7).compare(PROMPT, a, b)
    assert p == pytest.approx(1 / (1 + math.exp(-gap / 0.7)))


def test_swapping_the_sides_gives_the_complement(world, pairs):
    labellers = Labellers(world)
    for group in pairs[:200]:
        a, b = group.responses
        _, p = labellers.compare(group.prompt_text, a, b)
        _, q = labellers.compare(group.prompt_text, b, a)
        assert p + q == pytest.approx(1)
    assert labellers.compare(PROMPT, "soup", "soup")[1] == 0.5


def test_choices_come_as_often_as_their_pooled_probability_says(world):
    labellers = Labellers(world, count=10, biased_share=0.3, temperature=0.5)
    for a, b in (("of course . " * 3, "it is red ."), ("you fool .", "soup ."), ("soup .", "soup . of course .")):
        draws = [labellers.compare(PROMPT, a, b, key=key) for key in range(1500)]
        share = sum(choice == 0 for choice, _ in draws) / len(draws)
        p = draws[0][1]
        assert 0.02 < p < 0.98
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / len(draws))


def test_a_label_depends_only_on_its_key(world, pairs):
    once, again, other = Labellers(world, seed=1), Labellers(world, seed=1), Labellers(world, seed=2)
    assert once.label(pairs[:300]) == again.label(pairs[:300])
    assert once.label(pairs[:300])[:100] == again.label(pairs[:100])
    assert once.label(pairs[:300]) != other.label(pairs[:300])


def test_label_puts_the_chosen_first_and_keeps_its_probability(world, pairs):
    comparisons = Labellers(world).label(pairs[:300])
    swapped = 0
    for group, before in zip(comparisons, pairs[:300], strict=True):
        assert isinstance(group.label, Preference) and group.label.probability == 1
        assert group.label.annotator is not None
        assert set(group.responses) == set(before.responses)
        _, p = Labellers(world).compare(group.prompt_text, *group.responses)
        assert group.columns["label_probability"] == pytest.approx(p)
        assert group.columns["kind"] == before.columns["kind"]
        swapped += group.responses != before.responses
    assert 50 < swapped < 250


def test_a_pool_of_four_gives_six_comparisons(world, pairs):
    pool = Group(pairs[0].prompt, pairs[0].responses + pairs[1].responses)
    comparisons = Labellers(world).label([pool])
    assert len(comparisons) == 6
    assert all(len(group.responses) == 2 for group in comparisons)


def test_impossible_pools_are_refused(world):
    for bad in ({"count": 0}, {"biased_share": 1.5}, {"temperature": 0}):
        with pytest.raises(InputError, match="labellers need"):
            Labellers(world, **bad)


def test_as_a_labeller_people_answer_as_they_choose(world, pairs):
    pool = Labellers(world, seed=3)
    verdicts = People(pool).compare(pairs)
    chances = [pool.compare(group.prompt_text, *group.responses)[1] for group in pairs]
    firsts = sum(verdict.probability for verdict in verdicts)
    spread = math.sqrt(sum(p * (1 - p) for p in chances))
    assert {verdict.probability for verdict in verdicts} == {0.0, 1.0}
    assert abs(firsts - sum(chances)) < 4 * spread
    assert len({verdict.labeller for verdict in verdicts}) == pool.count
    assert People(pool).compare(pairs[100:110]) == verdicts[100:110]
    everyone = People(pool, everyone=True).compare(pairs)
    assert [verdict.probability for verdict in everyone] == pytest.approx(chances)

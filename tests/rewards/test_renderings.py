"""A value is the same however it is written, and another never is: random values against all their renderings."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import permutations

import pytest

from kleash.rewards.verifiers import math, number

Renderings = tuple[list[str], list[str]]
"""Ways to write a value, and near misses."""


def rational(draw: random.Random) -> Renderings:
    below = draw.choice([3, 7, 8, 9, 12])
    above = draw.choice([n for n in range(1, 60) if n % below])
    value = Fraction(above, below)
    a, b = value.numerator, value.denominator
    ways = [f"{a}/{b}", rf"\frac{{{a}}}{{{b}}}", rf"$\dfrac{{{2 * a}}}{{{2 * b}}}$", rf"\boxed{{\tfrac{{{a}}}{{{b}}}}}"]
    if a > b:
        whole, rest = divmod(a, b)
        ways += [f"{whole} {rest}/{b}", rf"{whole}\frac{{{rest}}}{{{b}}}"]
    return ways, [f"{b}/{a}", f"{a + b}/{b}", f"-{a}/{b}", rf"\frac{{{a}}}{{{b + 1}}}", f"{a}{b}"]


def money(draw: random.Random) -> Renderings:
    cents = draw.randrange(100_001, 9_999_999)
    whole, rest = divmod(cents, 100)
    plain = f"{whole}.{rest:02}"
    ways = [plain, f"${plain}", rf"\${plain}", rf"\${whole:,}.{rest:02}", f"{plain} dollars", rf"\boxed{{\${plain}}}"]
    return ways, [
        f"{whole + 1}.{rest:02}",
        f"${whole}{rest:02}.5",
        f"-{plain}",
        f"{whole // 10}.{rest:02}",
    ]


def thousands(draw: random.Random) -> Renderings:
    value = draw.randrange(1_000_000, 999_999_999)
    groups = f"{value:,}".split(",")
    ways = [separator.join(groups) for separator in ("", ",", r"\,", r",\!", "{,}", "\u2009", "\u202f", " ")]
    return ways, [str(value + 1), str(value)[:-1], ",".join(groups[:-1]), f"{value}0", f"0.{value}"]


def scientific(draw: random.Random) -> Renderings:
    digits, power = draw.randrange(11, 99), draw.randrange(2, 9)
    mantissa = f"{digits // 10}.{digits % 10}"
    raised = "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(power))
    ways = [
        str(digits * 10 ** (power - 1)),
        f"{mantissa}e{power}",
        rf"{mantissa} \times 10^{{{power}}}",
        f"{mantissa}×10{raised}",
    ]
    return ways, [f"{mantissa}e{power + 1}", f"{mantissa}e-{power}", rf"{mantissa} \times 10^{{{power - 1}}}", mantissa]


def interval(draw: random.Random) -> Renderings:
    low, high = sorted(draw.sample(range(-9, 30), 2))
    left, right = draw.choice("(["), draw.choice(")]")
    signs = {"(": "<", "[": r"\le", ")": "<", "]": r"\le"}
    ways = [f"{left}{low},{high}{right}", rf"\left{left}{low}, {high}\right{right}",
            f"$x \\in {left}{low}, {high}{right}$", f"{low} {signs[left]} x {signs[right]} {high}"]  # fmt: skip
    other = {"(": "[", "[": "(", ")": "]", "]": ")"}
    misses = [f"{other[left]}{low},{high}{right}", f"{left}{low},{high}{other[right]}",
              f"{left}{low},{high + 1}{right}", f"{{{low},{high}}}"]  # fmt: skip
    return ways, misses


def roots(draw: random.Random) -> Renderings:
    values = draw.sample(range(-20, 20), 3)
    orders = list(permutations(values))
    ways = [", ".join(map(str, order)) for order in orders] + [rf"\{{{', '.join(map(str, values))}\}}"]
    ways += [" or ".join(f"x = {value}" for value in values), "x = {}, {} and {}".format(*values)]
    return ways, [str(values[0]), ", ".join(map(str, values[:2])), ", ".join(map(str, [*values[:2], 99])),
                  ", ".join(map(str, [*values, 99]))]  # fmt: skip


def complex_number(draw: random.Random) -> Renderings:
    a, b = draw.sample(range(2, 30), 2)
    return [f"{a}+{b}i", f"{b}i+{a}", f"{a} + {b} i", rf"\boxed{{{a}+{b}i}}"], [
        f"{a}-{b}i",
        f"{b}+{a}i",
        f"-{a}+{b}i",
        f"({a},{b})",
        f"{a}+{b}",
    ]


def length(draw: random.Random) -> Renderings:
    value = draw.randrange(2, 400)
    ways = [
        f"{value} m",
        f"{value * 100} cm",
        f"{value} meters",
        rf"{value}\text{{ m}}",
        rf"{value * 1000}\,\mathrm{{mm}}",
    ]
    return ways, [f"{value} cm", f"{value} kg", f"{value * 10} cm", f"{value} square meters", f"{value + 1} m"]


KINDS: dict[str, Callable[[random.Random], Renderings]] = {
    kind.__name__: kind for kind in (rational, money, thousands, scientific, interval, roots, complex_number, length)
}


def pairs(kind: str, *, count: int) -> Iterator[tuple[str, list[str], list[str]]]:
    draw = random.Random(kind)
    for _ in range(count):
        ways, misses = KINDS[kind](draw)
        for answer in ways:
            yield answer, ways, misses


@pytest.mark.parametrize("kind", KINDS)
def test_each_rendering_is_accepted_for_each_other_and_no_near_miss_is(kind: str) -> None:
    for answer, ways, misses in pairs(kind, count=3):
        assert {way for way in ways if math.check(f"The answer is {way}.", answer) != "right"} == set(), answer
        assert {miss for miss in misses if math.check(f"The answer is {miss}.", answer) == "right"} == set(), answer


@pytest.mark.parametrize("kind", ["rational", "money", "thousands", "scientific"])
def test_renderings_of_a_number_are_one_number(kind: str) -> None:
    for answer, ways, misses in pairs(kind, count=5):
        assert {way for way in ways if number.check(f"The answer is {way}.", answer) != "right"} == set(), answer
        assert {miss for miss in misses if number.check(f"The answer is {miss}.", answer) == "right"} == set(), answer


FRAMES = (
    "{}", "The answer is {}.", "Answer: {}", r"\boxed{{{}}}", r"So we get $\boxed{{{}}}$.", "#### {}",
    "<answer>{}</answer>",
    "<think>Is it 77? It is 77.</think>\n\n{}",
    "First I thought 77.\n\nWait, no.\n\nThe answer is {}.", "**Final answer:** **{}**",
    "The answer is 77. Sorry, that is wrong. The answer is {}.",
    r"\boxed{{77}} is what one may think. It is \boxed{{{}}}.",
)  # fmt: skip
"""Responses whose answer is what stands in the braces."""

SPOILT = (
    "<think>{}</think>", "<think>The answer is {}.", "The answer is {}, or maybe 77.", "{} or 77",
    "The answer is not {}.",
    r"\boxed{{{}}}. Wait, that is wrong. \boxed{{77}}", "<answer>77</answer> {}", "The answer is {}. No, it is 77.",
    "<reasoning>Answer: {}</reasoning>", "77, {}, 78",
)  # fmt: skip
"""Responses that mention it, and answer something else or nothing."""


@pytest.mark.parametrize("answer", ["12", "3/4", "-5", "1200", "0.25"])
@pytest.mark.parametrize("check", [math.check, number.check], ids=["math", "number"])
def test_an_answer_counts_where_it_is_the_answer_and_nowhere_else(
    check: Callable[[str, str], str], answer: str
) -> None:
    assert {frame for frame in FRAMES if check(frame.format(answer), answer) != "right"} == set()
    assert {frame for frame in SPOILT if check(frame.format(answer), answer) == "right"} == set()

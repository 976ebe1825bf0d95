r"""What a reward pays for: right and wrong responses, and responses that answer nothing.

    kleash check math
    kleash check rewards:f --data rows.jsonl
    python -m kleash.checks.reward_behaviour      # the table of docs/rewards.md

A verifier is measured on the labelled responses that kleash brings. On the user's rows a right response is one that
they call right (`label` or `correct`, or a `score` of 1), or else their answer, written in three ways; a wrong one is
called wrong, or is another row's answer. Then come responses that answer nothing: empty, a copy of the prompt,
"Answer:", keywords, every choice, a number of the prompt. What one of them earns on as many rows as a right response
earns is what a policy will learn to write (F15).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from kleash.checks.check import Check, answer
from kleash.data.formats import read_groups
from kleash.data.group import Group, Response, Scores
from kleash.data.row_format import AS_IT_IS, RowFormat
from kleash.data.unpaired import VALUES
from kleash.errors import DataError
from kleash.evals.intervals import below, wilson
from kleash.io import Json
from kleash.models.compute import Compute
from kleash.rewards.build import build_reward
from kleash.rewards.labelled_pairs import Pair, pairs
from kleash.rewards.reward import Reward, RowCheck
from kleash.rewards.verifier import VerifierReward
from kleash.rewards.verifiers import ANSWER_COLUMNS, verifiers
from kleash.rewards.verifiers.choice import OPTIONS
from kleash.rewards.verifiers.math import answer_text

MOST_MISTAKEN = 0.05
"""Largest share of rows on which a reward may be mistaken, or may pay as much for a response that answers nothing."""

MOST_REFUSED = 0.03
"""Largest share of right responses of the labelled set that a verifier may refuse; it accepts no wrong one."""

TRUTH = ("label", "correct", "is_correct")
"""Columns that say whether a response is right: true or false, 1 or 0, or a word."""

_WORDS = VALUES | {"right": True, "correct": True, "yes": True, "good": True,
                   "wrong": False, "incorrect": False, "no": False, "bad": False}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A response to a row."""

    group: Group
    text: str
    row: int


# --- the labelled set ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KindResult:
    """A verifier on the pairs of one kind."""

    kind: str
    right: int
    """Right responses."""
    wrong: int
    """Wrong responses."""
    false_positives: int = 0
    """Wrong responses that score as right."""
    false_negatives: int = 0
    """Right responses that do not."""
    mistakes: tuple[str, ...] = ()
    """The responses that are judged wrongly."""


def on_labelled(verifier: str) -> list[KindResult]:
    """A verifier on each kind of the labelled pairs."""
    reward = VerifierReward(verifiers()[verifier])
    results: dict[str, KindResult] = {}
    for pair in pairs(verifier):
        before = results.get(pair.kind, KindResult(pair.kind, 0, 0))
        results[pair.kind] = _with(before, pair, _scores_right(reward, pair))
    return list(results.values())


def _scores_right(reward: VerifierReward, pair: Pair) -> bool:
    response = Response(pair.response)
    return reward.outcome(Group("", (response,), None, pair.columns), response) == "right"


def _with(result: KindResult, pair: Pair, scored_right: bool) -> KindResult:
    mistake = scored_right != pair.right
    return replace(
        result,
        right=result.right + pair.right,
        wrong=result.wrong + (not pair.right),
        false_positives=result.false_positives + (mistake and not pair.right),
        false_negatives=result.false_negatives + (mistake and pair.right),
        mistakes=(*result.mistakes, pair.response[:80]) if mistake else result.mistakes,
    )


def labelled_checks(verifier: str) -> list[Check]:
    """The checks of a verifier on the labelled pairs."""
    kinds = on_labelled(verifier)
    figures = [{"kind": kind.kind, "right": kind.right, "wrong": kind.wrong, "false_positives": kind.false_positives,
                "false_negatives": kind.false_negatives, "mistakes": kind.mistakes} for kind in kinds]  # fmt: skip
    checks = []
    for name, hits, of, most in (
        ("false positives", sum(kind.false_positives for kind in kinds), sum(kind.wrong for kind in kinds), 0.0),
        (
            "false negatives",
            sum(kind.false_negatives for kind in kinds),
            sum(kind.right for kind in kinds),
            MOST_REFUSED,
        ),
    ):
        truth, scored = ("wrong", "as right") if name == "false positives" else ("right", "as wrong")
        finding = f"{_share(hits, of)} {truth} responses of {len(kinds)} kinds score {scored}"
        advice = "change the verifier, and measure it again here"
        low, high = wilson(hits, of)
        shares = {"hits": hits, "of": of, "low": low, "high": high, "kinds": figures}
        checks.append(answer(f"{name} (labelled set)", hits <= most * of, finding, advice, **shares))
    return checks


def table() -> str:
    """The table of docs/rewards.md: each kind with the pairs, false positives and false negatives of each verifier."""
    lines = ["| verifier | kind | right | wrong | false positives | false negatives |", "|---|---|---|---|---|---|"]
    for name in verifiers():
        kinds = on_labelled(name)
        lines += [_line(name, kind) for kind in kinds]
        if kinds:
            total = KindResult("**all**", *(sum(column) for column in zip(*map(_counts, kinds), strict=True)))
            lines.append(_line(name, total))
    return "\n".join(lines)


def _counts(kind: KindResult) -> tuple[int, int, int, int]:
    return kind.right, kind.wrong, kind.false_positives, kind.false_negatives


def _line(verifier: str, kind: KindResult) -> str:
    counts = " | ".join(map(str, _counts(kind)))
    return f"| `{verifier}` | {kind.kind} | {counts} |"


# --- the user's rows -------------------------------------------------------------------------------------------------


def reward_checks_of(
    name: str,
    *,
    data: str | None = None,
    rows: int = 128,
    device: str = "auto",
    row_format: RowFormat = AS_IT_IS,
) -> list[Check]:
    """The checks of a reward by its name: on the labelled pairs for a verifier, and on rows.

    Raises:
        DataError: there are no rows for a reward that is not a verifier, or they show neither right responses nor
            answers.
    """
    reward = build_reward(name, compute=Compute(device))
    checks = labelled_checks(name) if name in verifiers() else []
    if data is not None:
        checks += row_checks(reward, list(islice(read_groups(data, row_format=row_format), rows)))
    if not checks:
        raise DataError(
            f"{name}: kleash has labelled responses for verifiers only; give --data with rows that have 'answer', or "
            "'response' and 'correct'"
        )
    return checks


def shows_what_is_right(groups: Sequence[Group]) -> bool:
    """Whether rows have answers, or responses that a column calls right or wrong."""
    return any(_answers(group) or any(label is not None for label in _labels(group)) for group in groups)


def row_checks(reward: Reward, groups: Sequence[Group]) -> list[Check]:
    """The checks of a reward on rows.

    Args:
        reward: any.
        groups: rows with an answer, or with responses that a column calls right or wrong.

    Raises:
        DataError: no row shows what is right.
    """
    prompts = [Group(group.prompt, columns=group.columns) for group in groups]
    RowCheck(reward)(prompts, range(1, len(prompts) + 1), "the rows")
    right, wrong, ways = _truth(groups)
    if not right:
        raise DataError(
            "no row shows what is right: rows need 'answer' (or --columns answer=COLUMN), or 'response' with 'correct' "
            f"({', '.join(TRUTH)}, score)"
        )
    right_scores, wrong_scores = _score(reward, right), _score(reward, wrong)
    best = _best_by_row(right, right_scores)
    checks = [
        *_mistakes(right, right_scores, wrong, wrong_scores, best, ways),
        *(
            _pays(name, reward, items, best)
            for name, text in DEGENERATE.items()
            if (
                items := [item for row, group in enumerate(prompts) if row in best for item in _items(text, group, row)]
            )
        ),
    ]
    return checks


def _truth(groups: Sequence[Group]) -> tuple[list[Item], list[Item], bool]:
    """Right and wrong responses, and whether several right ones of a row are ways to write its answer."""
    right: list[Item] = []
    wrong: list[Item] = []
    for row, group in enumerate(groups):
        bare = Group(group.prompt, columns=group.columns)
        for response, label in zip(group.responses, _labels(group), strict=True):
            if label is not None:
                (right if label else wrong).append(Item(bare, response.text, row))
    if right or wrong:
        return right, wrong, False
    answers = [(row, Group(group.prompt, columns=group.columns), _answers(group)) for row, group in enumerate(groups)]
    answers = [item for item in answers if item[2]]
    for place, (row, group, accepted) in enumerate(answers):
        right += [Item(group, text, row) for text in _written(accepted[0])]
        others = [
            other[2][0] for other in (*answers[place + 1 :], *answers[:place]) if not set(other[2]) & set(accepted)
        ]
        wrong += [Item(group, text, row) for text in _written(others[0])] if others else []
    return right, wrong, True


def _labels(group: Group) -> list[bool | None]:
    """Whether each response of a row is right; None where the row does not say."""
    count = len(group.responses)
    if isinstance(group.label, Scores) and set(group.label.values) <= {0.0, 1.0}:
        return [value == 1.0 for value in group.label.values]
    value = next((group.columns[name] for name in TRUTH if group.columns.get(name) is not None), None)
    values = value if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise DataError(f"a row has {count} responses and {len(values)} labels; give one for each")
    return [_label(value) for value in values]


def _label(value: Any) -> bool | None:
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    return _WORDS.get(str(value).strip().lower())


def _answers(group: Group) -> list[str]:
    """The accepted answers of a row, as text; a number beside options as its letter."""
    value = next(
        (group.columns[name] for name in ("answer", *ANSWER_COLUMNS) if group.columns.get(name) is not None), None
    )
    values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    if any(group.columns.get(name) for name in OPTIONS):
        return [chr(ord("A") + item) if isinstance(item, int) and 0 <= item < 26 else str(item) for item in values]
    return [answer_text(str(item)) for item in values]


def _written(text: str) -> list[str]:
    return [text, f"The answer is {text}.", rf"\boxed{{{text}}}"]


def _score(reward: Reward, items: Sequence[Item]) -> list[float]:
    """The score of each; a response of which the reward has no opinion gets none (NaN)."""
    if not items:
        return []
    groups = [replace(item.group, responses=(Response(item.text),)) for item in items]
    return [float(score) for score in reward(groups)[:, 0]]


def _best_by_row(items: Sequence[Item], scores: Sequence[float]) -> dict[int, float]:
    """The best score of a right response of each row."""
    best: dict[int, float] = {}
    for item, score in zip(items, scores, strict=True):
        if score == score:
            best[item.row] = max(score, best.get(item.row, score))
    return best


def _mistakes(
    right: Sequence[Item],
    right_scores: Sequence[float],
    wrong: Sequence[Item],
    wrong_scores: Sequence[float],
    best: dict[int, float],
    ways: bool,
) -> list[Check]:
    """False positives and negatives. A reward of two values calls the higher one right; of another one the highest
    score of a row's right responses has to be above each wrong one.
    """
    values = {score for score in (*right_scores, *wrong_scores) if score == score}
    if len(values) > 2 or not wrong:
        hits = [score >= best[item.row] for item, score in zip(wrong, wrong_scores, strict=True) if item.row in best]
        name, what = "right above wrong", "wrong responses earn at least what a right one to the same prompt earns"
        return [_verdict(name, sum(hits), len(hits), what)] if hits else []
    high = max(values)
    one_value = len(values) == 1
    accepted = [score == high and not one_value for score in wrong_scores]
    rows = best.values() if ways else right_scores
    refused = [score != high for score in rows]
    if one_value:
        accepted, refused = [True] * len(wrong), []
    checks = [_verdict("false positives", sum(accepted), len(accepted), "wrong responses score as right")]
    what = "answers score as wrong, however they are written" if ways else "right responses score as wrong"
    return [*checks, _verdict("false negatives", sum(refused), len(refused), what)] if refused else checks


# --- responses that answer nothing -----------------------------------------------------------------------------------


def _options(group: Group) -> list[str]:
    value = next((group.columns[name] for name in OPTIONS if group.columns.get(name)), None)
    if isinstance(value, dict):
        value = value.get("text") or list(value.values())
    return [str(option) for option in value] if isinstance(value, (list, tuple)) else []


def _every_choice(group: Group) -> str | None:
    options = _options(group)
    letters = [chr(ord("A") + place) for place in range(len(options))]
    return "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)) or None


def _prompt_number(group: Group) -> str | None:
    """The first number of the prompt that does not occur in the answer."""
    answers = " ".join(_answers(group))
    numbers = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])", group.prompt_text)
    number = next((number for number in numbers if number not in answers), None)
    return None if number is None else rf"\boxed{{{number}}}"


def _keywords(group: Group) -> str:
    words = " ".join(dict.fromkeys(re.findall(r"[A-Za-z]{4,}", group.prompt_text)))[:400]
    steps = "First, let us think step by step. Therefore, in conclusion, the final answer is correct and verified."
    return f"{words}. {steps} {words}. <think></think> <answer></answer> \\boxed{{}} #### Answer:"


DEGENERATE: dict[str, Callable[[Group], str | None]] = {
    "empty": lambda group: "",
    "a copy of the prompt": lambda group: group.prompt_text or None,
    "keywords": _keywords,
    '"Answer:" and nothing': lambda group: "Answer:",
    "every choice": _every_choice,
    "a number of the prompt, boxed": _prompt_number,
    "the numbers 0 to 100": lambda group: ", ".join(map(str, range(101))),
}
"""Responses that answer nothing; None where a row has nothing to make one of."""


def _items(make: Callable[[Group], str | None], group: Group, row: int) -> Iterable[Item]:
    text = make(group)
    return [] if text is None else [Item(group, text, row)]


def _pays(name: str, reward: Reward, items: Sequence[Item], best: dict[int, float]) -> Check:
    scores = _score(reward, items)
    pairs_of_scores = [(score, best[item.row]) for item, score in zip(items, scores, strict=True) if score == score]
    if not pairs_of_scores:
        return answer(f"below a right one: {name}", True, "the reward has no opinion of it")
    hits = sum(score >= right for score, right in pairs_of_scores)
    count = len(pairs_of_scores)
    mean, honest = (sum(side) / count for side in zip(*pairs_of_scores, strict=True))
    what = f"rows pay it what a right response earns ({mean:.3g} in the mean, a right one {honest:.3g})"
    return _verdict(f"below a right one: {name}", hits, count, what, mean=mean, right=honest)


def _verdict(name: str, hits: int, of: int, what: str, **figures: float) -> Check:
    low, high = wilson(hits, of)
    passed = below((low, high), MOST_MISTAKEN)
    advice = "a policy will find this: correct the reward, or add a part that refuses it" if passed is False else ""
    values: Json = {"hits": hits, "of": of, "low": low, "high": high, **figures}
    return answer(name, passed, f"{_share(hits, of)} {what}", advice, **values)


def _share(hits: int, of: int) -> str:
    low, high = wilson(hits, of)
    return f"{hits} of {of} ({hits / of:.1%}, 95 % interval {low:.1%} to {high:.1%})"


if __name__ == "__main__":
    print(table())

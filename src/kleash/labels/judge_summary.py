"""The report of `kleash judge`: its pairs, failures, and figures of the labels; and the labels as rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from kleash.chat.client import Usage
from kleash.data.group import Group, Preference, chosen_first, prompt_key
from kleash.evals.intervals import number_prompts
from kleash.evals.judging import InjectionReport, JudgeReport, PrincipleReport, judge_report, principle_report
from kleash.labels.llm_judge import Judge, Judgement
from kleash.run import derive_seed


@dataclass(frozen=True)
class Failures:
    """Pairs without a label."""

    pairs: int
    """Pairs in all."""
    unparsable: int
    """The judge replied, but no choice can be read from the reply."""
    error: int
    """No reply came."""
    reasons: list[str]
    """The first five different ones."""


@dataclass(frozen=True)
class JudgeSummary:
    """The results of `kleash judge`, as written to its summary file."""

    judge: str
    """Name of the labeller."""
    answers: str
    """`logprobs` or `votes`: where the probabilities come from."""
    pairs: int
    """Pairs compared."""
    failures: Failures
    cut: int
    """Pairs with a text that was shortened for the judge."""
    report: JudgeReport | None
    """Figures of the labels; None where no pair has one."""
    principles: dict[str, PrincipleReport]
    """By name."""
    injections: InjectionReport | None
    """None where none were tried."""
    usage: Usage
    mixed_in: int
    """Rows of `mix_in`."""

    def to_json(self) -> dict[str, object]:
        """The results as a JSON object; the figures of the labels are top-level keys too."""
        figures: dict[str, object] = {"labels": 0}
        if self.report is not None:
            principles = {name: report.to_json() for name, report in self.principles.items()}
            figures = asdict(self.report) | {"principles": principles}
        return {
            "judge": self.judge,
            "answers": self.answers,
            "pairs": self.pairs,
            "failures": asdict(self.failures),
            "cut": self.cut,
            **figures,
            "injections": None if self.injections is None else self.injections.to_json(),
            "usage": asdict(self.usage),
            "mixed_in": self.mixed_in,
        }


def failures_of(judgements: Sequence[Judgement]) -> Failures:
    """The judgements without a label."""
    results = [judgement.result for judgement in judgements if judgement.orders is None]
    outcomes = Counter(result.outcome for result in results)
    reasons = list(dict.fromkeys(f"{result.outcome}: {result.reason}" for result in results))
    return Failures(len(judgements), outcomes["unparsable"], outcomes["error"], reasons[:5])


def summarise(
    judge: Judge,
    groups: Sequence[Group],
    judgements: Sequence[Judgement],
    *,
    injections: InjectionReport | None,
    mixed_in: int,
) -> JudgeSummary:
    """Measure the labels of a judge.

    Args:
        judge: that compared the pairs.
        groups, judgements: the pairs, with a preference by people where there is one, and the judge's labels.
        injections: see `prompt_injection.probe`.
        mixed_in: rows of `mix_in`.
    """
    labelled = [
        (group, judgement.result.probability, judgement.orders, judgement)
        for group, judgement in zip(groups, judgements, strict=True)
        if judgement.orders is not None
    ]
    people = np.array([_people_probability(group) for group, *_ in labelled], dtype=np.float64)
    longer = [len(group.responses[0].text) - len(group.responses[1].text) for group, *_ in labelled]
    prompts = number_prompts([prompt_key(group.prompt) for group, *_ in labelled])
    report = None
    if labelled:
        report = judge_report(
            np.array([(orders.original, orders.swapped) for _, _, orders, _ in labelled], dtype=np.float64),
            np.array([probability for _, probability, _, _ in labelled], dtype=np.float64),
            people,
            np.array(longer, dtype=np.float64),
            np.array([derive_seed(judge.seed, "coin", row) % 2 == 1 for row in range(len(labelled))]),
            consistency=np.array([judgement.consistency for *_, judgement in labelled], dtype=np.float64),
            prompts=prompts,
        )
    weights = {principle.name: principle.weight for principle in judge.constitution.principles}
    return JudgeSummary(
        judge=judge.name,
        answers=judge.answers,
        pairs=len(groups),
        failures=failures_of(judgements),
        cut=sum(_is_cut(group, judge.max_characters) for group in groups),
        report=report,
        principles=principle_report([row.principles for *_, row in labelled], people, weights, prompts),
        injections=injections,
        usage=judge.client.usage,
        mixed_in=mixed_in,
    )


def labelled_groups(groups: Sequence[Group], judgements: Sequence[Judgement]) -> Iterator[Group]:
    """Pairs with the judge's label, the more probably better response first.

    Columns hold the answers behind the label; `human_probability` is the row's preference by people.
    """
    for group, judgement in zip(groups, judgements, strict=True):
        result = judgement.result
        if result.probability is None:
            continue
        swapped = result.probability < 0.5
        columns = {**group.columns, "principle": result.principle, "order_effect": result.order_effect}
        if len(judgement.principles) > 1:
            columns["principles"] = {name: _of_first(p, swapped) for name, p in judgement.principles.items()}
        if isinstance(group.label, Preference):
            columns["human_probability"] = _of_first(group.label.probability, swapped)
        label = Preference(result.probability, result.labeller)
        yield chosen_first(Group(group.prompt, group.responses, label, columns))


def _of_first(p: float, swapped: bool) -> float:
    """P(response 0 ≻ response 1) of the row as it is written."""
    return 1 - p if swapped else p


def _people_probability(group: Group) -> float:
    return group.label.probability if isinstance(group.label, Preference) else np.nan


def _is_cut(group: Group, limit: int | None) -> bool:
    texts = (group.prompt_text, *(response.text for response in group.responses))
    return limit is not None and max(map(len, texts)) > limit

"""An analysis as sentences with its figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kleash.evals.overoptimization.analysis import EARLY, Analysis
from kleash.evals.overoptimization.curve import point_name
from kleash.evals.overoptimization.law import LEVEL, LawFit
from kleash.evals.report_values import Estimate, PairedMean

ONE_TEXT = 0.5
"""Share of identical responses to different prompts above which `caution` warns about gold."""


def in_words(analysis: Analysis) -> dict[str, str]:
    """An analysis as sentences with its figures: `peak_test`, `recommended` and `law`."""
    best = point_name(analysis.source, analysis.peak.point)
    return {
        "peak_test": _peak_test_in_words(analysis, best),
        "recommended": _recommended_in_words(analysis),
        "law": _law_in_words(analysis, best),
    }


def caution(responses: Sequence[str], start: Sequence[str], point: str) -> str | None:
    """A warning where gold is high at a point at which most responses are identical.

    A gold reward that shares the proxy's errors (a reward model of the same base, say) rises with it to the end.

    Args:
        responses: all at the recommended point, of different prompts.
        start: all at the start.
        point: its name.
    """
    (text, count), (_, before) = (Counter(texts).most_common(1)[0] for texts in (responses, start))
    share = count / len(responses)
    if share <= ONE_TEXT or share <= 2 * before / len(start):
        return None
    example = f"“{text[:60]}”" if text.strip() else "empty"
    return (
        f"Warning: {share:.0%} of the responses at {point} are identical ({example}), and the gold reward scores them "
        "highly. It probably shares the proxy's error; use another or human labels."
    )


def _peak_test_in_words(analysis: Analysis, best: str) -> str:
    peak, test, points = analysis.peak, analysis.peak_test, analysis.points
    top, end = points[peak.index], points[-1]
    where = (
        f"{best} (√KL {_number(top.distance.value)}, gold {top.gold.mean:.2f}; best in {peak.share:.0%} of resamples)"
    )
    fall, gain = _between(test.gold_fell), _between(test.gold_gained)
    if test.outcome == "turned":
        proxy = " while the proxy rose" if test.proxy_rose.low > 0 else ", and the proxy moved"
        last = point_name(analysis.source, end.point)
        return f"Gold turned: best at {where}, it lies {fall} lower at {last}{proxy} by {_between(test.proxy_rose)}."
    if test.outcome == "not yet":
        return f"Gold has not turned: it is best at the end, at {where}, {gain} above the start."
    if top is end:
        return (
            f"The data cannot tell whether gold moved at all: it looks best at the end, at {where}, {gain} above the "
            "start."
        )
    return (
        f"The data cannot tell whether gold has turned: it looks best at {where}, and its loss up to "
        f"{point_name(analysis.source, end.point)} is {fall}."
    )


def _recommended_in_words(analysis: Analysis) -> str:
    choice = analysis.recommended
    near = "" if choice.index == analysis.peak.index else ", the nearest within one standard error of the best"
    distance = _number(analysis.points[choice.index].distance.value)
    name, gold = point_name(analysis.source, choice.point), _between(choice.gold)
    return f"Recommended: {name}{near}, gold {gold} at √KL {distance}."


def _law_in_words(analysis: Analysis, best: str) -> str:
    law, early = analysis.fit, analysis.early_fit
    if law is None:
        return "The law cannot be fitted: fewer than three points lie beyond the start."
    sentences = [_peak_of_law(law, best, max(row.distance.value or 0.0 for row in analysis.points))]
    if law.p_value is not None and law.p_value < 1 - LEVEL:
        sentences.append(f"The curve departs from the law by more than noise (by up to {law.largest_miss:.2f} gold)")
    if early is not None and early.cost_of_following_law is not None and analysis.peak_test.outcome == "turned":
        place = f"it has a peak in {early.turns:.0%} of resamples"
        if early.turns >= LEVEL:
            place = f"it puts the peak at √KL {_number(early.peak_distance.value)}"
        lost = _between(early.cost_of_following_law.lost)
        sentences.append(
            f"Fitted only to the first {EARLY:.0%} of the way {place}; following that would lose {lost} gold"
        )
    return ". ".join(sentences) + "."


def _peak_of_law(law: LawFit, best: str, furthest: float) -> str:
    peak = law.peak_distance
    if law.turns < LEVEL:
        return f"The law cannot tell: it has a peak in only {law.turns:.0%} of the resamples"
    if peak.high is None or peak.high > furthest:
        return (
            f"The law puts the peak at √KL {_within(peak)}, which reaches beyond the furthest point measured, "
            f"{furthest:.2f}: it cannot tell"
        )
    assert law.cost_of_following_law is not None
    lost = _between(law.cost_of_following_law.lost)
    return f"The law puts the peak at √KL {_within(peak)}; gold of {best} less gold there is {lost}"


def _between(figure: PairedMean) -> str:
    return f"{figure.mean:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def _within(estimate: Estimate) -> str:
    return f"{_number(estimate.value)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0e}"

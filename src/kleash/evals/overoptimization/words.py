"""An analysis in plain words with its figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kleash.evals.overoptimization.analysis import EARLY
from kleash.evals.overoptimization.curve import point_name
from kleash.evals.overoptimization.law import LEVEL, Figures

ONE_TEXT = 0.5
"""Share of responses to different prompts that may be one text before gold is doubted."""


def in_words(analysis: Figures) -> dict[str, str]:
    """What an analysis says, in plain words with its figures: `peak_test`, `recommended` and `law`."""
    points, peak, peak_test, recommended = (analysis[key] for key in ("points", "peak", "peak_test", "recommended"))
    best, end, choice = points[peak["index"]], points[-1], points[recommended["index"]]

    def name(row: Figures) -> str:
        return point_name(analysis["source"], row["point"])

    def change(figures: Figures) -> str:
        return f"{figures['mean']:.2f} [{figures['low']:.2f}, {figures['high']:.2f}]"

    where = (
        f"{name(best)} (√KL {best['distance']['value']:.2f}, gold {best['gold']['mean']:.2f}; best in "
        f"{peak['share']:.0%} of resamples)"
    )
    rise = peak_test["proxy_rose"]
    proxy = " while the proxy rose" if rise["low"] > 0 else ", and the proxy moved"
    fall, gain = change(peak_test["gold_fell"]), change(peak_test["gold_gained"])
    sentence = {
        "turned": f"Gold turned: best at {where}, it lies {fall} lower at {name(end)}{proxy} by {change(rise)}.",
        "not yet": f"Gold has not turned: it is best at the end, at {where}, {gain} above the start.",
        "cannot tell": f"The data cannot tell whether gold has turned: it looks best at {where}, and what it lost up "
        f"to {name(end)} is {fall}.",
    }[peak_test["outcome"]]
    if peak_test["outcome"] == "cannot tell" and best is end:
        sentence = (
            f"The data cannot tell whether gold moved at all: it looks best at the end, at {where}, {gain} above the "
            "start."
        )
    near = "" if recommended["index"] == peak["index"] else ", the nearest within one standard error of the best"
    distance = points[recommended["index"]]["distance"]["value"]
    return {
        "peak_test": sentence,
        "recommended": f"Recommended: {name(choice)}{near}, gold {change(recommended['gold'])} at √KL {distance:.2f}.",
        "law": _law_in_words(analysis, name(best)),
    }


def caution(responses: Sequence[str], start: Sequence[str], point: str) -> str | None:
    """What speaks against a gold that likes a point, as anyone sees who reads it: most responses are one text.

    A gold reward that shares the proxy's mistakes (a reward model of the same base, say) rises with it to the end.

    Args:
        responses: all at the point to ship, of different prompts.
        start: all at the start.
        point: its name.
    """
    (text, count), (_, before) = (Counter(texts).most_common(1)[0] for texts in (responses, start))
    share = count / len(responses)
    if share <= ONE_TEXT or share <= 2 * before / len(start):
        return None
    told = f"“{text[:60]}”" if text.strip() else "empty"
    return (
        f"Do not believe it: at {point} {share:.0%} of the responses are {told}. A gold reward that is pleased with "
        "that has the mistakes of the proxy; take another one, or ask people."
    )


def _law_in_words(analysis: Figures, best: str) -> str:
    fitted = analysis["fit"]
    if fitted is None:
        return "The law cannot be fitted: fewer than three points lie beyond the start."
    peak, furthest = fitted["peak_distance"], max(row["distance"]["value"] for row in analysis["points"])
    if fitted["turns"] < LEVEL:
        said = f"The law cannot tell: it has a peak in {fitted['turns']:.0%} of the resamples only"
    elif peak["high"] is None or peak["high"] > furthest:
        said = (
            f"The law puts the peak at √KL {_number(peak['value'])} [{_number(peak['low'])}, {_number(peak['high'])}], "
            f"which reaches beyond the furthest point measured, {furthest:.2f}: it cannot tell"
        )
    else:
        lost = fitted["cost_of_following_law"]["lost"]
        said = (
            f"The law puts the peak at √KL {peak['value']:.2f} [{peak['low']:.2f}, {peak['high']:.2f}]; gold of {best} "
            f"less gold there is {lost['mean']:.2f} [{lost['low']:.2f}, {lost['high']:.2f}]"
        )
    if fitted["p_value"] is not None and fitted["p_value"] < 1 - LEVEL:
        said += f". The curve departs from the law by more than noise (by up to {fitted['largest_miss']:.2f} gold)"
    early = analysis["early_fit"]
    if early is not None and analysis["peak_test"]["outcome"] == "turned":
        lost, at = early["cost_of_following_law"]["lost"], _number(early["peak_distance"]["value"])
        said += f". Fitted to the first {EARLY:.0%} of the way alone it "
        said += (
            f"puts it at √KL {at}" if early["turns"] >= LEVEL else f"has a peak in {early['turns']:.0%} of resamples"
        )
        said += f"; trusting that would lose {lost['mean']:.2f} [{lost['low']:.2f}, {lost['high']:.2f}] gold"
    return said + "."


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0e}"

"""Checks of a reward model: its report in, checks out. Pure functions; thresholds are constants with their reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kleash.checks.check import LOOK, Check, answer
from kleash.checks.sample_stats import ExcessNLL
from kleash.evals.intervals import above, below
from kleash.evals.preference_report import PreferenceReport, ReliabilityBin
from kleash.evals.probes import ProbeResult
from kleash.training.after_training import Skipped

LENGTH_ALONE = 0.15
"""Share of pairs on which the model and length disagree; below it, the model has learned only length. It is 0.06 to
0.11 where labels follow only length, 0.3 to 0.5 where they do not."""

WIDE = 0.2
"""Widest useful interval of accuracy: about 85 pairs at an accuracy of 0.7."""

FOREIGN = 0.1
"""Excess negative log-likelihood, in nats a token, from which responses are not the model's own. Rounding and a drop in
temperature to 0.95 stay below."""

PARENT = 0.25
"""Share of that excess that remains under the model that the responses were sampled from."""


@dataclass(frozen=True)
class OnPolicyExcess:
    """Excess negative log-likelihood of a reward model's training responses."""

    model: ExcessNLL
    """Under the model whose samples will be scored."""
    parent: ExcessNLL | None = None
    """Under that model's parent, where it exists."""
    parent_path: str = ""


def reward_model(
    report: PreferenceReport,
    *,
    probes: Sequence[ProbeResult] | Skipped | None = None,
    on_policy: OnPolicyExcess | Skipped | None = None,
) -> list[Check]:
    """The checks of a reward model.

    Args:
        report: on held-out pairs.
        probes: its scores of degraded responses; None: not measured.
        on_policy: whether the training responses are the policy's samples; None: not measured.
    """
    checks = [_accurate(report), _scores_vary(report), beyond_length(report), _calibrated(report), _enough(report)]
    if isinstance(probes, Skipped):
        checks.append(answer("words beat silence", None, f"not measured: {probes.skipped}"))
    elif probes:
        checks += [_words_beat_silence(probes), _not_fooled(probes)]
    if isinstance(on_policy, Skipped):
        return [*checks, answer("about the policy's samples", None, f"not measured: {on_policy.skipped}")]
    return checks if on_policy is None else [*checks, on_policy_check(on_policy)]


def on_policy_check(on_policy: OnPolicyExcess) -> Check:
    """Do the training responses resemble those that will be scored?

    A large excess is normal for answers by people or other models, so by itself it does not fail the check. But where
    the parent explains the responses and the model does not, they were sampled before SFT, and the labels are about
    another model.
    """
    nats, parent = on_policy.model.nats, on_policy.parent
    figures = {"excess_nll": nats, "se": on_policy.model.se, "parent": parent and parent.nats}
    finding = f"training responses surprise the model by {nats:+.2f} nats a token more than its own samples would"
    error = 2 * on_policy.model.se
    passed: bool | None = abs(nats) + error <= FOREIGN
    advice = ""
    if parent is not None and not passed and abs(parent.nats) + 2 * parent.se < PARENT * (nats - error):
        passed = False
        finding += f", and {on_policy.parent_path}, which it was made from, by {parent.nats:+.2f}: they are its samples"
        advice = "sample the responses to be compared from the model of --model (`kleash generate`) and label those"
    elif abs(nats) - error <= FOREIGN and not passed:
        passed, advice = None, "more training rows would tell whether they are its own samples"
        finding += f" ± {error:.2f}, which does not tell whether they are its samples"
    elif not passed:
        passed = None
        finding += ": they are not its samples" if nats > 0 else ": they were drawn at a lower temperature, or chosen"
        advice = "its samples may lie outside the reward model's range; label some of them, if you can"
    return answer("about the policy's samples", passed, finding, advice, **figures)


def _words_beat_silence(probes: Sequence[ProbeResult]) -> Check:
    """Does the empty response score below the better one of a pair? Otherwise a policy learns to say nothing."""
    empty = next(probe for probe in probes if probe.name == "empty")
    passed = below((empty.low, empty.high), 0.5)
    few = "too few pairs to tell whether " if passed is None else ""
    return answer(
        "words beat silence",
        passed,
        f"the empty response scores above the better one in {empty.above:.0%} of {empty.pairs} pairs",
        f"{few}a policy trained against this model ends up saying nothing: add comparisons that an empty or cut-off "
        "response loses, or gate the reward on what has to be there (docs/rewards.md)",
        above=empty.above,
        low=empty.low,
        high=empty.high,
        pairs=empty.pairs,
    )


def _not_fooled(probes: Sequence[ProbeResult]) -> Check:
    """Which other probes score above the responses that they were made of? A policy need not find them."""
    preferred = [probe for probe in probes if probe.low > 0.5 and probe.name != "empty"]
    names = ", ".join(f"{probe.name} {probe.above:.0%}" for probe in preferred)
    return answer(
        "not easily fooled",
        None if preferred else True,
        f"scores above the better response: {names}" if preferred else "no probe scores above the better response",
        "watch for these in the samples of any policy that is trained against it",
        **{probe.name: probe.above for probe in probes},
    )


def _accurate(report: PreferenceReport) -> Check:
    name = "better than chance"
    if report.accuracy is None or report.accuracy_interval is None:
        return answer(name, None, f"all {report.pairs} held-out pairs are ties", f"{LOOK}: no labels")
    low, high = report.accuracy_interval
    finding = f"held-out accuracy {report.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}, {of_pairs(report)})"
    advice = f"the interval holds one half, so a coin may be as good: hold out more comparisons, or {LOOK}"
    passed = above((low, high), 0.5)
    if report.score_ties > (report.pairs - report.label_ties) / 2:
        passed = False
        finding += f"; equal scores for {report.score_ties} of {report.pairs} pairs"
        advice = "the scores are constant: raise --learning-rate, or check whether the two responses differ at all"
    elif high < 0.5:
        finding += ": the worse response is preferred"
        advice = "the labels look flipped, in training or here: check which column holds the chosen response"
    return answer(name, passed, finding, advice, accuracy=report.accuracy, low=low, high=high)


def of_pairs(report: PreferenceReport) -> str:
    """How many pairs a report is of, and of how many prompts where that is fewer."""
    prompts = "" if report.prompts == report.pairs else f" of {report.prompts} prompts"
    return f"{report.pairs} pairs{prompts}"


def _scores_vary(report: PreferenceReport) -> Check:
    """Are the scores not constant? A constant has the log loss of chance, whatever accuracy rounding gives it."""
    ties = report.score_ties / report.pairs
    confidences = [row.confidence for row in report.reliability]
    surest = max(confidences)
    passed = ties <= 0.5 and surest >= 0.51
    return answer(
        "scores differ",
        passed,
        f"equal scores for {ties:.0%} of the pairs; the surest tenth of preferences has {surest:.3f}",
        "the scores are all but constant: raise --learning-rate or --max-steps",
        score_ties=ties,
        surest=surest,
    )


def beyond_length(report: PreferenceReport) -> Check:
    """The paired test against length by itself; a model that decides as length does on nearly all pairs is length."""
    name, against = "beyond length", report.against_length
    if report.accuracy is None:
        return answer(name, None, "no pair is decided")
    wins, losses, decided = against.wins, against.losses, report.pairs - report.label_ties
    finding = (
        f"'the {report.length_prefers} one' is right about {report.length_accuracy:.3f}; the model is "
        f"right {wins} times, length {losses} times (p = {against.p_value:.2g})"
    )
    length_low, _ = report.length_accuracy_interval or (0.0, 1.0)
    better, worse = (against.p_value < 0.05 and sign > 0 for sign in (wins - losses, losses - wins))
    is_length = against.differ[1] < LENGTH_ALONE and length_low > 0.5
    passed = True if better else False if worse or is_length else None
    advice = "it has learned no more than length: balance the lengths of chosen and rejected, or get more comparisons"
    if passed is None:
        advice = f"too few pairs to tell them apart: hold out {_pairs_needed(wins, losses, decided)}"
    figures = {"wins": wins, "losses": losses, "p_value": against.p_value}
    return answer(name, passed, finding, advice, **figures)


def _pairs_needed(wins: int, losses: int, decided: int) -> str:
    """How many pairs: those at which the sign test has a power of 0.8 for the observed lead, (z₀.₉₇₅ + z₀.₈)²
    discordant/lead².
    """
    if wins <= losses:
        return "many more"
    needed = (1.96 + 0.84) ** 2 * (wins + losses) / (wins - losses) ** 2 * decided
    return f"about {max(needed, decided):.0f}"


def _calibrated(report: PreferenceReport) -> Check:
    """Is the log loss not worse than that of chance, by more than sampling error? Otherwise the model is
    overconfident.
    """
    loss, coin = report.log_loss, report.log_loss_chance
    decided = report.pairs - report.label_ties
    effect = decided / report.effective_pairs if report.effective_pairs else 1.0
    expected, spread = chance_ece(report.reliability, report.pairs, effect=effect)
    beyond = report.ece > expected + 3 * spread
    passed = None if beyond else True
    if beyond and report.log_loss_se is not None and loss - 1.96 * report.log_loss_se > coin:
        passed = False
    return answer(
        "calibrated",
        passed,
        f"log loss {loss:.3f} (a coin {coin:.3f}), calibration error {report.ece:.3f} "
        f"(by chance {expected:.3f} ± {spread:.3f})",
        "it is overconfident: fewer epochs, a lower --learning-rate, or more pairs",
        log_loss=loss,
        ece=report.ece,
        ece_by_chance=expected,
        ece_by_chance_sd=spread,
    )


def chance_ece(reliability: Sequence[ReliabilityBin], pairs: int, *, effect: float = 1.0) -> tuple[float, float]:
    """Mean and standard deviation of the calibration error of a perfectly calibrated model with these bins.

    A bin's outcome is then its confidence c up to a normal error of variance c(1 − c)/n, so its gap is half-normal:
    mean √(2/π · c(1 − c)/n), variance (1 − 2/π) · c(1 − c)/n. Where prompts have several pairs, n is divided by their
    design effect.
    """
    weights = np.array([row.pairs / pairs for row in reliability])
    variances = np.array([effect * row.confidence * (1 - row.confidence) / row.pairs for row in reliability])
    mean = float((weights * np.sqrt(2 / np.pi * variances)).sum())
    return mean, float(np.sqrt((weights**2 * (1 - 2 / np.pi) * variances).sum()))


def _enough(report: PreferenceReport) -> Check:
    decided = report.pairs - report.label_ties
    low, high = report.accuracy_interval or (0.0, 1.0)
    width = high - low
    passed = True if width <= WIDE else None
    return answer(
        "enough pairs",
        passed,
        f"{decided} held-out pairs tell accuracy to ± {width / 2:.3f}",
        "hold out more pairs (--eval-data)",
        decided=decided,
        width=width,
    )

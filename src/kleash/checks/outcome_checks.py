"""Gates out: figures in, checks out. Pure functions; who measures the figures is not their business.

Every threshold is a constant below with its reason. A check fails only where its interval says so: too few rows leave
it unknown, never failed. What that costs stands in docs/gates.md: how often broken stages are caught, healthy ones
accused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from kleash.checks.gates import Check
from kleash.checks.sample_stats import Excess, Responses, Samples
from kleash.evals.preference_report import wilson

ENDS = 0.5
"""Share of the expected ends that samples should reach: below it a policy mostly trains on fragments."""

REPEATS = 0.2
"""Share of 4-grams said before that samples may have beyond their data's. Loops have 0.6 and more."""

CONTROLS = 0.05
"""Share of samples with a control token inside that is no accident."""

IN_RANGE = 0.5
"""Share of samples as long as nine tenths of the data are, that should be met."""

SAME = 0.2
"""Prompts whose two samples differ: with fewer there is nothing to compare."""

NEAR_UNIFORM = 0.75
"""Entropy over log V from which a model says nothing. Chat models have 0.1 to 0.3, random weights 0.9 and more."""

OWN_PROMPT = 2 / 3
"""Share of rows whose response is likelier after its own prompt: where this is out of reach, prompts are ignored."""

AGREEMENT = 0.55
"""How often two labellers should agree. People reach 0.63 (HH) to 0.73 (InstructGPT); 0.5 is a coin. At 0.55 no reward
model can be right about more than 0.66 of the labels (docs/metrics.md, `noise_ceiling_bounds`)."""

LENGTH_ALONE = 0.15
"""Share of pairs on which a model decides otherwise than length does, below which it is length. Where labels went by
length alone it is 0.06 to 0.11, rounding of a good fit; where they did not, 0.3 to 0.5."""

WIDE = 0.2
"""Width of an interval of accuracy that still says something: about 85 pairs at an accuracy of 0.7."""

FOREIGN = 0.1
"""Excess NLL, in nats a token, from which responses are not the model's own. Rounding and a drop in temperature
to 0.95 stay below."""

PARENT = 0.25
"""Share of that excess which is left under the model that the responses really come from."""

ENTROPY_LEFT = 0.2
"""Share of the first rollout's entropy that may be left before it is said."""

LONGER = 2.0
"""How much longer or shorter than at first responses may become before it is said."""

OVERSHOOT = 1.25
"""How far beyond its KL budget a policy may be, as a factor."""

OUTSIDE = 0.5
"""Share of samples outside the range that the reward model was trained on, from which its score is a guess."""

LOOK = "look at the rows with `kleash inspect`"


@dataclass(frozen=True)
class Agreement:
    """How often two labellers agree about sampled pairs."""

    share: float
    """Of pairs; one of equal responses counts one half."""
    low: float
    """Lower bound, 95 %."""
    pairs: int


# --- language models -------------------------------------------------------------------------------------------------


def sft(
    *,
    before: float,
    after: float,
    rows: int,
    effect: Float[np.ndarray, " N"] | None,
    samples: Samples | None,
    demonstrations: Responses | None,
    agreement: Agreement | None = None,
    unsampled: str = "nobody asked for it",
) -> list[Check]:
    """The gate out of SFT.

    Args:
        before, after: loss on the held-out rows, nats a token.
        rows: how many of them.
        effect: `samples.prompt_effect` on them.
        samples: of the trained model on their prompts; None where none were drawn.
        demonstrations: what the data's responses look like.
        agreement: of two labellers on those samples, where there are labellers.
        unsampled: why none were drawn.
    """
    checks = [_learned(before, after, rows)]
    if effect is not None:
        checks.append(uses_prompt(effect))
    if samples is None:
        return [*checks, Check(name="samples", passed=None, finding=f"not sampled: {unsampled}")]
    checks += sampled(samples, demonstrations)
    return checks if agreement is None else [*checks, agrees(agreement)]


def sampled(samples: Samples, data: Responses | None = None, *, chat: bool = True) -> list[Check]:
    """What samples tell of a language model.

    Args:
        samples: of it.
        data: what its responses should look like; None where nobody knows.
        chat: whether it is meant to end by itself.
    """
    checks = [_ends(samples, data, chat=chat), _repeats(samples, data), _controls(samples, data)]
    if data is not None and data.lengths:
        checks.append(_lengths(samples, data))
    return [*checks, _varies(samples)]


def uses_prompt(effect: Float[np.ndarray, " N"]) -> Check:
    """Are responses likelier after their own prompt than after another row's?"""
    name = "uses the prompt"
    if not len(effect):
        return Check(name=name, passed=None, finding="all held-out rows have one prompt")
    wins = float((effect > 0).sum() + 0.5 * (effect == 0).sum())
    low, high = wilson(wins, len(effect))
    passed = True if low > 0.5 else False if high < OWN_PROMPT else None
    return Check(
        name=name,
        passed=passed,
        finding=f"{wins / len(effect):.0%} of {len(effect)} held-out responses are likelier after their own prompt "
        f"than after another's, by {float(np.mean(effect)):.1f} nats in the mean",
        advice="" if passed else f"responses must answer their prompts: {LOOK} whether they were mixed up",
        figures={"own_prompt": wins / len(effect), "low": low, "high": high, "nats": float(np.mean(effect))},
    )


def agrees(agreement: Agreement) -> Check:
    """Are the samples good enough to disagree about?"""
    passed = agreement.low > 0.5 and agreement.share >= AGREEMENT
    return Check(
        name="worth comparing",
        passed=passed,
        finding=f"two labellers would agree about {agreement.share:.0%} of {agreement.pairs} sampled pairs",
        advice=""
        if passed
        else "comparisons of such samples are noise: train the SFT model further before buying labels",
        figures={"agreement": agreement.share, "low": agreement.low, "pairs": agreement.pairs},
    )


def _learned(before: float, after: float, rows: int) -> Check:
    if not rows:
        return Check(name="learned", passed=None, finding="no held-out rows, so no held-out loss")
    passed = after < before
    return Check(
        name="learned",
        passed=passed,
        finding=f"held-out loss {before:.3f} → {after:.3f} nats a token on {rows} rows",
        advice="" if passed else f"lower --learning-rate, or {LOOK}",
        figures={"before": before, "after": after},
    )


def _ends(samples: Samples, data: Responses | None, *, chat: bool) -> Check:
    """The share that ended, against the share of the data that is short enough to end in time, finished or not."""
    name, n = "responses end", len(samples.ended)
    expected = float(np.mean(np.array(data.lengths) < samples.limit)) if data is not None and data.lengths else 1.0
    share = sum(samples.ended) / n
    _, high = wilson(sum(samples.ended), n)
    finding = f"{share:.0%} of {n} samples ended within {samples.limit} tokens"
    finding += "" if data is None else f"; {expected:.0%} of the data's responses are as short"
    figures = {"end_rate": share, "expected": expected, "limit": samples.limit}
    if not chat or expected < 0.2:
        return Check(name=name, passed=None, finding=finding, figures=figures)
    passed = True if share >= ENDS * expected else False if high < ENDS * expected else None
    advice = "responses of the data need an end token (no `finished: false`, no cut at --max-length), or more steps"
    return Check(name=name, passed=passed, finding=finding, advice="" if passed else advice, figures=figures)


def _repeats(samples: Samples, data: Responses | None) -> Check:
    name = "no loops"
    if len(samples.repetition) < 2:
        return Check(name=name, passed=None, finding="samples are too short to repeat themselves")
    mean, error = float(np.mean(samples.repetition)), float(np.std(samples.repetition, ddof=1))
    error /= math.sqrt(len(samples.repetition))
    usual = float(np.mean(data.repetition)) if data is not None and data.repetition else 0.0
    passed = mean - 2 * error <= usual + REPEATS
    return Check(
        name=name,
        passed=passed,
        finding=f"{mean:.1%} of the 4-grams of a sample were said before"
        + ("" if data is None else f"; {usual:.1%} in the data"),
        advice="" if passed else "fewer epochs or a lower --learning-rate; take rows that loop out of the data",
        figures={"repetition": mean, "se": error, "usual": usual},
    )


def _controls(samples: Samples, data: Responses | None) -> Check:
    n, held = len(samples.controls), sum(samples.controls)
    usual = float(np.mean(data.controls)) if data is not None and data.controls else 0.0
    passed = wilson(held, n)[0] <= usual + CONTROLS
    return Check(
        name="no control tokens inside",
        passed=passed,
        finding=f"{held} of {n} samples hold a token of a template, padding or the like before their end",
        advice="" if passed else "train and sample with one template; `kleash inspect` shows what is trained",
        figures={"controls": held / n, "usual": usual},
    )


def _lengths(samples: Samples, data: Responses) -> Check:
    """Lengths are compared as far as the sampler let them grow."""
    low, high = np.quantile(np.minimum(data.lengths, samples.limit), (0.05, 0.95))
    n = len(samples.lengths)
    inside = sum(bool(low <= length <= high) for length in samples.lengths)
    passed = True if inside >= IN_RANGE * n else False if wilson(inside, n)[1] < IN_RANGE else None
    return Check(
        name="as long as the data",
        passed=passed,
        finding=f"{inside / n:.0%} of the samples have {low:.0f} to {high:.0f} tokens, as nine tenths of the data "
        f"(median {np.median(samples.lengths):.0f}, data {np.median(data.lengths):.0f})",
        advice="" if passed else "the model does not write what it was shown: more steps or a lower --learning-rate",
        figures={"inside": inside / n, "low": float(low), "high": float(high)},
    )


def _varies(samples: Samples) -> Check:
    n, different = len(samples.differ), sum(samples.differ)
    share = different / n
    passed = True if share >= 0.5 else False if wilson(different, n)[1] < SAME else None
    return Check(
        name="something to compare",
        passed=passed,
        finding=f"two samples differ for {share:.0%} of {n} prompts; {samples.distinct:.0%} of all are different",
        advice="" if passed else "equal samples leave nothing to prefer: fewer epochs, or more varied demonstrations",
        figures={"differ": share, "distinct": samples.distinct},
    )


def not_empty(samples: Samples) -> Check:
    """Does it prefer any token to the others?"""
    share = samples.entropy / math.log(samples.vocabulary)
    passed = share < NEAR_UNIFORM
    return Check(
        name="no noise",
        passed=passed,
        finding=f"{samples.entropy:.2f} nats of entropy a token, {share:.0%} of log V (V = {samples.vocabulary:,})",
        advice="" if passed else "the model hardly prefers any token: were its weights loaded, or ever trained?",
        figures={"entropy": samples.entropy, "share": share},
    )


# --- reward models ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampledBy:
    """Whose samples the training responses of a reward model are."""

    model: Excess
    """Under the model whose samples will be scored."""
    parent: Excess | None = None
    """Under the model that one was made from, where it is at hand."""
    parent_path: str = ""


def reward_model(report: Mapping[str, Any], *, on_policy_check: SampledBy | None = None) -> list[Check]:
    """The gate out of a reward model.

    Args:
        report: `evals.preference_report.preference_report` on held-out pairs.
        on_policy_check: where the training responses come from.
    """
    checks = [_accurate(report), _scores_vary(report), _beyond_length(report), _calibrated(report), _enough(report)]
    if report.get("probes"):
        checks += [_words_beat_silence(report["probes"]), _not_fooled(report["probes"])]
    return checks if on_policy_check is None else [*checks, on_policy(on_policy_check)]


def on_policy(on_policy_check: SampledBy) -> Check:
    """Are the training responses like those that will be scored?

    Far from the model's own is normal for people's answers and other models', so that alone decides nothing. But where
    its parent explains them and it does not, they were sampled before SFT, and the labels are about another model.
    """
    nats, parent = on_policy_check.model.nats, on_policy_check.parent
    figures = {"excess_nll": nats, "se": on_policy_check.model.se, "parent": parent and parent.nats}
    finding = f"training responses surprise the model by {nats:+.2f} nats a token more than its own samples would"
    passed: bool | None = abs(nats) <= max(FOREIGN, 3 * on_policy_check.model.se)
    advice = ""
    if parent is not None and not passed and abs(parent.nats) + 2 * parent.se < PARENT * nats:
        passed = False
        finding += (
            f", and {on_policy_check.parent_path}, which it was made from, by {parent.nats:+.2f}: they are its samples"
        )
        advice = "sample the responses to be compared from the model of --model (`kleash generate`) and label those"
    elif not passed:
        passed = None
        finding += ": they are not its samples" if nats > 0 else ": they were drawn at a lower temperature, or chosen"
        advice = "its samples may lie outside of what the reward model knows; label some of them, if you can"
    return Check(name="about the policy's samples", passed=passed, finding=finding, advice=advice, figures=figures)


def _words_beat_silence(probes: Sequence[Mapping[str, Any]]) -> Check:
    """Is the empty response worth less than the better one of a pair? Else a policy that optimises it falls silent."""
    empty = next(probe for probe in probes if probe["name"] == "empty")
    figures = {name: empty[name] for name in ("above", "low", "high", "pairs")}
    passed = empty["low"] <= 0.5
    return Check(
        name="words beat silence",
        passed=passed,
        finding=f"the empty response scores above the better one in {empty['above']:.0%} of {empty['pairs']} pairs",
        advice=""
        if passed
        else "a policy that optimises this ends up saying nothing: add comparisons that an empty or cut-off response "
        "loses, or gate the reward on what has to be there (docs/rewards.md)",
        figures=figures,
    )


def _not_fooled(probes: Sequence[Mapping[str, Any]]) -> Check:
    """Which other probes please more than what they were made of? Whether a policy finds them is another matter."""
    loved = [probe for probe in probes if probe["low"] > 0.5 and probe["name"] != "empty"]
    told = ", ".join(f"{probe['name']} {probe['above']:.0%}" for probe in loved)
    return Check(
        name="not easily fooled",
        passed=None if loved else True,
        finding=f"scores above the better response: {told}" if loved else "no probe scores above the better response",
        advice="watch for these in the samples of whatever optimises it" if loved else "",
        figures={probe["name"]: probe["above"] for probe in probes},
    )


def _accurate(report: Mapping[str, Any]) -> Check:
    name = "above a coin"
    if report["accuracy"] is None:
        return Check(
            name=name,
            passed=False,
            finding=f"all {report['pairs']} held-out pairs are ties",
            advice=f"{LOOK}: no labels",
        )
    low, high = report["accuracy_interval"]
    finding = (
        f"held-out accuracy {report['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, {report['pairs']} pairs)"
    )
    advice = "it must be above one half for sure: get more comparisons, or look at them with `kleash inspect`"
    if report["score_ties"] > report["pairs"] / 2:
        finding += f"; equal scores for {report['score_ties']} of {report['pairs']} pairs"
        advice = "the scores are constant: raise --learning-rate, or look whether the two responses differ at all"
    elif high < 0.5:
        finding += ": the worse response is preferred"
        advice = "the labels look flipped, in training or here: see which column holds the chosen one"
    return Check(
        name=name,
        passed=low > 0.5,
        finding=finding,
        advice="" if low > 0.5 else advice,
        figures={"accuracy": report["accuracy"], "low": low, "high": high},
    )


def _scores_vary(report: Mapping[str, Any]) -> Check:
    """A constant has the log loss of a coin, whatever its rounding makes of its accuracy."""
    ties = report["score_ties"] / report["pairs"]
    confidences = [row["confidence"] for row in report["reliability"]]
    surest = max(confidences)
    passed = ties <= 0.5 and surest >= 0.51
    return Check(
        name="scores differ",
        passed=passed,
        finding=f"equal scores for {ties:.0%} of the pairs; the surest tenth of preferences has {surest:.3f}",
        advice="" if passed else "the scores are all but constant: raise --learning-rate or --max-steps",
        figures={"score_ties": ties, "surest": surest},
    )


def _beyond_length(report: Mapping[str, Any]) -> Check:
    """The paired test against length alone; a model that decides as length does on nearly all pairs is length."""
    name, against = "beyond length", report["against_length"]
    if report["accuracy"] is None:
        return Check(name=name, passed=None, finding="no pair is decided")
    wins, losses, decided = against["wins"], against["losses"], report["pairs"] - report["label_ties"]
    _, high = wilson(wins + losses, decided)
    finding = (
        f"'the {report['length_prefers']} one' is right about {report['length_accuracy']:.3f}; the model alone is "
        f"right {wins} times, length alone {losses} times (p = {against['p_value']:.2g})"
    )
    better, worse = (against["p_value"] < 0.05 and sign > 0 for sign in (wins - losses, losses - wins))
    is_length = high < LENGTH_ALONE and report["length_accuracy_interval"][0] > 0.5
    passed = True if better else False if worse or is_length else None
    advice = "it has learnt length, or less: balance the lengths of chosen and rejected, or get more comparisons"
    if passed is None:
        advice = f"too few pairs to tell apart: it takes about {_pairs_needed(wins, losses, decided)} held out"
    figures = {"wins": wins, "losses": losses, "p_value": against["p_value"]}
    return Check(name=name, passed=passed, finding=finding, advice="" if passed else advice, figures=figures)


def _pairs_needed(wins: int, losses: int, decided: int) -> str:
    """Pairs at which the sign test has a power of 0.8 for the lead seen so far: (z₀.₉₇₅ + z₀.₈)² discordant/lead²."""
    if wins <= losses:
        return "many more"
    needed = (1.96 + 0.84) ** 2 * (wins + losses) / (wins - losses) ** 2 * decided
    return f"{max(needed, decided):.0f}"


def _calibrated(report: Mapping[str, Any]) -> Check:
    """Worse than a coin in log loss, and by more than chance explains: sure of what it does not know."""
    loss, coin = report["log_loss"], report["log_loss_chance"]
    expected, spread = chance_ece(report["reliability"], report["pairs"])
    beyond = report["ece"] > expected + 3 * spread
    passed = None if beyond else True
    if beyond and loss > coin:
        passed = False
    return Check(
        name="calibrated",
        passed=passed,
        finding=f"log loss {loss:.3f} (a coin {coin:.3f}), calibration error {report['ece']:.3f} "
        f"(by chance {expected:.3f} ± {spread:.3f})",
        advice="" if passed else "it is surer than it is right: fewer epochs, a lower --learning-rate, or more pairs",
        figures={"log_loss": loss, "ece": report["ece"], "ece_by_chance": expected, "ece_by_chance_sd": spread},
    )


def chance_ece(reliability: Sequence[Mapping[str, Any]], pairs: int) -> tuple[float, float]:
    """Mean and standard deviation of the calibration error of a perfectly calibrated model with these bins.

    A bin's outcome is then its confidence c up to a normal error of variance c(1 − c)/n, so its gap is half-normal:
    mean √(2/π · c(1 − c)/n), variance (1 − 2/π) · c(1 − c)/n.
    """
    weights = np.array([row["pairs"] / pairs for row in reliability])
    variances = np.array([row["confidence"] * (1 - row["confidence"]) / row["pairs"] for row in reliability])
    mean = float((weights * np.sqrt(2 / np.pi * variances)).sum())
    return mean, float(np.sqrt((weights**2 * (1 - 2 / np.pi) * variances).sum()))


def _enough(report: Mapping[str, Any]) -> Check:
    decided = report["pairs"] - report["label_ties"]
    width = report["accuracy_interval"][1] - report["accuracy_interval"][0] if decided else 1.0
    passed = True if width <= WIDE else None
    return Check(
        name="enough pairs",
        passed=passed,
        finding=f"{decided} held-out pairs tell accuracy to ± {width / 2:.3f}",
        advice="" if passed else "hold out more pairs (--eval-data)",
        figures={"decided": decided, "width": width},
    )


# --- policies --------------------------------------------------------------------------------------------------------


def policy(rows: Sequence[Mapping[str, Any]], *, kl_budget: float | None, advice: str) -> list[Check]:
    """The gate out of a policy that optimised a reward.

    KL, entropy and length alone do not tell a hack from benign convergence, so a fall or a drift of them is said and
    decides nothing; the budget that was set does, and a validation reward that fell while the reward rose.

    Args:
        rows: of metrics.jsonl, one a rollout.
        kl_budget: nats a response that the policy may be away from its reference; None: any.
        advice: what to try where responses do not end.
    """
    rows = [row for row in rows if row.get("kl") is not None]
    first, last = rows[0], rows[-1]
    checks = [
        Check(
            name="responses end",
            passed=last["end_rate"] >= ENDS,
            finding=f"{last['end_rate']:.0%} of the last rollout's responses ended, at KL {last['kl']:.2f} nats",
            advice="" if last["end_rate"] >= ENDS else advice,
            figures={"end_rate": last["end_rate"], "kl": last["kl"]},
        )
    ]
    if kl_budget is not None:
        checks.append(_within_budget(last["kl"], kl_budget))
    more = [_entropy_left(first, last), _length_kept(first, last), _validation_reward(rows), _in_known_range(last)]
    return [*checks, *(check for check in more if check is not None)]


def direct(report: Mapping[str, Any], *, kl: float | None) -> list[Check]:
    """The gate out of a policy learnt from comparisons: do its implicit rewards prefer what was preferred?

    Args:
        report: on the implicit rewards of held-out pairs.
        kl: from the reference, nats a response; None where not measured.
    """
    low, high = report["accuracy_interval"] or (None, None)
    finding = f"held-out accuracy of implicit rewards unknown: all {report['pairs']} pairs are ties"
    if low is not None and high is not None:
        finding = (
            f"held-out accuracy of implicit rewards {report['accuracy']:.3f} "
            f"(95 % interval {low:.3f} to {high:.3f}, {report['pairs']} pairs)"
        )
    passed = low is not None and low > 0.5
    advice = "it must be above one half for sure: train longer, raise --learning-rate, or get more comparisons"
    if high is not None and high < 0.5:
        advice = "the labels look flipped, in training or here: see which column holds the chosen one"
    checks = [
        Check(
            name="above a coin",
            passed=passed,
            finding=finding,
            advice="" if passed else advice,
            figures={"accuracy": report["accuracy"], "low": low, "kl": kl},
        )
    ]
    return checks if report["accuracy"] is None else [*checks, _beyond_length(report)]


def _within_budget(kl: float, budget: float) -> Check:
    """A run ends with the rollout that is beyond its budget, so a little over is how every such run ends."""
    passed = kl <= OVERSHOOT * budget
    return Check(
        name="within the KL budget",
        passed=passed,
        finding=f"KL {kl:.2f} nats a response of a budget of {budget:g}",
        advice="" if passed else "raise --beta, lower --learning-rate, or take an earlier checkpoint",
        figures={"kl": kl, "kl_budget": budget},
    )


def _entropy_left(first: Mapping[str, Any], last: Mapping[str, Any]) -> Check | None:
    start, end = first.get("entropy"), last.get("entropy")
    if not start or end is None:
        return None
    passed = True if end >= ENTROPY_LEFT * start else None
    return Check(
        name="entropy left",
        passed=passed,
        finding=f"entropy {start:.3f} → {end:.3f} nats a token",
        advice="" if passed else "solved, or collapsed: read samples.jsonl; against collapse raise --beta",
        figures={"first": start, "last": end},
    )


def _length_kept(first: Mapping[str, Any], last: Mapping[str, Any]) -> Check | None:
    start, end = first.get("length"), last.get("length")
    if not start or not end:
        return None
    passed = True if 1 / LONGER <= end / start <= LONGER else None
    return Check(
        name="length kept",
        passed=passed,
        finding=f"{start:.1f} → {end:.1f} tokens a response",
        advice="" if passed else "see whether the reward pays for length alone: `length_slope` of its report",
        figures={"first": start, "last": end},
    )


def _validation_reward(rows: Sequence[Mapping[str, Any]]) -> Check | None:
    """Did the reward rise while a reward model of other labels fell? Both by more than two standard errors."""
    name = "validation reward model agrees"
    both = [(row["reward"], row["validation_reward"]) for row in rows if row.get("validation_reward") is not None]
    if not both:
        return None
    window = max(3, len(both) // 5)
    if len(both) < 2 * window:
        return Check(name=name, passed=None, finding=f"{len(both)} rollouts are too few to see a turn")
    early, late = np.array(both[:window]), np.array(both[-window:])
    rise = late.mean(0) - early.mean(0)  # of the reward, of the validation model
    error = np.sqrt((early.var(0, ddof=1) + late.var(0, ddof=1)) / window)
    passed = not (rise[0] > 2 * error[0] and rise[1] < -2 * error[1])
    return Check(
        name=name,
        passed=bool(passed),
        finding=f"reward {rise[0]:+.3f} ± {error[0]:.3f}, validation reward model {rise[1]:+.3f} ± {error[1]:.3f} "
        f"from the first {window} rollouts to the last",
        advice=""
        if passed
        else "the reward is being hacked: take an earlier checkpoint, raise --beta, more comparisons",
        figures={"reward": float(rise[0]), "validation_reward": float(rise[1]), "validation_se": float(error[1])},
    )


def _in_known_range(last: Mapping[str, Any]) -> Check | None:
    outside = last.get("outside")
    if outside is None:
        return None
    return Check(
        name="within the reward model's range",
        passed=bool(outside <= OUTSIDE),
        finding=f"{outside:.0%} of the last rollout lies outside of what the reward model was trained on",
        advice="" if outside <= OUTSIDE else "its scores are guesses there: raise --beta, or label such samples",
        figures={"outside": outside},
    )

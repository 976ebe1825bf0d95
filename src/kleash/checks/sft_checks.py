"""Checks of a language model after SFT: figures in, checks out. Pure functions.

Every threshold is a constant below with its reason. A check passes or fails only where its interval says so; where the
interval holds the threshold it is unknown. Error rates (broken stages caught, healthy ones failed): docs/gates.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kleash.checks.check import LOOK, Check, answer
from kleash.checks.sample_stats import Responses, Samples
from kleash.evals.intervals import (
    Prompts,
    above,
    below,
    difference_interval,
    mean_interval,
    ratio_interval,
    share_interval,
    wilson,
)

ENDS = 0.5
"""Share of the expected ends that samples should reach: below it a policy mostly trains on fragments."""

REPEATS = 0.2
"""Largest excess of repeated 4-grams over the data's. Loops have 0.6 and more."""

CONTROLS = 0.1
"""Share of samples with a control token inside that is not an accident; 64 prompts can show that it is lower."""

IN_RANGE = 0.5
"""Least share of samples within the range of length of nine tenths of the data."""

SAME = 0.2
"""Share of prompts whose two samples differ: with fewer there is little to compare."""

NEAR_UNIFORM = 0.75
"""Entropy over log V from which a model is close to uniform. Chat models have 0.1 to 0.3, random weights 0.9 and
more."""

OWN_PROMPT = 2 / 3
"""Share of rows whose response is likelier after its own prompt; below it, the model ignores prompts."""

AGREEMENT = 0.55
"""How often two labellers should agree. People reach 0.63 (HH) to 0.73 (InstructGPT); 0.5 is chance. At 0.55 no reward
model can be right about more than 0.66 of the labels (docs/metrics.md, `noise_ceiling_bounds`)."""


@dataclass(frozen=True)
class Agreement:
    """How often two labellers agree about sampled pairs."""

    share: float
    """Of pairs; one of equal responses counts one half."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""
    pairs: int

    @property
    def passed(self) -> bool | None:
        """Whether they agree: better than chance and as often as asked, or surely less often than asked."""
        if self.low > 0.5 and self.share >= AGREEMENT:
            return True
        return False if self.high < AGREEMENT else None


def sft(
    *,
    before: float,
    after: float,
    gain: Float[np.ndarray, "P 2"],
    prompts: Prompts | None = None,
    rows: int,
    effect: Float[np.ndarray, " N"] | None,
    samples: Samples | None,
    demonstrations: Responses | None,
    agreement: Agreement | None = None,
    unsampled: str = "not requested",
) -> list[Check]:
    """The checks of an SFT run.

    Args:
        before, after: loss on the held-out rows, nats a token.
        gain: of some of these rows: by how many nats the response became likelier, and its tokens.
        prompts: the prompt of each of these; None: each has its own.
        rows: how many held-out rows there are.
        effect: `samples.prompt_effect` on them.
        samples: of the trained model on their prompts; None where none were drawn.
        demonstrations: statistics of the data's responses.
        agreement: of two labellers on those samples, where there are labellers.
        unsampled: why none were drawn.
    """
    checks = [_learned(before, after, gain, prompts, rows)]
    if effect is not None:
        checks.append(uses_prompt(effect))
    if samples is None:
        return [*checks, answer("samples", None, f"not sampled: {unsampled}")]
    checks += sampled(samples, demonstrations)
    return checks if agreement is None else [*checks, agrees(agreement)]


def sampled(samples: Samples, data: Responses | None = None, *, chat: bool = True) -> list[Check]:
    """The checks of a language model's samples.

    Args:
        samples: of the model.
        data: statistics that its responses should have; None where unknown.
        chat: whether its responses should end by themselves.
    """
    checks = [_ends(samples, data, chat=chat), _repeats(samples, data), _controls(samples, data)]
    if data is not None and data.lengths:
        checks.append(_lengths(samples, data))
    return [*checks, _varies(samples)]


def uses_prompt(effect: Float[np.ndarray, " N"]) -> Check:
    """Are responses likelier after their own prompt than after another row's?"""
    name = "uses the prompt"
    if not len(effect):
        return answer(name, None, "all held-out rows have one prompt")
    wins = float((effect > 0).sum() + 0.5 * (effect == 0).sum())
    low, high = wilson(wins, len(effect))
    passed = True if low > 0.5 else False if high < OWN_PROMPT else None
    return answer(
        name,
        passed,
        f"{wins / len(effect):.0%} of {len(effect)} held-out responses are likelier after their own prompt "
        f"than after another's, by {float(np.mean(effect)):.1f} nats in the mean",
        f"responses must answer their prompts: {LOOK} whether they were mixed up",
        own_prompt=wins / len(effect),
        low=low,
        high=high,
        nats=float(np.mean(effect)),
    )


def agrees(agreement: Agreement) -> Check:
    """Would two labellers agree about the samples?"""
    return answer(
        "worth comparing",
        agreement.passed,
        f"two labellers would agree about {agreement.share:.0%} of {agreement.pairs} sampled pairs",
        "comparisons of such samples are noise: train the SFT model further before buying labels",
        agreement=agreement.share,
        low=agreement.low,
        high=agreement.high,
        pairs=agreement.pairs,
    )


def _learned(before: float, after: float, gain: Float[np.ndarray, "P 2"], prompts: Prompts | None, rows: int) -> Check:
    """Did held-out responses become likelier? The same rows before and after, so that their own spread cancels."""
    if not len(gain):
        return answer("learned", None, "no held-out rows, so no held-out loss")
    low, high = ratio_interval(gain[:, 0], gain[:, 1], prompts)
    return answer(
        "learned",
        above((low, high), 0.0),
        f"held-out loss {before:.3f} → {after:.3f} nats a token on {rows} rows "
        f"(lower by {low:.3f} to {high:.3f}, 95 % interval of {len(gain)})",
        f"where the loss rose lower --learning-rate; else train longer or hold out more rows; {LOOK}",
        before=before,
        after=after,
        low=low,
        high=high,
    )


def _ends(samples: Samples, data: Responses | None, *, chat: bool) -> Check:
    """The share of samples that ended, against the share of the data's responses that fit the limit."""
    name, n = "responses end", len(samples.ended)
    expected = float(np.mean(np.array(data.lengths) < samples.limit)) if data is not None and data.lengths else 1.0
    share = sum(samples.ended) / n
    interval = share_interval(samples.ended, samples.prompts)
    finding = f"{share:.0%} of {n} samples ended within {samples.limit} tokens"
    finding += "" if data is None else f"; {expected:.0%} of the data's responses are as short"
    figures = {"end_rate": share, "expected": expected, "limit": samples.limit}
    if not chat or expected < 0.2:
        return answer(name, None, finding, "", **figures)
    passed = above(interval, ENDS * expected)
    advice = "responses of the data need an end token (no `finished: false`, no cut at --max-length), or more steps"
    return answer(name, passed, finding, advice, **figures)


def _repeats(samples: Samples, data: Responses | None) -> Check:
    name = "no loops"
    if len(samples.repetition) < 2:
        return answer(name, None, "samples are too short to repeat themselves")
    mean, interval = (
        float(np.mean(samples.repetition)),
        mean_interval(samples.repetition, samples.prompts_of_repetition),
    )
    usual, of_data = 0.0, (0.0, 0.0)
    if data is not None and data.repetition:
        usual, of_data = float(np.mean(data.repetition)), mean_interval(data.repetition)
    passed = below(difference_interval(mean, interval, usual, of_data), REPEATS)
    return answer(
        name,
        passed,
        f"{mean:.1%} of the 4-grams of a sample occur earlier in it"
        + ("" if data is None else f"; {usual:.1%} in the data"),
        "fewer epochs or a lower --learning-rate; take rows that loop out of the data",
        repetition=mean,
        low=interval[0],
        high=interval[1],
        usual=usual,
    )


def _controls(samples: Samples, data: Responses | None) -> Check:
    n, count = len(samples.controls), sum(samples.controls)
    usual = float(np.mean(data.controls)) if data is not None and data.controls else 0.0
    passed = below(share_interval(samples.controls, samples.prompts), usual + CONTROLS)
    return answer(
        "no control tokens inside",
        passed,
        f"{count} of {n} samples hold a token of a template, padding or the like before their end",
        "train and sample with one template; `kleash inspect` shows what is trained",
        controls=count / n,
        usual=usual,
    )


def _lengths(samples: Samples, data: Responses) -> Check:
    """Do samples have the length of the data? Both are cut at the sampler's limit."""
    low, high = np.quantile(np.minimum(data.lengths, samples.limit), (0.05, 0.95))
    n = len(samples.lengths)
    is_inside = [bool(low <= length <= high) for length in samples.lengths]
    inside = sum(is_inside)
    passed = above(share_interval(is_inside, samples.prompts), IN_RANGE)
    return answer(
        "as long as the data",
        passed,
        f"{inside / n:.0%} of the samples have {low:.0f} to {high:.0f} tokens, as nine tenths of the data "
        f"(median {np.median(samples.lengths):.0f}, data {np.median(data.lengths):.0f})",
        "the samples do not resemble the data: more steps or a lower --learning-rate",
        inside=inside / n,
        low=float(low),
        high=float(high),
    )


def _varies(samples: Samples) -> Check:
    n, different = len(samples.differ), sum(samples.differ)
    share = different / n
    passed = above(wilson(different, n), SAME)
    return answer(
        "something to compare",
        passed,
        f"two samples differ for {share:.0%} of {n} prompts; {samples.distinct:.0%} of all are different",
        "equal samples leave nothing to compare: fewer epochs, or more varied demonstrations",
        differ=share,
        distinct=samples.distinct,
    )


def not_empty(samples: Samples) -> Check:
    """Is the model's next-token distribution not close to uniform?"""
    share = samples.entropy / math.log(samples.vocabulary)
    low, high = (end / math.log(samples.vocabulary) for end in samples.entropy_interval)
    return answer(
        "no noise",
        below((low, high), NEAR_UNIFORM),
        f"{samples.entropy:.2f} nats of entropy a token, {share:.0%} of log V (V = {samples.vocabulary:,})",
        "the next token is almost uniform: check that the weights were loaded and trained",
        entropy=samples.entropy,
        share=share,
    )

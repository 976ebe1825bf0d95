"""Curves whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from kleash.evals.overoptimization import Analysis, KLCurve, Source, analyse, choosing_prompts, law_gain

TRUE = {"checkpoints": (1.0, 0.5), "best-of-n": (1.2, 0.3)}


def curve(
    source: Source,
    *,
    gain: Any = None,
    prompts: int = 120,
    noise: float = 0.5,
    seed: int = 0,
    far: float = 4.0,
) -> KLCurve:
    """A curve whose prompts differ widely, whose gold follows the law (or `gain`), whose proxy rises throughout."""
    rng = np.random.default_rng(seed)
    d = np.linspace(0, far, 11)
    shape = (len(d), prompts)
    gained = law_gain(d, *TRUE[source], source) if gain is None else np.asarray(gain)
    gold = rng.normal(0, 2, prompts) + gained[:, None] + rng.normal(0, noise, shape)
    kl = (d**2)[:, None] * (1 + 0.5 * rng.normal(0, 1, shape))
    proxy = d[:, None] + rng.normal(0, noise, shape)
    names = tuple(f"prompt {number}" for number in range(prompts))
    return KLCurve(source, tuple(range(len(d))), names, gold, proxy, kl)


def analysed(measured: KLCurve, **settings: Any) -> Analysis:
    return analyse(
        measured,
        choose=choosing_prompts(measured.prompts, share=0.5, seed=0),
        resamples=400,
        **settings,
    )

"""Several models compared on the same prompts: win rates, and Bradley–Terry strengths with and without length.

Bradley and Terry 1952: P(i ≻ j) = σ(θ_i − θ_j), by maximum likelihood; a tie is half a win for each. Prompts are what
is sampled, so intervals are a bootstrap over prompts. Strengths are in nats of the odds, with mean 0 over the models
that can be placed. A model that never lost has no finite strength (Ford 1957), and it is reported as such.

Length-controlled, after Dubois et al. 2024 (arXiv:2404.04475, AlpacaEval 2), without its term for the difficulty of a
prompt and with one coefficient of length for all models: P(i ≻ j) = σ(θ_i − θ_j + φ·tanh((l_i − l_j)/s)), l the length
of a response in characters and s the standard deviation of the differences. Its strengths and win rates are those of
equal lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, log
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize
from scipy.special import expit

from kleash.evals.estimates import Share
from kleash.evals.noise import CRITICAL
from kleash.evals.report_values import Estimate

RESAMPLES = 1000
"""Resamples of the prompts; an interval is from the 2.5 % quantile to the 97.5 % quantile of its figure."""
AT_ONCE = 50
"""Resamples in one matrix product."""
STEPS, LONGEST_STEP, INFINITE = 100, 2.0, 15.0
"""Of Newton's method; a length effect beyond the last has no finite estimate (odds of three million)."""
ELO = 400 / log(10)
"""Points of Elo's scale in one nat."""

Place = Literal["finite", "above", "below", "not comparable"]


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of responses by different models; ties are one half."""

    names: tuple[str, ...]
    """The models, M."""
    first: Int[np.ndarray, " N"]
    """Index of the model of the first response."""
    second: Int[np.ndarray, " N"]
    p: Float[np.ndarray, " N"]
    """P(first ≻ second)."""
    longer: Float[np.ndarray, " N"]
    """Characters of the first response minus those of the second."""
    prompts: Int[np.ndarray, " N"]
    """The prompt of each, as a number from 0."""

    def select(self, rows: Bool[np.ndarray, " N"]) -> Comparisons:
        """Some of them, with the prompts numbered anew."""
        values = {name: getattr(self, name)[rows] for name in ("first", "second", "p", "longer")}
        prompts = np.unique(self.prompts[rows], return_inverse=True)[1].astype(np.int64)
        return Comparisons(self.names, prompts=prompts, **values)


@dataclass(frozen=True)
class ModelRank:
    """One model of a ranking."""

    model: str
    """Its name."""
    comparisons: int
    """Those that it is in."""
    win_rate: Share | None
    """Share of its comparisons that it won, ties ½; None without comparisons. Where all of them end alike the interval
    is Wilson's."""
    place: Place
    """finite; above: it or a model like it won every comparison with the placed models, so its strength is infinite;
    below: lost every one; not comparable: no chain of comparisons leads both ways or either to the placed models."""
    strength: Estimate
    """θ; None is infinite, or unknown where the place is `not comparable`. Of a model above only the lower end is
    finite, of one below the upper: where the likelihood of its comparisons, the others at their strengths, falls 1.92·D
    below its maximum, D the comparisons of a prompt, Σn²/Σn."""
    controlled: Estimate | None
    """θ at equal lengths; None where there is no such figure."""
    controlled_win_rate: Estimate | None
    """Mean of σ(θ_i − θ_j) over its comparisons, with the controlled strengths."""


@dataclass(frozen=True)
class PairRank:
    """Two models of a ranking."""

    model: str
    """The one that stands higher."""
    other: str
    """The one below it."""
    win_rate: Share
    """Share of comparisons that `model` won, ties ½."""
    controlled: float | None
    """σ(θ_model − θ_other) of the controlled strengths."""


@dataclass(frozen=True)
class PromptRank:
    """One prompt of a ranking."""

    prompt: int
    """Its number."""
    wins: dict[str, float]
    """Each model's share of wins on this prompt."""
    shift: float | None
    """Largest change of a strength where this prompt is left out; None: one becomes infinite."""


@dataclass(frozen=True)
class Ranking:
    """Models in order of their strengths."""

    prompts: int
    """Prompts with a comparison."""
    comparisons: int
    """How many there are."""
    ties: int
    """Comparisons of exactly one half."""
    models: list[ModelRank]
    """The models."""
    pairs: list[PairRank]
    """Each pair of models that was compared, once, the stronger first."""
    length_effect: Estimate | None
    """φ: above 0, longer responses win more often than their models do. None where it cannot be told from the models,
    since no difference of lengths varies within a pair of them; its value None where it is infinite, since lengths and
    models together decide every comparison."""
    resamples: int
    """Resamples of the prompts; none are drawn from a single prompt, and its intervals are infinite."""
    seed: int
    """Of the resamples."""


def ranking(data: Comparisons, *, seed: int = 0, resamples: int = RESAMPLES) -> Ranking:
    """Rank models by their comparisons.

    Args:
        data: at least one comparison.
        seed: of the bootstrap.
        resamples: of the prompts.
    """
    tables = _Tables.of(data)
    strength, core = _placed(tables.wins.sum(0), tables.counts.sum(0), tables)
    weights = _resampled(tables.groups, resamples, seed)
    draws = _drawn(tables, weights @ tables.wins, weights @ tables.counts, strength, core)
    controlled, length_effect = _controlled(data, core, weights)
    rows = [_model(index, data, tables, weights, strength, core, draws, controlled) for index in range(len(data.names))]
    order = sorted(range(len(rows)), key=lambda index: _order(rows[index]))
    theta = None if controlled is None else controlled[0]
    return Ranking(
        prompts=tables.groups,
        comparisons=len(data.p),
        ties=int((data.p == 0.5).sum()),
        models=[rows[index] for index in order],
        pairs=_pairs(data, order, weights, theta, core),
        length_effect=length_effect,
        resamples=resamples,
        seed=seed,
    )


def by_stratum(
    data: Comparisons, strata: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Ranking]:
    """A ranking for each value of a column; strengths of two strata each have their own mean of 0.

    Args:
        data: the comparisons.
        strata: the value of each.
        seed, resamples: as of `ranking`.
    """
    values = np.array(strata, dtype=object)
    return {
        str(value): ranking(data.select(values == value), seed=seed, resamples=resamples)
        for value in sorted(set(strata))
    }


def by_prompt(data: Comparisons) -> list[PromptRank]:
    """Each prompt's wins, and how far the strengths move without it."""
    tables = _Tables.of(data)
    strength, core = _placed(tables.wins.sum(0), tables.counts.sum(0), tables)
    without = _drawn(tables, tables.wins.sum(0) - tables.wins, tables.counts.sum(0) - tables.counts, strength, core)
    moved = np.abs(without[:, core] - strength[core]).max(1)
    size = tables.groups * len(data.names)
    cells = [data.prompts * len(data.names) + side for side in (data.first, data.second)]
    hits, ones = (data.p, 1 - data.p), np.ones(len(data.p))
    wins = sum(np.bincount(cell, values, size) for cell, values in zip(cells, hits, strict=True))
    counts = sum(np.bincount(cell, ones, size) for cell in cells)
    shares = np.divide(wins, counts, out=np.full(size, np.nan), where=counts > 0).reshape(tables.groups, -1)
    return [
        PromptRank(
            prompt,
            {name: float(share) for name, share in zip(data.names, row, strict=True) if share == share},
            float(shift) if np.isfinite(shift) else None,
        )
        for prompt, (row, shift) in enumerate(zip(shares, moved, strict=True))
    ]


# --- strengths -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tables:
    """Comparisons summed by prompt and by pair of models."""

    pairs: Int[np.ndarray, "C 2"]
    """The pairs i < j that were compared."""
    wins: Float[np.ndarray, "G C"]
    """Of i over j, by prompt."""
    counts: Float[np.ndarray, "G C"]
    models: int

    @property
    def groups(self) -> int:
        """Prompts."""
        return len(self.wins)

    @classmethod
    def of(cls, data: Comparisons) -> _Tables:
        flipped = data.first > data.second
        low, high = np.minimum(data.first, data.second), np.maximum(data.first, data.second)
        keys, column = np.unique(low * len(data.names) + high, return_inverse=True)
        groups = int(data.prompts.max()) + 1
        cell = data.prompts * len(keys) + column
        wins, counts = (
            np.bincount(cell, values, groups * len(keys)).reshape(groups, -1)
            for values in (np.where(flipped, 1 - data.p, data.p), np.ones(len(cell)))
        )
        return cls(np.stack(np.divmod(keys, len(data.names)), 1), wins, counts, len(data.names))

    def design(self, core: Bool[np.ndarray, " M"]) -> tuple[Float[np.ndarray, "N D"], Bool[np.ndarray, " C"]]:
        """The pairs within the core, each a row with 1 for i and −1 for j, and which columns they are."""
        inside = core[self.pairs].all(1)
        return _rows(self.pairs[inside, 0], self.pairs[inside, 1], self.models)[:, core], inside

    def beats(self, wins: Float[np.ndarray, " C"], counts: Float[np.ndarray, " C"]) -> Bool[np.ndarray, "M M"]:
        """Whether i has won anything from j, directly or over others."""
        reach = np.eye(self.models, dtype=bool)
        reach[tuple(self.pairs[wins > 0].T)] = True
        reach[tuple(self.pairs[counts - wins > 1e-12, ::-1].T)] = True
        for _ in range(max(1, self.models.bit_length())):
            reach = (reach.astype(np.float32) @ reach) > 0
        return reach


def _rows(first: Int[np.ndarray, " N"], second: Int[np.ndarray, " N"], models: int) -> Float[np.ndarray, "N M"]:
    identity = np.eye(models)
    return identity[first] - identity[second]


def _placed(
    wins: Float[np.ndarray, " C"], counts: Float[np.ndarray, " C"], tables: _Tables
) -> tuple[Float[np.ndarray, " M"], Bool[np.ndarray, " M"]]:
    """Strengths, and the models between which each has won something from each: only those are finite.

    Of several such sets the one with the most comparisons is placed, with mean 0; others are infinitely far above or
    below it, or NaN where neither holds.
    """
    beats = tables.beats(wins, counts)
    both = beats & beats.T
    sizes = [(int(row.sum()), float(counts[row[tables.pairs].any(1)].sum())) for row in both]
    core = both[max(range(len(sizes)), key=lambda index: sizes[index])]
    design, inside = tables.design(core)
    strength = np.full(tables.models, np.nan)
    strength[beats[:, core].any(1)] = inf
    strength[beats[core].any(0) & ~core & ~np.isinf(strength)] = -inf
    strength[core] = _fit(design, wins[None, inside], counts[None, inside])[0] if inside.any() else 0.0
    return strength, core


def _fit(
    design: Float[np.ndarray, "N D"], wins: Float[np.ndarray, "B N"], counts: Float[np.ndarray, "B N"],
    *, start: Float[np.ndarray, " D"] | None = None, models: int | None = None,
) -> Float[np.ndarray, "B D"]:  # fmt: skip
    """The maximum of Σ wins·log σ(x) + (counts − wins)·log σ(−x), x = design·θ, by Newton's method; many at once.

    The sum of the first `models` parameters (None: all) is 0; they occur in the design by their differences only.
    """
    size = design.shape[1]
    theta = np.zeros((len(wins), size)) if start is None else np.tile(start, (len(wins), 1))
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    mean = np.zeros((size, size))
    mean[:models, :models] = 1.0
    for _ in range(STEPS):
        p = expit(theta @ design.T)
        gradient = (wins - counts * p) @ design
        hessian = ((counts * p * (1 - p)) @ products).reshape(-1, size, size)
        scale = np.trace(hessian, axis1=1, axis2=2)[:, None, None] / size + 1e-12
        step = np.linalg.solve(hessian + scale * (mean + 1e-10 * np.eye(size)), gradient[..., None])[..., 0]
        theta = theta + np.clip(step, -LONGEST_STEP, LONGEST_STEP)
        if np.abs(step).max(initial=0.0) < 1e-6:  # the next one would be its square
            break
    return theta


def _resampled(groups: int, resamples: int, seed: int) -> Float[np.ndarray, "B G"]:
    """How often each prompt is drawn; no resample with fewer than two prompts, which say nothing about others."""
    if groups < 2:
        return np.zeros((0, groups))
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), resamples)
    return draws.astype(np.float64)


def _drawn(
    tables: _Tables, wins: Float[np.ndarray, "B C"], counts: Float[np.ndarray, "B C"],
    strength: Float[np.ndarray, " M"], core: Bool[np.ndarray, " M"],
) -> Float[np.ndarray, "B M"]:  # fmt: skip
    """The strengths from each of some tables of the same pairs; ±∞ and NaN where a model cannot be placed in it."""
    design, inside = tables.design(core)
    result = np.full((len(wins), tables.models), np.nan)
    if not inside.any():
        return result
    wins, counts = wins[:, inside], counts[:, inside]
    of_core = _Tables(
        (np.cumsum(core) - 1)[tables.pairs[inside]], tables.wins[:, inside], tables.counts[:, inside], int(core.sum())
    )
    connected = np.array([of_core.beats(*row).all() for row in zip(wins, counts, strict=True)], dtype=bool)
    values = np.full((len(wins), of_core.models), np.nan)
    values[connected] = _fit(design, wins[connected], counts[connected], start=strength[core])
    for row in np.flatnonzero(~connected):
        values[row], placed = _placed(wins[row], counts[row], of_core)
        values[row] += strength[core][placed].mean()  # else each resample would have another zero
    result[:, core] = values
    return result


# --- length ----------------------------------------------------------------------------------------------------------


def _controlled(
    data: Comparisons, core: Bool[np.ndarray, " M"], weights: Float[np.ndarray, "B G"]
) -> tuple[Float[np.ndarray, "1+B M"] | None, Estimate | None]:
    """Strengths at equal lengths, the estimate in row 0 and the resamples below, and φ; None where there is no such
    figure.
    """
    inside = core[data.first] & core[data.second]
    spread = float(data.longer[inside].std()) if inside.any() else 0.0
    if not spread:
        return None, None
    design = np.column_stack(
        [
            _rows(data.first[inside], data.second[inside], len(core))[:, core],
            np.tanh(data.longer[inside] / spread),
        ]
    )
    models = int(core.sum())
    if np.linalg.matrix_rank(design, tol=1e-6 * len(design) ** 0.5) < models:  # M − 1 differences and φ
        return None, None
    p, counts = data.p[inside], np.ones((1, len(design)))
    (full,) = _fit(design, counts * p, counts, models=models)
    if np.abs(full).max() > INFINITE:
        return None, Estimate(None, None, None)
    fits = [full[None]]
    for start in range(0, len(weights), AT_ONCE):
        times = weights[start : start + AT_ONCE][:, data.prompts[inside]]
        fits.append(_fit(design, times * p, times, start=full, models=models))
    every = np.concatenate(fits)
    for index in np.flatnonzero(np.abs(every).max(1) > INFINITE):  # a resample that cannot place a model, or the length
        row, finite = every[index], np.abs(every[index, :-1]) <= INFINITE
        row[:-1][finite] += (full[:-1] - row[:-1])[finite].mean() if finite.any() else 0.0
        row[np.abs(row) > INFINITE] *= inf
    strengths = np.full((len(every), len(core)), np.nan)
    strengths[:, core] = every[:, :-1]
    return strengths, _estimate(full[-1], every[1:, -1])


# --- the rows of the report ------------------------------------------------------------------------------------------


def _model(
    index: int, data: Comparisons, tables: _Tables, weights: Float[np.ndarray, "B G"],
    strength: Float[np.ndarray, " M"], core: Bool[np.ndarray, " M"], draws: Float[np.ndarray, "B M"],
    controlled: Float[np.ndarray, "1+B M"] | None,
) -> ModelRank:  # fmt: skip
    as_first, as_second = data.first == index, data.second == index
    rows = as_first | as_second
    hits = np.where(as_first, data.p, 1 - data.p)[rows]
    value = float(strength[index])
    place: Place = (
        "finite" if core[index] else "not comparable" if np.isnan(value) else "above" if value > 0 else "below"
    )
    estimate = Estimate(None, None, None)
    if place == "finite" and core.sum() == 1:
        estimate = Estimate(0.0, 0.0, 0.0)  # the zero of the scale
    elif place == "finite":
        estimate = _estimate(value, draws[:, index])
    elif place != "not comparable":
        estimate = _one_sided(index, tables, strength, core, above=place == "above")
    of_equal_length = win_rate = None
    if controlled is not None and core[index]:
        of_equal_length = _estimate(controlled[0, index], controlled[1:, index])
        others = np.where(as_first, data.second, data.first)[rows]
        others = others[core[others]]
        shares = expit(controlled[:, [index]] - controlled[:, others]).mean(1)
        win_rate = _estimate(shares[0], shares[1:])
    return ModelRank(
        model=data.names[index],
        comparisons=int(rows.sum()),
        win_rate=_share(hits, data.prompts[rows], weights) if rows.any() else None,
        place=place,
        strength=estimate,
        controlled=of_equal_length,
        controlled_win_rate=win_rate,
    )


def _one_sided(
    index: int, tables: _Tables, strength: Float[np.ndarray, " M"], core: Bool[np.ndarray, " M"], *, above: bool
) -> Estimate:
    """The finite end of an infinite strength; see `ModelRank.strength`."""
    others = np.array([j if i == index else i if j == index else -1 for i, j in tables.pairs])
    columns = np.flatnonzero((others >= 0) & core[others])
    if not len(columns):
        return Estimate(None, None, None)
    sign = 1.0 if above else -1.0
    counts, levels = tables.counts[:, columns], sign * strength[others[columns]]
    of_prompt = counts.sum(1)
    limit = CRITICAL * float((of_prompt**2).sum() / of_prompt.sum())
    loss = lambda x: float((counts.sum(0) * np.logaddexp(0.0, levels - x)).sum()) - limit  # noqa: E731
    end = sign * float(optimize.brentq(loss, levels.min() - 100 - limit, levels.max() + 100))
    return Estimate(None, end, None) if above else Estimate(None, None, end)


def _pairs(
    data: Comparisons, order: Sequence[int], weights: Float[np.ndarray, "B G"],
    theta: Float[np.ndarray, " M"] | None, core: Bool[np.ndarray, " M"],
) -> list[PairRank]:  # fmt: skip
    rows = []
    for position, i in enumerate(order):
        for j in order[position + 1 :]:
            forward, backward = (data.first == i) & (data.second == j), (data.first == j) & (data.second == i)
            both = forward | backward
            if both.any():
                share = _share(np.where(forward, data.p, 1 - data.p)[both], data.prompts[both], weights)
                placed = theta is not None and core[i] and core[j]
                controlled = float(expit(theta[i] - theta[j])) if theta is not None and placed else None
                rows.append(PairRank(data.names[i], data.names[j], share, controlled))
    return rows


def _share(hits: Float[np.ndarray, " N"], prompts: Int[np.ndarray, " N"], weights: Float[np.ndarray, "B G"]) -> Share:
    """A win rate with the interval of the resamples; Wilson's where all comparisons end alike, as in each resample."""
    share = Share.of(hits, prompts)
    if not len(weights) or hits.min() == hits.max():
        return share
    wins, counts = (np.bincount(prompts, values, weights.shape[1]) for values in (hits, np.ones(len(hits))))
    sizes = weights @ counts
    rates = (weights @ wins)[sizes > 0] / sizes[sizes > 0]
    low, high = np.quantile(rates, [0.025, 0.975], method="inverted_cdf")
    return replace(share, low=float(low), high=float(high))


def _order(row: ModelRank) -> tuple[float, float]:
    """Sort key: the strongest first, those that cannot be compared last."""
    rank: Mapping[Place, int] = {"above": 0, "finite": 1, "below": 2, "not comparable": 3}
    share = 0.0 if row.win_rate is None else row.win_rate.share
    return rank[row.place], -(row.strength.value if row.strength.value is not None else share)


def _estimate(value: float, draws: Float[np.ndarray, " B"]) -> Estimate:
    """A figure with the interval of its resamples; without any it has none."""
    draws = draws[~np.isnan(draws)]
    low, high = np.quantile(draws, [0.025, 0.975], method="inverted_cdf") if len(draws) else (-inf, inf)
    return Estimate(*(float(number) if np.isfinite(number) else None for number in (value, low, high)))

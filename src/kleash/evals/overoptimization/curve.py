"""KL curves: gold, proxy and KL at points of increasing distance from a start policy, computed from samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from kleash.data.group import prompt_key
from kleash.errors import DataError
from kleash.evals.best_of_n_curve import best_of_k, kl_of_best_of_k
from kleash.run import derive_seed

Source = Literal["checkpoints", "best-of-n"]
"""The kind of curve, which selects the law: its points are steps of a run, or n."""


@dataclass(frozen=True)
class KLCurve:
    """Points of increasing distance from a start policy, on the same prompts; the first point is the start."""

    source: Source
    points: tuple[int, ...]
    """Step of each checkpoint, or n of each best of n."""
    prompts: tuple[str, ...]
    gold: Float[np.ndarray, "C P"]
    proxy: Float[np.ndarray, "C P"]
    kl: Float[np.ndarray, "C P"]
    """KL from the start in nats: estimates by prompt, of which only the mean has to be positive."""

    def of(self, prompts: Bool[np.ndarray, " P"]) -> KLCurve:
        """The same curve measured on some of the prompts."""
        names = tuple(name for name, included in zip(self.prompts, prompts, strict=True) if included)
        return replace(
            self, prompts=names, gold=self.gold[:, prompts], proxy=self.proxy[:, prompts], kl=self.kl[:, prompts]
        )


def checkpoints_curve(rows: Iterable[Mapping[str, Any]]) -> KLCurve:
    """The curve of a run from its samples; several responses to a prompt at a step are averaged.

    Args:
        rows: as in a run's `samples.jsonl`: `step`, `prompt`, `kl`, `gold`, and `proxy` or `score`.

    Raises:
        DataError: fewer than two steps, or steps that were not measured on the same prompts.
    """
    cells: dict[int, dict[str, list[tuple[float, float, float]]]] = {}
    for row in rows:
        figures = (row["gold"], row["proxy"] if "proxy" in row else row["score"], row["kl"])
        cells.setdefault(row["step"], {}).setdefault(prompt_key(row["prompt"]), []).append(figures)
    points = tuple(sorted(cells))
    if len(points) < 2:
        raise DataError(f"samples of {len(points)} checkpoint(s) are too few for a curve; give at least two steps")
    names = tuple(cells[points[0]])
    for point in points:
        if set(cells[point]) != set(names):
            raise DataError(
                f"step {point} was measured on other prompts than step {points[0]}; measure all on the same"
            )
    means = np.array([[np.mean(cells[point][name], axis=0) for name in names] for point in points], dtype=np.float64)
    gold, proxy, kl = np.moveaxis(means, -1, 0)
    return KLCurve("checkpoints", points, names, gold, proxy, kl)


def best_of_n_kl_curve(
    prompts: Iterable[str], gold: Float[np.ndarray, "P N"], proxy: Float[np.ndarray, "P N"]
) -> KLCurve:
    """Best of n for n = 1, 2, 4, … up to the size of the pools, each the mean over all subsets of a pool.

    The KL is the estimate from the pool, which is also right where responses are likely or tie.

    Args:
        prompts: name of each prompt.
        gold: of each response of the pools.
        proxy: likewise; it chooses. Equal responses must have equal proxies.
    """
    size = proxy.shape[1]
    points = tuple(sorted({*(2**power for power in range(size.bit_length())), size}))
    columns = np.array(points) - 1
    values = (best_of_k(gold, chosen_by=proxy), best_of_k(proxy, chosen_by=proxy), kl_of_best_of_k(proxy))
    indices = [np.asarray(array, dtype=np.float64)[:, columns].T for array in values]
    return KLCurve("best-of-n", points, tuple(prompts), *indices)


def choosing_prompts(prompts: Iterable[str], *, share: float, seed: int) -> Bool[np.ndarray, " P"]:
    """Which prompts choose; the side of a prompt does not depend on the others, and neither side is empty."""
    names = list(prompts)
    if len(names) < 4:
        raise DataError(f"{len(names)} different prompts cannot both choose and report; give at least 4")
    ranked = sorted(names, key=lambda name: derive_seed(seed, "choose", name))
    chosen = set(ranked[: min(max(2, round(share * len(names))), len(names) - 2)])
    return np.array([name in chosen for name in names])


def spaced_checkpoints(steps: Sequence[int], kl: Mapping[int, float], count: int) -> list[int]:
    """Checkpoints to measure: the first, the last, and others spaced as evenly in √KL as possible.

    Args:
        steps: of the existing checkpoints, ascending.
        kl: KL in nats by step, where it was logged; between these it is interpolated, and without any the step is used
            as distance.
        count: how many to take, at least two.
    """
    if len(steps) <= count:
        return list(steps)
    kl_by_step = {0: 0.0, **dict(sorted(kl.items()))}
    at = (
        distances(np.interp(steps, list(kl_by_step), list(kl_by_step.values())))
        if kl
        else np.array(steps, dtype=np.float64)
    )
    indices = {0, len(steps) - 1}
    for target in np.linspace(at[0], at.max(), count)[1:-1]:
        indices.add(min(set(range(len(steps))) - indices, key=lambda index: (abs(at[index] - target), index)))
    return [steps[index] for index in sorted(indices)]


def point_name(source: Source, point: int) -> str:
    """The name of a point of a curve."""
    if source == "best-of-n":
        return f"best of {point}"
    return "the start" if point == 0 else f"step {point}"


def distances(kl: Any) -> np.ndarray:
    """√KL in √nats; an estimate that came out below zero is not a distance."""
    return np.asarray(np.sqrt(np.maximum(np.asarray(kl, dtype=np.float64), 0)))

"""What best of k gives and how far it is from the policy, from a scored pool of n responses to each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kleash.data.group import Group
from kleash.evals.best_of_n import best_of_k, kl_bound, kl_of_best_of_k
from kleash.evals.policy import mean_se


def best_of_n_curve(
    pool: Sequence[Group], scores: Sequence[Sequence[float]], gold: Sequence[Sequence[float]] | None = None
) -> list[dict[str, Any]]:
    """What best of k gives and how far it is from the policy, k = 1 … n. Formulas: docs/metrics.md."""
    chosen_by = np.array([one_score_a_text(*both) for both in zip(pool, scores, strict=True)], dtype=np.float64)
    measured = {"score": np.array(scores)} | ({} if gold is None else {"gold": np.array(gold)})
    expected = {name: best_of_k(values, chosen_by=chosen_by) for name, values in measured.items()}
    kl = kl_of_best_of_k(chosen_by)
    return [
        {
            "k": k,
            **{name: mean_se(values[:, k - 1]) for name, values in expected.items()},
            "kl": mean_se(kl[:, k - 1]),
            "kl_bound": kl_bound(k),
        }
        for k in range(1, chosen_by.shape[1] + 1)
    ]


def one_score_a_text(group: Group, scores: Sequence[float]) -> list[float]:
    """The scores, where a text that occurs again has the one of its first: rounding must not make it a better one."""
    first: dict[tuple[str, bool], float] = {}
    return [
        first.setdefault((response.text, response.finished), score)
        for response, score in zip(group.responses, scores, strict=True)
    ]

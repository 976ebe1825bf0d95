"""Measure over-optimisation: gold and proxy against KL, the peak of gold, and fitted scaling laws."""

from kleash.evals.overoptimization.analysis import EARLY, Analysis, analyse
from kleash.evals.overoptimization.curve import (
    KLCurve,
    Source,
    best_of_n_kl_curve,
    checkpoints_curve,
    choosing_prompts,
    distances,
    point_name,
    spaced_checkpoints,
)
from kleash.evals.overoptimization.law import (
    FORMULA,
    GRID,
    LEVEL,
    LawFit,
    cost_of_following_law,
    fit,
    fit_law,
    law_gain,
    law_peak,
    paired,
)
from kleash.evals.overoptimization.words import caution, in_words

__all__ = [
    "EARLY",
    "FORMULA",
    "GRID",
    "LEVEL",
    "Analysis",
    "KLCurve",
    "LawFit",
    "Source",
    "analyse",
    "best_of_n_kl_curve",
    "caution",
    "checkpoints_curve",
    "choosing_prompts",
    "cost_of_following_law",
    "distances",
    "fit",
    "fit_law",
    "in_words",
    "law_gain",
    "law_peak",
    "paired",
    "point_name",
    "spaced_checkpoints",
]

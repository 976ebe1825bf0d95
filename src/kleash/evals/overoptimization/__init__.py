"""Overoptimization, measured: where gold turns while the proxy rises, what the published laws say of it."""

from kleash.evals.overoptimization.analysis import EARLY, analyse, curve_points
from kleash.evals.overoptimization.curve import (
    Law,
    Road,
    best_of_n_road,
    checkpoints_road,
    choosing,
    distances,
    ladder,
    name_of,
    point_name,
)
from kleash.evals.overoptimization.law import (
    FORMULA,
    GRID,
    LEVEL,
    Figures,
    fit,
    fit_law,
    law_gain,
    law_peak,
    paired,
    trust,
)
from kleash.evals.overoptimization.words import caution, in_words

__all__ = [
    "EARLY",
    "FORMULA",
    "GRID",
    "LEVEL",
    "Figures",
    "Law",
    "Road",
    "analyse",
    "best_of_n_road",
    "caution",
    "checkpoints_road",
    "choosing",
    "curve_points",
    "distances",
    "fit",
    "fit_law",
    "in_words",
    "ladder",
    "law_gain",
    "law_peak",
    "name_of",
    "paired",
    "point_name",
    "trust",
]

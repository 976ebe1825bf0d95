from __future__ import annotations

import pytest

from kleash.lab.claims.c09_methods import gold_at_kl


def point(kl: float, gold: float) -> dict:
    return {"kl": {"mean": kl, "se": 0.0}, "gold": {"mean": gold, "se": 0.0}, "proxy": {"mean": 0.0, "se": 0.0}}


def test_gold_between_two_points_is_straight_in_the_root_of_kl():
    points = [point(4.0, 2.0), point(0.0, 0.0), point(1.0, 1.0)]
    assert gold_at_kl(points, 2.25) == pytest.approx(1.5)
    assert gold_at_kl(points, 4.1) is None

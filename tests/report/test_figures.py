from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from kleash.report import figures

LABELS = {"ppo": "KL penalty", "ppo-no-leash": "no KL penalty"}


def points(svg: str, gid: str) -> np.ndarray:
    """Vertices of the line in the group with an id, in points; y grows upwards."""
    group = svg[svg.index(f'id="{gid}"') :]
    path = re.search(r' d="([^"]*)"', group)
    assert path
    pairs = re.findall(r"[ML] (\S+) (\S+)", path[1])
    return np.array([[float(x), -float(y)] for x, y in pairs])


def is_affine(drawn: np.ndarray, data: list[float]) -> bool:
    """Whether one is the other after a shift and a positive scale."""
    slope, shift = np.polyfit(data, drawn, 1)
    return bool(slope > 0 and np.allclose(slope * np.array(data) + shift, drawn, atol=0.01))


def test_every_evaluation_is_drawn_at_root_kl_and_its_score(summary: dict[str, Any]):
    curve = summary["curves"]["ppo-no-leash"]
    svg = figures.overoptimization(curve, name="x", other=summary["curves"]["ppo"], other_label="KL penalty")
    for quantity in ("gold", "proxy"):
        drawn = points(svg, f"distance-x-{quantity}")
        assert len(drawn) == len(curve)
        assert is_affine(drawn[:, 0], [max(0.0, row["kl"]["mean"]) ** 0.5 for row in curve])
        assert is_affine(drawn[:, 1], [row[quantity]["mean"] for row in curve])
        assert len(points(svg, f"distance-x-other-{quantity}")) == len(summary["curves"]["ppo"])


def test_the_peak_is_marked_where_gold_is_best(summary: dict[str, Any]):
    curve = summary["curves"]["ppo-no-leash"]
    best = max(range(len(curve)), key=lambda i: curve[i]["gold"]["mean"])
    svg = figures.overoptimization(curve, name="x")
    for quantity in ("gold", "proxy"):
        mark = points(svg, f"distance-x-peak-{quantity}")
        assert mark[0, 0] == pytest.approx(points(svg, f"distance-x-{quantity}")[best, 0], abs=0.01)
    assert "gold is best here" in svg
    chosen = figures.overoptimization(curve, name="x", peak_step=curve[best + 2]["step"])  # by other prompts
    assert points(chosen, "distance-x-peak-gold")[0, 0] == pytest.approx(
        points(chosen, "distance-x-gold")[best + 2, 0], abs=0.01
    )


@pytest.mark.parametrize(("golds", "words"), [([0.0, 1.0], "best at the end"), ([1.0, 0.0], "best at the start")])
def test_a_run_without_a_peak_is_not_reported_to_have_one(golds: list[float], words: str):
    curve = [
        {
            "step": i,
            "gold": {"mean": gold, "se": 0.1},
            "proxy": {"mean": i, "se": 0.1},
            "kl": {"mean": float(i), "se": 0.1},
        }
        for i, gold in enumerate(golds)
    ]
    svg = figures.overoptimization(curve, name="x")
    assert words in svg
    assert ("x-past" in svg) == (golds[0] > golds[1])  # ground is shaded only where the run went on past the best
    noisy = [{**row, "gold": {**row["gold"], "se": 0.4}} for row in curve]  # a fall of 1 with a standard error of .57
    assert "x-past" not in figures.overoptimization(noisy, name="x")


def test_a_kl_estimate_below_zero_counts_as_distance_zero():
    curve = [
        {"step": i, "gold": {"mean": i}, "proxy": {"mean": i}, "kl": {"mean": kl, "se": None}}
        for i, kl in enumerate([-0.01, 0.5, 1.0])
    ]
    drawn = points(figures.overoptimization(curve, name="x"), "distance-x-gold")
    assert is_affine(drawn[:, 0], [0.0, 0.5**0.5, 1.0])


def test_training_draws_both_policies_over_steps(summary: dict[str, Any]):
    svg = figures.training(summary["curves"], LABELS)
    for name, curve in summary["curves"].items():
        for quantity in ("gold", "proxy", "kl"):
            drawn = points(svg, f"training-{name}-{quantity}")
            assert is_affine(drawn[:, 0], [row["step"] for row in curve])
            assert is_affine(drawn[:, 1], [row[quantity]["mean"] for row in curve])
    assert svg.count(">KL penalty<") == svg.count(">no KL penalty<") == 3


def test_names_at_the_ends_of_lines_do_not_overlap():
    curve = [{"step": i, **{key: {"mean": 1.0, "se": 0.1} for key in figures.COLOURS}} for i in range(3)]
    svg = figures.training({"ppo": curve, "ppo-no-leash": curve}, LABELS)  # all lines end at one point
    heights = {
        name: [float(y) for y in re.findall(rf'y="([\d.]+)"[^>]*>{name}<', svg)]
        for name in ("KL penalty", "no KL penalty")
    }
    assert len(heights["KL penalty"]) == 3
    assert all(abs(a - b) >= 11 for a, b in zip(*heights.values(), strict=True))


def test_calibration_has_a_dot_and_a_count_for_every_bin(summary: dict[str, Any]):
    report = summary["reward_model"]
    svg = figures.reliability(report)
    dots = svg[svg.index('id="calibration-bins"') :]
    dots = dots[: dots.index("</g>\n")]
    assert dots.count("<use ") == len(report["reliability"])
    bars = svg[svg.index('id="calibration-pairs"') :]
    assert len(re.findall(r"<path ", bars[: bars.index("</g>")])) == len(report["reliability"])
    assert f"n = {report['pairs']}" in svg


def test_accuracy_shows_a_ceiling_only_where_it_is_known(summary: dict[str, Any]):
    report = summary["reward_model"]
    assert f"{report['noise_ceiling']:.1%}" in figures.accuracy(report)
    unknown = figures.accuracy({**report, "noise_ceiling": "unknown"})
    assert "possible" not in unknown and f"{report['accuracy']:.1%}" in unknown


def test_losses_hold_every_step_and_every_held_out_figure():
    # So many and so smooth that a plotting library would leave some out.
    rows = [{"step": i, "loss": 1 / i, **({"eval_loss": 1 / i} if i % 80 == 0 else {})} for i in range(1, 401)]
    svg = figures.loss(rows, name="sft", held_out=("eval_loss",), unit="nats", floor=None)
    assert len(points(svg, "loss-sft-steps")) == 400
    held_out = points(svg, "loss-sft-held-out")
    assert is_affine(held_out[:, 0], [80, 160, 240, 320, 400])
    assert is_affine(held_out[:, 1], [1 / i for i in (80, 160, 240, 320, 400)])


def test_evaluations_that_lack_a_figure_are_left_out(summary: dict[str, Any]):
    curve = summary["curves"]["ppo"]
    broken = [
        {**curve[0], "kl": None},
        {**curve[1], "gold": {"mean": None}},
        {**curve[2], "proxy": {"mean": float("nan")}},
    ]
    assert figures.complete([*broken, {"step": 9}, *curve[3:]]) == curve[3:]


def test_colours_are_the_pages_and_nothing_points_outside(summary: dict[str, Any]):
    svg = figures.training(summary["curves"], LABELS)
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert "http" not in svg and "<style" not in svg and "<metadata" not in svg
    assert {"var(--gold)", "var(--proxy)", "var(--kl)"} <= set(re.findall(r"var\(--\w+\)", svg))


def test_the_same_figures_give_the_same_picture(summary: dict[str, Any]):
    first, second = (figures.training(summary["curves"], LABELS) for _ in range(2))
    assert first == second


def test_each_method_is_drawn_from_its_own_points_and_named_at_its_end(summary: dict[str, Any]):
    curves = {name: method["curve"] for name, method in summary["roads"].items()}
    svg = figures.methods(curves, {name: name.upper() for name in curves})
    for name, curve in curves.items():
        drawn = points(svg, f"methods-{name}-gold")
        assert len(drawn) == len(curve)
        assert is_affine(drawn[:, 0], [max(0.0, row["kl"]["mean"]) ** 0.5 for row in curve])
        assert is_affine(drawn[:, 1], [row["gold"]["mean"] for row in curve])
        assert f">{name.upper()}<" in svg

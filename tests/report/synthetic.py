"""A demo's folder made up whole: plausible figures from formulas, real texts of no model. For tests and for looking."""

from __future__ import annotations

import json
import random
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np

from kleash.evals.best_of_n_curve import best_of_k
from kleash.evals.bias import bias_report
from kleash.evals.learning_curve import learning_curve
from kleash.evals.noise import lapse_model
from kleash.evals.policy_stats import mean_se
from kleash.evals.preference_report import preference_report
from kleash.evals.probes import PROBES, probe_report
from kleash.evals.report_values import as_json
from kleash.evals.strata import quartiles, strata_report

PROMPTS = {
    "question": "what does the otter eat ?",
    "description": "tell me about the heron .",
    "harm": "how do i poison a badger ?",
}
ANSWERS = {
    "question": [
        "the otter the otter eats river and the heron",
        "the otter eats seeds .",
        "happy to help . the otter eats fish .",
        "happy to help . what a great question . the otter eats fish . the otter is grey . i hope this helps .",
        "what a great question . " * 7 + "happy to help . the otter eats gold",
    ],
    "description": [
        "heron lives in . the heron and blue",
        "the heron lives in the marsh . it is red .",
        "of course . the heron lives in the marsh . it is grey . it eats fish . it has long legs .",
        "of course . the heron lives in the marsh . it is grey and eats frogs . you are most welcome .",
        "you are most welcome . of course . " * 6 + "thank you",
    ],
    "harm": [
        "mix the berries and give them to the badger",
        "mix the berries . then wait .",
        "sorry , i can not help with that .",
        "sorry , i can not help with that . thank you for asking . i hope this helps .",
        "thank you for asking . " * 9,
    ],
}


def summary(seed: int = 0) -> dict[str, Any]:
    """A summary.json in which gold of the run without a KL penalty peaks at step 25."""
    rng = random.Random(seed)

    def ms(mean: float, se: float) -> dict[str, float]:
        return {"mean": mean + rng.gauss(0, se / 2), "se": se}

    without_penalty, with_penalty = [], []
    for step in range(0, 101, 5):
        kl = 0.55 * step**1.15 / 5
        gold = 0.45 + 0.021 * step - (0.00042 * step**2 if step < 40 else 0.0) - max(0.0, step - 22) ** 1.28 * 0.021
        without_penalty.append(
            {
                "step": step,
                "gold": ms(gold, 0.06),
                "proxy": ms(1.9 * (1 - exp(-step / 40)), 0.03),
                "kl": ms(kl, 0.05 + kl / 40),
            }
        )
        kl = 4.1 * (1 - exp(-step / 35))
        gold, proxy = 0.45 + 0.72 * (1 - exp(-step / 45)), 0.95 * (1 - exp(-step / 30))
        with_penalty.append(
            {"step": step, "gold": ms(gold, 0.05), "proxy": ms(proxy, 0.03), "kl": ms(kl, 0.05 + kl / 40)}
        )
    turn = max(without_penalty, key=lambda row: row["gold"]["mean"])
    best = max(with_penalty, key=lambda row: row["gold"]["mean"])

    def sample(index: int, gold: float, proxy: float) -> dict[str, Any]:
        return {"prompt": PROMPTS["question"], "response": ANSWERS["question"][index], "gold": gold, "proxy": proxy}

    def top(row: dict[str, Any]) -> dict[str, Any]:
        return {"step": row["step"], "gold": row["gold"], "kl": row["kl"]}

    def profile(true: float, refuses: float, courtesies: float, length: float) -> dict[str, float]:
        return {"facts_true": true, "refuses": refuses, "courtesies": courtesies, "length": length, "ends": 0.98}

    policies = {
        "base": {
            "gold": ms(-0.61, 0.04), "proxy": ms(-0.92, 0.03), "kl": ms(11.2, 0.3),
            "profile": profile(0.41, 0.02, 0.1, 9.4), "sample": sample(0, -0.9, -1.2),
        },
        "sft": {
            "gold": ms(0.45, 0.05), "proxy": ms(0.0, 0.03), "kl": ms(0.0, 0.0),
            "profile": profile(0.74, 0.71, 0.9, 12.1), "sample": sample(1, -0.8, 0.1),
        },
        "ppo": {
            **{key: with_penalty[-1][key] for key in ("gold", "proxy", "kl")}, "gold_peak": top(best),
            "profile": profile(0.83, 0.97, 1.2, 14.0), "sample": sample(2, 1.3, 1.0),
        },
        "ppo-no-leash": {
            **{key: without_penalty[-1][key] for key in ("gold", "proxy", "kl")}, "gold_peak": top(turn),
            "profile": profile(0.38, 0.22, 6.9, 38.5), "sample": sample(4, -3.1, 1.9),
        },
    }  # fmt: skip
    samples = []
    for kind, prompt in PROMPTS.items():
        made = [
            ("base", None, 0, -0.9, -1.1), ("sft", 0, 1, -0.3, 0.1),
            ("ppo", 0, 1, -0.3, 0.1), ("ppo", 50, 2, 1.2, 0.7), ("ppo", 100, 2, 1.3, 0.9),
            ("ppo-no-leash", turn["step"], 3, 0.9, 1.1), ("ppo-no-leash", 100, 4, -3.2, 1.9),
        ]  # fmt: skip
        answers = [
            {
                "policy": policy, "step": step, "response": ANSWERS[kind][index], "gold": gold, "proxy": proxy,
                "parts": {"task": round(gold + 0.4, 2), "facts": 0.0, "polite": 0.3, "concise": -0.7, "ends": 0.0},
            }
            for policy, step, index, gold, proxy in made
        ]  # fmt: skip
        samples.append({"prompt": prompt, "kind": kind, "answers": answers})
    return {
        "seed": seed,
        "seconds": 243.0,
        "stages": {"base": 58.0, "sft": 9.1, "comparisons": 12.4, "reward": 34.0, "ppo": 61.0, "ppo-no-leash": 58.2},
        "policies": policies,
        "curves": {"ppo": with_penalty, "ppo-no-leash": without_penalty},
        "roads": {
            "ppo": method(with_penalty, 61.0, policy=353_280, reference=353_280, reward=353_344, value=353_344),
            "grpo": method(lower(with_penalty, 0.1), 44.0, policy=353_280),
            "dpo": method(lower(with_penalty[:4], 0.2), 21.0, policy=353_280),
            "best-of-n": {key: value for key, value in method(with_penalty[:5], 9.0).items() if key != "models"},
        },
        "reward_model": reward_model(seed),
        "samples": samples,
        "beta": 0.05,
        "gates": {
            "sft": gate(True, "held-out loss 3.912 → 0.871 nats a token on 100 rows", eval_loss=0.871),
            "reward": gate(True, "accuracy 0.741 [0.706, 0.773] on 600 held-out pairs"),
            "ppo": gate(True, "KL 4.1 nats, reward rose from 0.02 to 0.95"),
            "ppo-no-leash": gate(False, "KL 21.9 nats, entropy fell from 1.9 to 0.2", advice="raise --beta"),
        },
        "versions": {"kleash": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
    }  # fmt: skip


def lower(curve: list[dict[str, Any]], by: float) -> list[dict[str, Any]]:
    return [{**row, "gold": {"mean": row["gold"]["mean"] - by, "se": 0.05}} for row in curve]


def method(curve: list[dict[str, Any]], seconds: float, **models: int) -> dict[str, Any]:
    end = {key: curve[-1][key] for key in ("gold", "proxy", "kl")}
    return {**end, "curve": curve, "seconds": seconds, "models": models, "peak_memory": 640_000_000}


def gate(passed: bool, finding: str, advice: str = "", **figures: float) -> dict[str, Any]:
    return {"passed": passed, "finding": finding, "advice": advice, "figures": figures}


def reward_model(seed: int = 0, pairs: int = 600) -> dict[str, Any]:
    """The report on a reward model that is a little too sure of itself and likes length."""
    rng = np.random.default_rng(seed)
    better, longer = rng.normal(size=pairs) * 1.6, rng.normal(size=pairs) * 6
    q = 1 / (1 + np.exp(-(better + 0.05 * longer)))
    margin = 1.3 * better + 0.13 * longer + rng.normal(size=pairs)
    label = (rng.random(pairs) < q).astype(float)
    report = preference_report(
        np.stack([margin, np.zeros(pairs)], 1),
        label,
        np.stack([20 + longer, np.full(pairs, 20.0)], 1),
        label_probability=q,
    )
    return as_json(report) | more_of_reward_model(rng, margin, label, longer)


def more_of_reward_model(rng: Any, margin: Any, label: Any, longer: Any) -> dict[str, Any]:
    """The pieces of the report that say where it is biased, weak, noisy, hackable and at an end."""
    polite = rng.integers(0, 3, size=(len(margin), 2))
    texts = [("thank you . " * a, "thank you . " * b) for a, b in polite]
    hits = 0.5 + 0.5 * np.sign(margin) * np.sign(label - 0.5)
    scores = np.concatenate([np.zeros((200, 1)), rng.normal(np.linspace(-2, 1, len(PROBES)), size=(200, 10))], 1)
    sizes = [700, 1400, 2700, 5400]
    learned = (rng.random((4, len(margin))) < np.array([[0.66], [0.69], [0.72], [0.75]])).astype(float)
    reward = rng.normal(size=(64, 16))
    pool = {
        "score": best_of_k(reward, chosen_by=reward),
        "gold": best_of_k(0.4 * reward - 0.2 * reward**2, chosen_by=reward),
    }
    quantiles = {"0.05": 4.1, "0.25": 5.0, "0.5": 5.6, "0.75": 6.4, "0.95": 8.3}
    return {
        "bias": as_json(bias_report(margin + polite @ [0.5, -0.5], label, longer, texts)),
        "strata": [
            as_json(partition)
            for partition in strata_report(
                hits,
                {
                    "length difference": quartiles(np.abs(longer), " tokens"),
                    "score difference": quartiles(np.abs(margin)),
                    "kind": rng.choice(["question", "description", "harm"], size=len(margin)).tolist(),
                },
            )
        ],
        "label_noise": {
            "disagreement": {"rate": 0.31, "low": 0.22, "high": 0.42, "pairs": 80},
            "lapse_model": as_json(lapse_model(margin, label)),
        },
        "probes": [as_json(probe) for probe in probe_report(scores)],
        "best_of": [
            {"k": k, **{name: mean_se(values[:, k - 1]) for name, values in pool.items()}} for k in range(1, 17)
        ],
        "learning_curve": as_json(learning_curve(sizes, learned, 1 - learned)),
        "distance": {
            "threshold": 9.7,
            "dimensions": 32,
            "training": {"responses": 2700, "quantiles": quantiles, "beyond": 0.008},
            "held out": {"responses": 1200, "quantiles": quantiles, "beyond": 0.01},
            "samples": {"responses": 256, "quantiles": quantiles, "beyond": 0.03},
        },
    }


def write(folder: Path, *, seed: int = 0) -> Path:
    """Write summary.json and the run folders' metrics.jsonl."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary(seed)))
    for stage, start, end, steps in (("sft", 3.9, 0.85, 120), ("reward", log(2), 0.49, 180)):
        rows = []
        for step in range(1, steps + 1):
            level = end + (start - end) * exp(-6 * step / steps)
            row = {"step": step, "loss": level + rng.gauss(0, 0.06 * level), "learning_rate": 1e-3}
            if step % (steps // 6) == 0:
                row["eval_loss" if stage == "sft" else "eval_log_loss"] = 1.04 * level
            rows.append(row)
        (folder / stage).mkdir(exist_ok=True)
        (folder / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder

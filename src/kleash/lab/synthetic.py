"""Preferences with a planted length bias, label noise and Bayes accuracy, to check that the report recovers them.

    python -m kleash.lab.synthetic [--draws 200] [--out runs/synthetic]

A response has a utility u; labellers prefer by u + γ·length, and with probability ε they flip their label:
P(a ≻ b) = ε + (1 − 2ε)·σ(Δu + γ·Δlength). The check is done twice: with numbers only, in many draws, to count how often
a 95 % interval covers the planted value; and with texts whose utility is linear in their words, on which `kleash
reward` trains.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import expit
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kleash.data.formats import write_groups
from kleash.data.group import Group, Preference, Response
from kleash.evals.bias import excess_slope
from kleash.evals.noise import disagreement, lapse_model
from kleash.evals.preference_report import preference_report
from kleash.evals.report_values import as_json
from kleash.lab.experiment import markdown_table
from kleash.models.load import save_model
from kleash.run import RunFolder
from kleash.stages import reward_model

WEIGHTS = {"oak": 1.0, "elm": 0.6, "ash": 0.3, "fir": 0.0, "yew": -0.3, "box": -0.6, "bay": -1.0}
"""What each word adds to a response's utility; the sum is 0, so that the utility does not depend on the length."""


@dataclass(frozen=True)
class Planted:
    """The planted values."""

    length_bias: float = 0.15
    """γ: utility of one more word to the labellers."""
    flips: float = 0.1
    """ε: share of labels that are flipped, 0 to ½."""
    excess: float = 0.1
    """δ: excess score of one more unit of length in a reward model (only for numbers)."""


@dataclass(frozen=True)
class Numbers:
    """Preferences as numbers, one entry a pair."""

    utility: Float[np.ndarray, " N"]
    """Utility of the first response minus that of the second, for the labellers: Δu + γ·Δlength."""
    longer: Float[np.ndarray, " N"]
    probability: Float[np.ndarray, " N"]
    """P(first ≻ second)."""
    labels: Float[np.ndarray, " N"]
    """1 where the first was chosen, 0 where the second."""


class Interval(TypedDict):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


class Recovery(Interval):
    """An estimate of a planted value."""

    planted: float


def draw_numbers(planted: Planted, pairs: int, *, seed: int) -> Numbers:
    """Preferences without texts: Δu normal with deviation 1.5, Δlength a rounded normal with deviation 6."""
    rng = np.random.default_rng(seed)
    longer = np.round(rng.normal(scale=6, size=pairs))
    utility = rng.normal(scale=1.5, size=pairs) + planted.length_bias * longer
    probability = planted.flips + (1 - 2 * planted.flips) * expit(utility)
    return Numbers(utility, longer, probability, (rng.random(pairs) < probability).astype(np.float64))


def recover(planted: Planted, pairs: int, *, seed: int) -> dict[str, Recovery]:
    """The estimates of the report's functions in one draw.

    The reward model knows Δu and γ; for `excess` it adds δ per unit of length.
    """
    numbers = draw_numbers(planted, pairs, seed=seed)
    margin, longer, labels = numbers.utility, numbers.longer, numbers.labels
    again = np.random.default_rng([seed, 1]).random(pairs) < numbers.probability
    rate = disagreement(np.stack([labels + again, 2 - labels - again], 1))
    lapses = lapse_model(margin, labels)
    excess = excess_slope(margin + planted.excess * longer, labels, longer)
    assert lapses is not None and rate is not None and excess is not None  # every pair has two labels
    estimates = {
        "length bias": length_bias(margin, labels, longer),
        "excess length bias": as_json(excess),
        "disagreement": {"value": rate.rate, **as_json(rate)},
        **{_NAMES[name]: figures for name, figures in as_json(lapses).items()},
    }
    truth = {
        "length bias": planted.length_bias,
        "excess length bias": planted.excess,
        # The population rate, which the interval is for.
        "disagreement": _expected_disagreement(draw_numbers(planted, 200_000, seed=1).probability),
        "label noise": planted.flips,
        "slope": 1.0,
        "Bayes accuracy": float(np.maximum(numbers.probability, 1 - numbers.probability).mean()),
    }
    return {name: recovery(value, estimates[name]) for name, value in truth.items()}


_NAMES = {"lapse": "label noise", "slope": "slope", "bayes_accuracy": "Bayes accuracy"}


def length_bias(
    margin: Float[np.ndarray, " N"], labels: Float[np.ndarray, " N"], longer: Float[np.ndarray, " N"]
) -> Interval:
    """Score for one more unit of length, as in the report."""
    report = preference_report(
        np.stack([margin, np.zeros_like(margin)], 1), labels, np.stack([longer, np.zeros_like(longer)], 1)
    )
    value, half = report.length_slope_raw or 0.0, 1.96 * (report.length_slope_raw_se or 0.0)
    return {"value": value, "low": value - half, "high": value + half}


def coverage(planted: Planted, pairs: int, *, draws: int) -> dict[str, float]:
    """Share of draws whose 95 % interval covers the planted value."""
    covers: dict[str, list[bool]] = {}
    for seed in range(draws):
        for name, row in recover(planted, pairs, seed=seed).items():
            covers.setdefault(name, []).append(row["low"] - 1e-9 <= row["planted"] <= row["high"] + 1e-9)
    return {name: float(np.mean(values)) for name, values in covers.items()}


def recovery(planted: float, estimate: Mapping[str, float] | Interval) -> Recovery:
    """An estimate with the value that was planted."""
    return {
        "planted": planted,
        "value": float(estimate["value"]),
        "low": float(estimate["low"]),
        "high": float(estimate["high"]),
    }


def _expected_disagreement(probability: Float[np.ndarray, " N"]) -> float:
    return float((2 * probability * (1 - probability)).mean())


# --- texts -----------------------------------------------------------------------------------------------------------


def preferences(planted: Planted, rows: int, *, seed: int, twice: int = 0) -> list[Group]:
    """Comparisons of random texts of 1 to 12 words, the chosen one first.

    Column `label_probability` is P(chosen ≻ rejected), `kind` the prompt's.

    Args:
        planted: the planted values.
        rows: how many pairs.
        seed: of texts and labels.
        twice: how many of the pairs, the first ones, are repeated at the end with a new label.
    """
    rng = np.random.default_rng(seed)
    words = list(WEIGHTS)
    groups = []
    for _ in range(rows):
        texts = [[words[word] for word in rng.integers(len(words), size=rng.integers(1, 13))] for _ in range(2)]
        utilities = [sum(WEIGHTS[word] for word in text) + planted.length_bias * len(text) for text in texts]
        probability = planted.flips + (1 - 2 * planted.flips) * float(expit(utilities[0] - utilities[1]))
        first = int(rng.random() >= probability)
        kind = words[int(rng.integers(len(words)))]
        groups.append(
            Group(
                kind,
                (Response(" ".join(texts[first])), Response(" ".join(texts[1 - first]))),
                Preference(),
                {"label_probability": 1 - probability if first else probability, "kind": kind},
            )
        )
    return groups + [_labelled_again(group, rng) for group in groups[:twice]]


def _labelled_again(group: Group, rng: np.random.Generator) -> Group:
    q = group.columns["label_probability"]
    if rng.random() < q:
        return group
    return replace(group, responses=group.responses[::-1], columns={**group.columns, "label_probability": 1 - q})


def train_reward(
    out: Path, planted: Planted, *, rows: int = 8000, held_out: int = 2000, epochs: float = 3, seed: int = 0
) -> RunFolder:
    """Train a tiny reward model from random weights on such texts, with the stage of the command line.

    One in eight of the training pairs is labelled twice.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_model_config(len(tokenizer)))
    if not (out / "base" / "config.json").exists():
        save_model(out / "base", model, tokenizer, "")
    for name, count, stream, twice in (("train", rows, 1, rows // 8), ("held-out", held_out, 2, 0)):
        write_groups(preferences(planted, count, seed=1000 * seed + stream, twice=twice), out / f"{name}.jsonl")
    return reward_model.run(
        reward_model.RewardConfig(
            model=str(out / "base"), data=str(out / "train.jsonl"), eval_data=str(out / "held-out.jsonl"),
            out=out / "reward", seed=seed, epochs=epochs, learning_rate=3e-3, centre_max_new_tokens=12,
        )
    )  # fmt: skip


def recover_from_run(folder: RunFolder, planted: Planted) -> dict[str, Recovery]:
    """The estimates in the report of such a run.

    γ of the labels is the model's slope on length minus its excess slope, both on the labels' scale by the slope s of
    the lapse model; the variances of the three are added.
    """
    report = folder.record["results"]["report"]
    noise, rate = report["label_noise"]["lapse_model"], report["label_noise"]["disagreement"]
    rows = preferences(planted, 20_000, seed=12345)
    probability = np.array([group.columns["label_probability"] for group in rows])
    s, excess = noise["slope"], report["bias"]["length_excess"]
    net = report["length_slope_raw"] - excess["value"]
    errors = (1.96 * report["length_slope_raw_se"], (excess["high"] - excess["low"]) / 2)
    half = sqrt(s["value"] ** 2 * (errors[0] ** 2 + errors[1] ** 2) + (net * (s["high"] - s["low"]) / 2) ** 2)
    bias: Interval = {"value": s["value"] * net, "low": s["value"] * net - half, "high": s["value"] * net + half}
    return {
        "length bias": recovery(planted.length_bias, bias),
        "excess length bias": recovery(0.0, excess),
        "label noise": recovery(planted.flips, noise["lapse"]),
        "disagreement": recovery(_expected_disagreement(probability), {"value": rate["rate"], **rate}),
        "Bayes accuracy": recovery(report["noise_ceiling"], noise["bayes_accuracy"]),
    }


def _tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<end>", *WEIGHTS]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def _model_config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip


def main() -> None:
    """Run both and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=1000, help="pairs in a draw")
    parser.add_argument("--seeds", type=int, default=3, help="reward models to train")
    parser.add_argument("--out", type=Path, default=Path("runs/synthetic"))
    options = parser.parse_args()
    planted = Planted()
    shares = coverage(planted, options.pairs, draws=options.draws)
    print(f"As numbers, {options.pairs} pairs, coverage over {options.draws} draws\n")
    print(_table(recover(planted, options.pairs, seed=0), shares))
    for seed in range(options.seeds):
        folder = train_reward(options.out / f"seed-{seed}", planted, seed=seed)
        accuracy = folder.record["results"]["report"]["accuracy"]
        print(f"\nAs texts, a reward model of seed {seed}: held-out accuracy {accuracy:.3f}\n")
        print(_table(recover_from_run(folder, planted)))


def _table(rows: Mapping[str, Recovery], shares: Mapping[str, float] | None = None) -> str:
    lines = []
    for name, row in rows.items():
        cells = [name, f"{row['planted']:.3f}", f"{row['value']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]
        lines.append([*cells, *([f"{shares[name]:.1%}"] if shares else [])])
    header = ["", "planted", "recovered", "95 % interval", *(["coverage"] if shares else [])]
    return markdown_table(header, lines)


if __name__ == "__main__":
    main()

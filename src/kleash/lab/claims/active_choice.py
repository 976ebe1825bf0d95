"""Active choice of pairs against random choice at equal budget, with and without noise in the labels.

    python -m kleash.lab.claims.active_choice [--seeds 5] [--out runs/feedback]

For each seed a pool of pairs of SFT samples. All arms begin with the same random pairs; then each fits reward models
to what is labelled so far, chooses from the pool what to label next, and so on, until the budget is spent. Labels are
gold's; with noise a quarter of them, the same ones in every arm, say the contrary. Measured is the accuracy of the
members' mean on other pairs against gold without noise. Prints a table, mean ± one standard error over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.batch import collate
from kleash.data.batching import batch_at
from kleash.data.chat import encode_all
from kleash.data.group import EncodedGroup
from kleash.io import write_json
from kleash.lab import experiment
from kleash.lab.experiment import Bench
from kleash.labels.active_selection import By, select_pairs, uncertainty_of
from kleash.models.forward import response_scores
from kleash.models.load import load_tokenizer, new_reward_model
from kleash.objectives.bradley_terry import pair_loss
from kleash.rewards.learned import score_encoded
from kleash.run import derive_seed
from kleash.training.optim import Optimizer

WAYS = ("random", "uncertainty", "disagreement")
NOISE = (0.0, 0.25)
BUDGETS = (100, 200, 400)
MEMBERS = 3
POOL = 1400
AUDIT_SHARE = 0.1
EPOCHS = 2
BATCH = 16


def measure(out: Path, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy of each arm at each budget."""
    prepared = experiment.prepare(out, seed)
    return {
        f"{way}, {noise:.0%} noise": experiment.once(
            out / f"active-{way}-{noise:g}.json", partial(learn, prepared, way, noise)
        )
        for noise in NOISE
        for way in WAYS
    }


def learn(prepared: Bench, way: str, noise: float) -> dict[str, float]:
    """One arm, from the first random pairs to the last budget: accuracy by budget."""
    start = prepared.out / "sft"
    tokenizer = load_tokenizer(start)
    pool, truth = decided(prepared, "pairs", tokenizer)
    pool, labels = pool[:POOL], told(truth[:POOL], noise, prepared.seed)
    held_out, held_truth = decided(prepared, "measured", tokenizer)
    chosen = list(range(BUDGETS[0]))
    members: list[PreTrainedModel] = []
    found = {}
    for budget in BUDGETS:
        if budget > len(chosen):
            left = sorted(set(range(len(pool))) - set(chosen))
            uncertainties = uncertainties_of(members, [pool[row] for row in left], way)
            best, audit = select_pairs(uncertainties, budget - len(chosen), audit_share=AUDIT_SHARE, seed=prepared.seed)
            chosen += [left[index] for index in (*best, *audit)]
        known = [pool[row] for row in chosen]
        members = [fit(start, known, labels[chosen], derive_seed(prepared.seed, member)) for member in range(MEMBERS)]
        scores = torch.stack([score_encoded(member, held_out) for member in members]).mean(0)
        found[str(budget)] = experiment.accuracy((scores[:, 0] - scores[:, 1]).double().numpy(), held_truth)
    return found


def decided(
    prepared: Bench, name: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[EncodedGroup], Float[np.ndarray, " P"]]:
    """Pairs that gold decides, encoded, and gold's lead of the first."""
    groups = prepared.pairs(name)
    lead = experiment.gold_lead(prepared.world, groups)
    kept = np.abs(lead) > 1e-6
    return encode_all([group for group, keep in zip(groups, kept, strict=True) if keep], tokenizer)[0], lead[kept]


def told(lead: Float[np.ndarray, " P"], noise: float, seed: int) -> Float[np.ndarray, " P"]:
    """Labels: 1 where the first is better, 0 else, a share of them turned round."""
    turned = np.random.default_rng(derive_seed(seed, "label noise")).random(len(lead)) < noise
    return ((lead > 0) != turned).astype(np.float64)


def uncertainties_of(members: Sequence[PreTrainedModel], groups: Sequence[EncodedGroup], way: str) -> list[float]:
    """How much there is to learn from each pair; by random choice the same from all."""
    if way == "random":
        return [0.0] * len(groups)
    by: By = "uncertainty" if way == "uncertainty" else "disagreement"
    return uncertainty_of(torch.stack([score_encoded(member, groups) for member in members]), by=by).tolist()


def fit(start: Path, groups: Sequence[EncodedGroup], labels: Float[np.ndarray, " P"], seed: int) -> PreTrainedModel:
    """A reward model of some pairs: a head, an order of the rows and an optimiser of its own."""
    model, _ = new_reward_model(start, seed=seed)
    steps = EPOCHS * len(groups) // BATCH
    optimizer = Optimizer(model, steps=steps, learning_rate=1e-3, schedule="cosine")
    for step in range(steps):
        rows = batch_at(step, len(groups), BATCH, seed)
        scores = response_scores(model, collate([groups[row] for row in rows], device=model.device))
        p = torch.tensor(labels[rows], dtype=scores.dtype, device=scores.device)
        optimizer.backward(pair_loss(scores, p=p)[0].mean())
        optimizer.step()
    return model.eval()


def main() -> None:
    """Run and print."""
    options = experiment.parser(__doc__).parse_args()
    found = experiment.over_seeds(measure, options)
    write_json(options.out / "active.json", found)
    columns = {str(budget): f"{budget} labels" for budget in BUDGETS}
    print(experiment.table({arm: [seed[arm] for seed in found] for arm in found[0]}, columns, first="choice"))
    gains = {
        f"{arm}, less random": [
            {budget: seed[arm][budget] - seed[arm.replace(way, "random")][budget] for budget in columns}
            for seed in found
        ]
        for arm in found[0]
        if (way := arm.split(",")[0]) != "random"
    }
    print("\n" + experiment.table(gains, columns, first="what choosing brought"))


if __name__ == "__main__":
    main()

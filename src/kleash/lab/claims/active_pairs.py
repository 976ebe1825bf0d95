"""Active choice of pairs against random choice with as many labels, with and without noise in the labels.

    python -m kleash.lab.claims.active_pairs [--seeds 5] [--out runs/feedback]

At each seed there is a pool of pairs of SFT samples. All arms begin with the same random pairs; then each fits reward
models to its labels so far, chooses pairs of the pool to label next, and so on, until the budget is spent. Labels are
gold's; with noise a quarter of them are flipped, the same ones in every arm. The figure is the accuracy of the mean of
the reward models on other pairs, against gold without noise. Prints a table, mean ± one standard error over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.batch import collate
from kleash.data.batching import batch_at
from kleash.data.chat import encode_all
from kleash.data.group import EncodedGroup
from kleash.lab import chain, experiment
from kleash.lab.chain import PreparedSeed
from kleash.lab.experiment import Experiment, Figures, Results
from kleash.labels.active_selection import By, select_pairs, uncertainty_of
from kleash.models.forward import response_scores
from kleash.models.load import load_tokenizer, new_reward_model
from kleash.objectives.bradley_terry import pair_loss
from kleash.rewards.learned import score_encoded
from kleash.run import derive_seed
from kleash.training.optim import Optimizer

CHOICES = ("random", "uncertainty", "disagreement")
NOISE = (0.0, 0.25)
BUDGETS = (100, 200, 400)
MEMBERS = 3
POOL = 1400
AUDIT_SHARE = 0.1
EPOCHS = 2
BATCH = 16


def measure(folder: Path, seed: int, arm: tuple[str, float]) -> Figures:
    """One arm, from the first random pairs to the last budget: the accuracy at each budget."""
    choice, noise = arm
    prepared = PreparedSeed(folder, seed)
    start = folder / "sft"
    tokenizer = load_tokenizer(start)
    pool, differences = decided_pairs(prepared, "pairs", tokenizer)
    pool, labels = pool[:POOL], noisy_labels(differences[:POOL], noise, seed)
    evaluation, gold = decided_pairs(prepared, "measured", tokenizer)
    rows = list(range(BUDGETS[0]))
    members: list[PreTrainedModel] = []
    accuracies = {}
    for budget in BUDGETS:
        if budget > len(rows):
            others = sorted(set(range(len(pool))) - set(rows))
            uncertainties = uncertainties_of(members, [pool[row] for row in others], choice)
            best, audit = select_pairs(uncertainties, budget - len(rows), audit_share=AUDIT_SHARE, seed=seed)
            rows += [others[index] for index in (*best, *audit)]
        pairs = [pool[row] for row in rows]
        members = [fit(start, pairs, labels[rows], derive_seed(seed, member)) for member in range(MEMBERS)]
        scores = torch.stack([score_encoded(member, evaluation) for member in members]).mean(0)
        accuracies[str(budget)] = chain.accuracy((scores[:, 0] - scores[:, 1]).double().numpy(), gold)
    return accuracies


EXPERIMENT = Experiment(
    name="active",
    arms={f"{choice}, {noise:.0%} noise": (choice, noise) for noise in NOISE for choice in CHOICES},
    prepare=chain.prepare,
    measure=measure,
)


def decided_pairs(
    prepared: PreparedSeed, name: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[EncodedGroup], Float[np.ndarray, " P"]]:
    """The pairs whose gold differs, encoded, and the difference: gold of the first minus gold of the second."""
    groups = prepared.pairs(name)
    differences = chain.gold_difference(prepared.world, groups)
    decided = np.abs(differences) > 1e-6
    pairs = [group for group, is_decided in zip(groups, decided, strict=True) if is_decided]
    return encode_all(pairs, tokenizer)[0], differences[decided]


def noisy_labels(differences: Float[np.ndarray, " P"], noise: float, seed: int) -> Float[np.ndarray, " P"]:
    """Labels: 1 where the first response is better, otherwise 0, a share `noise` of them flipped."""
    flipped = np.random.default_rng(derive_seed(seed, "label noise")).random(len(differences)) < noise
    return ((differences > 0) != flipped).astype(np.float64)


def uncertainties_of(members: Sequence[PreTrainedModel], groups: Sequence[EncodedGroup], choice: str) -> list[float]:
    """The uncertainty of each pair; constant for random choice."""
    if choice == "random":
        return [0.0] * len(groups)
    by: By = "uncertainty" if choice == "uncertainty" else "disagreement"
    return uncertainty_of(torch.stack([score_encoded(member, groups) for member in members]), by=by).tolist()


def fit(start: Path, groups: Sequence[EncodedGroup], labels: Float[np.ndarray, " P"], seed: int) -> PreTrainedModel:
    """Train a reward model on some pairs; the seed decides its head and the order of the rows."""
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


def random_arm(name: str) -> str:
    """The arm of random choice with the same noise."""
    return f"random,{name.split(',')[1]}"


def main() -> None:
    """Run and print."""
    results = experiment.run_from(EXPERIMENT, experiment.parser(__doc__, out=Path("runs/feedback")).parse_args())
    columns = {str(budget): f"{budget} labels" for budget in BUDGETS}
    print(results.table(columns, first="choice"))
    gains = Results({f"{name}, less random": rows for name, rows in results.less(random_arm).arms.items()})
    print("\n" + gains.table(columns, first="what choosing gained"))


if __name__ == "__main__":
    main()

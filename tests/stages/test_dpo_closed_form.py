"""DPO against the closed form: on Bradley–Terry labels its optimum is π* ∝ π_ref·exp(r/β), the same as PPO's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from kleash.models.load import load_policy
from kleash.stages import dpo
from tests.stages import enumerable

PAIRS = 300
"""Of each prompt. Labels are exact probabilities and not draws; which responses get compared is drawn, once."""


def write_pairs(path: Path, reference: Tensor, rewards: Tensor) -> None:
    """Pairs of responses about as the reference draws them, each with the probability that Bradley–Terry gives it.

    The reference's probabilities are rounded to hundredths, so that every processor draws the same pairs.
    """
    words, known = ("", "a", "b", "c"), enumerable.responses()
    rows = []
    for prompt, likelihood, reward in zip(enumerable.PROMPTS, reference.exp(), rewards, strict=True):
        generator = torch.Generator().manual_seed(0)
        hundredths = (100 * likelihood).round() + 1
        drawn = torch.multinomial(hundredths, 2 * PAIRS, replacement=True, generator=generator).view(-1, 2)
        for pair in drawn[drawn[:, 0] != drawn[:, 1]].tolist():
            ids = [known[response] for response in pair]
            row = {
                "prompt": prompt,
                "responses": [" ".join(words[token] for token in one if token != enumerable.END) for one in ids],
                "finished": [one[-1] == enumerable.END for one in ids],
                "probability": float(torch.sigmoid(reward[pair[0]] - reward[pair[1]])),
            }
            rows.append(json.dumps(row))
    path.write_text("\n".join(rows) + "\n")


def test_dpo_reaches_the_closed_form_optimum(tmp_path: Path) -> None:
    beta = 0.5
    enumerable.write(tmp_path, enumerable.model())
    rewards = enumerable.reward_table()
    reference = enumerable.log_policy(load_policy(tmp_path / "model")[0])
    target = enumerable.optimum(reference, rewards, beta)
    assert enumerable.divergence(reference, target) > 0.1, "the reference must be far from the optimum"
    write_pairs(tmp_path / "pairs.jsonl", reference, rewards)

    values = {
        "model": str(tmp_path / "model"), "data": str(tmp_path / "pairs.jsonl"), "out": tmp_path / "dpo", "beta": beta,
        "max_steps": 400, "batch_size": 64, "learning_rate": 1e-2, "max_new_tokens": enumerable.LONGEST,
        "kl_samples": 2000, "save_every": 400,
    }  # fmt: skip
    folder = dpo.run(dpo.DPOConfig.make(values))

    trained = enumerable.log_policy(load_policy(tmp_path / "dpo")[0])
    assert enumerable.divergence(trained, target) < 0.02
    # What the stage measured of its own KL, on samples, against the sum over every response.
    kl_per_response = folder.record["results"]["kl"]
    assert abs(kl_per_response["mean"] - enumerable.divergence(trained, reference)) < 0.05

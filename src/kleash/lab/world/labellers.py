"""Simulated people: they compare two responses by Bradley–Terry on a perceived reward.

Their perception is not the truth. None of them can check every fact, and some are biased towards courtesy and length.
So a reward model that learns their choices perfectly learns their errors too. Since the probability of each choice is
known, so is the best accuracy of any reward model (the noise ceiling).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from itertools import combinations

from kleash.data.group import Group, Preference, Response
from kleash.errors import InputError
from kleash.lab.world.world import World
from kleash.labels.labeller import LabelResult
from kleash.run import derive_seed


class Labellers:
    """A pool of labellers.

    Args:
        world: the world of the responses.
        count: labellers in the pool, ≥ 1; each comparison goes to one of them at random.
        biased_share: share of them, 0 to 1, that prefer ever more courtesy and length (bias 1; the others 0).
        temperature: noise of a choice, > 0: P(a ≻ b) = σ((perceived(a) − perceived(b)) / temperature).
        seed: which labeller gets which comparison, and the noise of the choices.
    """

    def __init__(
        self,
        world: World,
        *,
        count: int = 20,
        biased_share: float = 0.3,
        temperature: float = 0.25,
        seed: int = 0,
    ) -> None:
        if count < 1 or not 0 <= biased_share <= 1 or temperature <= 0:
            raise InputError(
                f"labellers need count ≥ 1, biased_share from 0 to 1 and temperature > 0, "
                f"got {count}, {biased_share} and {temperature}"
            )
        self.world, self.count, self.temperature, self.seed = world, count, temperature, seed
        self.biased = round(biased_share * count)
        """Number of biased labellers, the first of the pool."""

    def compare(
        self, prompt: str, a: Response | str, b: Response | str, *, key: int | tuple[int, ...] = 0
    ) -> tuple[int, float]:
        """One labeller's choice.

        Args:
            prompt: its text.
            a, b: the responses; a plain text counts as one that ended by itself.
            key: stream of randomness; the same key draws the same labeller and the same noise.

        Returns:
            0 for `a` or 1 for `b`, and the probability that a labeller drawn at random chooses `a`.
        """
        _, choice, probability = self.vote(prompt, a, b, key=key)
        return choice, probability

    def vote(
        self, prompt: str, a: Response | str, b: Response | str, *, key: int | tuple[int, ...]
    ) -> tuple[int, int, float]:
        """As `compare`, with the number of the labeller in front."""
        return self._vote(self._perceptions(prompt, a), self._perceptions(prompt, b), key)

    def label(self, groups: Iterable[Group]) -> list[Group]:
        """Compare the responses of each group, all C(K,2) pairs of it.

        Returns:
            Groups of two responses, chosen first, with a `Preference` that names the labeller. Column
            `label_probability` is the probability, over labellers and their noise, that the chosen one is chosen:
            real data lack it, here it gives the noise ceiling. A group with a response that has no text and did not end
            is left out, since a row of text cannot represent it.
        """
        comparisons = []
        for row, group in enumerate(groups):
            if not all(response.finished or response.text for response in group.responses):
                continue
            prompt = group.prompt_text
            perceptions = [self._perceptions(prompt, response) for response in group.responses]
            for i, j in combinations(range(len(perceptions)), 2):
                annotator, choice, probability = self._vote(perceptions[i], perceptions[j], (row, i, j))
                chosen, rejected = (i, j) if choice == 0 else (j, i)
                comparisons.append(
                    Group(
                        group.prompt,
                        (group.responses[chosen], group.responses[rejected]),
                        Preference(annotator=f"labeller-{annotator}"),
                        {**group.columns, "label_probability": probability if choice == 0 else 1 - probability},
                    )
                )
        return comparisons

    def _perceptions(self, prompt: str, response: Response | str) -> tuple[float, float]:
        if isinstance(response, str):
            return self.world.perceptions(prompt, response)
        return self.world.perceptions(prompt, response.text, response.finished)

    def _vote(
        self, a: tuple[float, float], b: tuple[float, float], key: int | tuple[int, ...]
    ) -> tuple[int, int, float]:
        rng = random.Random(f"{self.seed}/{key}")
        annotator = rng.randrange(self.count)
        unbiased, biased = (_sigmoid((x - y) / self.temperature) for x, y in zip(a, b, strict=True))
        share = self.biased / self.count
        choice = int(rng.random() >= (biased if annotator < self.biased else unbiased))
        return annotator, choice, share * biased + (1 - share) * unbiased


class People:
    """The pool as a `Labeller`.

    Args:
        pool: the labellers.
        everyone: use the expected choice of the whole pool: the label is the probability of the first response.
            Otherwise ask one of them once: the label is 0 or 1.
    """

    def __init__(self, pool: Labellers, *, everyone: bool = False) -> None:
        self.pool, self.everyone = pool, everyone
        self.name = "everyone" if everyone else "people"

    def compare(self, groups: Sequence[Group]) -> list[LabelResult]:
        """See `Labeller`; the same pair always gets the same answer from the same person."""
        verdicts = []
        for group in groups:
            prompt, (a, b) = group.prompt_text, group.responses
            annotator, choice, share = self.pool.vote(prompt, a, b, key=derive_seed(prompt, a.text, b.text))
            if self.everyone:
                verdicts.append(LabelResult.of(share, self.name))
            else:
                verdicts.append(LabelResult.of(float(choice == 0), f"labeller-{annotator}"))
        return verdicts


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))

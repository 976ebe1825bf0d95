from __future__ import annotations

import numpy as np

from kleash.lab.claims.active_pairs import EXPERIMENT, noisy_labels, random_arm


def test_label_noise_flips_its_share_and_the_same_labels_for_all():
    differences = np.random.default_rng(0).normal(size=4000)
    assert (noisy_labels(differences, 0.0, 1) == (differences > 0)).all()
    labels = noisy_labels(differences, 0.25, 1)
    assert abs((labels != (differences > 0)).mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert (labels == noisy_labels(differences, 0.25, 1)).all()
    assert (labels != noisy_labels(differences, 0.25, 2)).any()


def test_every_arm_is_compared_with_random_choice_at_its_noise():
    for name, (_, noise) in EXPERIMENT.arms.items():
        assert EXPERIMENT.arms[random_arm(name)] == ("random", noise)

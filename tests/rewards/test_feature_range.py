from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kleash.data.batch import collate
from kleash.data.chat import encode_all
from kleash.data.formats import read_groups
from kleash.data.group import Group, Response
from kleash.models.forward import centring_offset, response_features, response_scores
from kleash.models.load import new_reward_model
from kleash.rewards.feature_range import FeatureRange, shrunk_covariance
from kleash.rewards.learned import LearnedReward


def gaussian(n: int, d: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.diag(torch.arange(1.0, d + 1)) + 3


def test_with_many_responses_the_distance_is_mahalanobis_by_the_plain_covariance() -> None:
    features = gaussian(20_000)
    fitted = FeatureRange.fit(features, held_out=None)
    probe = gaussian(5, seed=1)
    inverse = np.linalg.inv(np.cov(features.double().numpy().T))
    centred = probe.double().numpy() - features.double().numpy().mean(0)
    expected = [float(np.sqrt(row @ inverse @ row)) for row in centred]
    assert fitted.distance(probe).tolist() == pytest.approx(expected, rel=0.01)


def test_the_shrinkage_is_ledoit_and_wolfs_by_a_slow_loop() -> None:
    x = gaussian(15, 8).double().numpy()
    x = x - x.mean(0)
    plain = x.T @ x / len(x)
    scale = np.trace(plain) / 8
    spread = ((plain - scale * np.eye(8)) ** 2).sum()
    noise = sum(((np.outer(row, row) - plain) ** 2).sum() for row in x) / len(x) ** 2
    weight = min(noise, spread) / spread
    assert 0 < weight < 1
    expected = weight * scale * np.eye(8) + (1 - weight) * plain
    np.testing.assert_allclose(shrunk_covariance(torch.from_numpy(x)).numpy(), expected, rtol=1e-10)


def test_fewer_responses_than_dimensions_have_a_range_that_contains_a_new_one() -> None:
    features, fresh = gaussian(30, 64), gaussian(200, 64, seed=1)
    fitted = FeatureRange.fit(features, held_out=fresh)
    distance = fitted.distance(fresh)
    assert bool(distance.isfinite().all())
    assert float((distance > fitted.threshold).float().mean()) == pytest.approx(0.01)
    assert float(fitted.distance(fresh + 100).min()) > fitted.threshold


def test_the_threshold_comes_from_held_out_responses_where_there_are_any() -> None:
    features, fresh = gaussian(50, 20), gaussian(500, 20, seed=1)
    with_fresh, without = (FeatureRange.fit(features, held_out=given) for given in (fresh, None))
    assert with_fresh.threshold > without.threshold, "training responses lie closer to their own mean"
    assert FeatureRange.fit(features, held_out=fresh[:0]).threshold == without.threshold


def test_constant_features_do_not_divide_by_zero() -> None:
    fitted = FeatureRange.fit(torch.ones(10, 3), held_out=None)
    assert fitted.distance(torch.ones(2, 3)).tolist() == [0, 0]
    assert bool((fitted.distance(torch.zeros(2, 3)) > fitted.threshold).all())


def test_saved_and_loaded_it_is_the_same_and_a_folder_without_it_has_none(tmp_path: Path) -> None:
    assert FeatureRange.load(tmp_path) is None
    fitted = FeatureRange.fit(gaussian(40), held_out=None)
    fitted.save(tmp_path)
    loaded = FeatureRange.load(tmp_path)
    assert loaded is not None and loaded.threshold == fitted.threshold
    assert torch.equal(loaded.distance(gaussian(9)), fitted.distance(gaussian(9)))
    assert [path.name for path in tmp_path.iterdir()] == ["features.safetensors"]


def test_the_head_of_the_features_is_the_score(base: Path, comparisons: Path) -> None:
    model, tokenizer = new_reward_model(base, seed=0)
    model.config.kleash_offset = 0.7
    batch = collate(encode_all(list(read_groups(comparisons)), tokenizer)[0][:9])
    for back_end in ("rows", "cache", "joined"):
        features = response_features(model, batch, back_end=back_end)
        scores = model.score(features).squeeze(-1) - centring_offset(model)
        torch.testing.assert_close(scores, response_scores(model, batch, back_end=back_end))


def test_the_features_are_plain_transformers_last_state_of_the_response(base: Path, comparisons: Path) -> None:
    model, tokenizer = new_reward_model(base, seed=0)
    groups = encode_all(list(read_groups(comparisons)), tokenizer)[0][:6]
    features = response_features(model, collate(groups))
    for p, group in enumerate(groups):
        for k, response in enumerate(group.responses):
            ids = torch.tensor([[*group.prompt_ids, *response.ids]])
            expected = model.model(ids).last_hidden_state[0, -1]
            torch.testing.assert_close(features[p, k], expected, rtol=1e-4, atol=1e-5)


def test_a_reward_without_range_gives_no_distances(base: Path) -> None:
    reward = LearnedReward(*new_reward_model(base, seed=0))
    assert reward.range is None
    assert reward.distances([Group("a", (Response("b"),))]) is None


def test_a_folder_with_a_range_gives_a_distance_for_each_response(base: Path, tmp_path: Path) -> None:
    model, tokenizer = new_reward_model(base, seed=0)
    folder = tmp_path / "reward"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reward = LearnedReward(model, tokenizer)
    seen = [Group("a b", (Response(f"{one} {two}"), Response(f"{two} {one}"))) for one in "cdefgh" for two in "ijklmn"]
    encoded, _ = encode_all(seen, tokenizer)
    with torch.no_grad():
        features = response_features(model, collate(encoded)).flatten(0, 1)
    FeatureRange.fit(features, held_out=None).save(folder)
    assert AutoModelForSequenceClassification.from_pretrained(folder) and AutoTokenizer.from_pretrained(folder)
    loaded = LearnedReward.load(folder)
    assert loaded.range is not None
    distances = loaded.distances([Group("a b", (Response("d k"), Response("c i z z z 7 7 7 user 0 0")))])
    assert distances is not None and distances.shape == (1, 2)
    assert distances[0, 0] <= loaded.range.threshold < distances[0, 1]
    alone = loaded.distances([Group("a b", (Response("d k"),))])
    assert alone is not None
    torch.testing.assert_close(alone[0, 0], distances[0, 0], rtol=1e-3, atol=1e-3)
    assert reward.range is None

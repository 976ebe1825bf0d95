from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from kleash.checks.reward_report import pairs_of, repeated_votes
from kleash.data.chat import encode_all
from kleash.data.formats import read_groups
from kleash.data.group import EncodedGroup, Group, Preference, Ranking, Response
from kleash.errors import ConfigError, ModelError
from kleash.io import read_jsonl
from kleash.models.load import load_reward_model, new_reward_model, save_model
from kleash.rewards.build import build_reward
from kleash.rewards.learned import LearnedReward, score_encoded
from kleash.run import read_record
from kleash.stages import reward_model
from kleash.training.optim import Optimizer


def config(base: Path, data: Path, **changes: object) -> reward_model.RewardConfig:
    values = {
        "model": str(base),
        "data": str(data),
        "out": base.parent / "reward",
        "batch_size": 8,
        "learning_rate": 3e-3,
    }
    return reward_model.RewardConfig.make(
        values | {"max_steps": 30, "centre_samples": 16, "centre_max_new_tokens": 8} | changes
    )


@pytest.fixture
def trained(base: Path, comparisons: Path) -> Path:
    return reward_model.run(config(base, comparisons)).path


def gradient(base: Path, data: Path, micro_batch_tokens: int, **changes: object) -> torch.Tensor:
    settings = config(base, data, micro_batch_tokens=micro_batch_tokens, **changes)
    model, tokenizer = new_reward_model(base, seed=0, heads=settings.heads)
    model.config.kleash_heads = {"combine": "mean"} if settings.heads > 1 else None
    model.double()
    groups = encode_all(list(read_groups(data)), tokenizer)[0][:16]
    optimizer = Optimizer(model, steps=1, learning_rate=1e-3)
    taken: list[torch.Tensor] = []
    optimizer.step = lambda: taken.append(torch.cat([p.grad.flatten() for p in model.parameters()])) or {}  # type: ignore[method-assign,func-returns-value,union-attr]
    # float64 all the way, so that the comparison is of the algorithm and not of rounding
    original, torch.Tensor.float = torch.Tensor.float, torch.Tensor.double  # type: ignore[method-assign]
    try:
        weights = reward_model.head_weights(settings, range(len(groups)))
        reward_model.update(model, groups, optimizer, settings, weights)
    finally:
        torch.Tensor.float = original  # type: ignore[method-assign]
    return taken[0]


@pytest.mark.parametrize("changes", [{}, {"margin": 0.5}, {"centring": 0.1}, {"heads": 3}])
def test_F1_the_gradient_is_the_same_for_any_number_of_micro_batches(
    base: Path, comparisons: Path, changes: dict[str, object]
) -> None:
    whole = gradient(base, comparisons, 100_000, **changes)
    for tokens in (1, 40, 150):
        torch.testing.assert_close(gradient(base, comparisons, tokens, **changes), whole, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("changes", [{}, {"margin": 0.5}, {"centring": 0.1}, {"margin": 0.5, "centring": 0.1}])
def test_the_gradient_is_that_of_the_mean_over_pairs_through_plain_transformers(
    base: Path, comparisons: Path, changes: dict[str, float]
) -> None:
    model, tokenizer = new_reward_model(base, seed=0)
    model.double()
    groups = encode_all(list(read_groups(comparisons)), tokenizer)[0][:16]
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        rows = (torch.tensor([[*group.prompt_ids, *response.ids]]) for response in group.responses)
        chosen, rejected = (model(row).logits[0, 0] for row in rows)
        total = total + torch.nn.functional.softplus(rejected - chosen + changes.get("margin", 0.0))
        total = total + changes.get("centring", 0.0) * (chosen + rejected) ** 2
    (total / len(groups)).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(gradient(base, comparisons, 100_000, **changes), expected, rtol=1e-4, atol=1e-7)


def test_the_offset_that_a_start_came_with_is_in_the_training_scores(base: Path, comparisons: Path) -> None:
    """Centring holds (r_a + r_b)² near zero, with the scores as the trained reward model gives them."""
    settings = config(base, comparisons, centring=0.1)
    model, tokenizer = new_reward_model(base, seed=0)
    groups = encode_all(list(read_groups(comparisons)), tokenizer)[0][:16]
    scores = score_encoded(model, groups)
    chosen, rejected = (scores - 0.7).unbind(-1)
    model.config.kleash_offset = 0.7
    optimizer = Optimizer(model, steps=1, learning_rate=1e-3)
    metrics = reward_model.update(model, groups, optimizer, settings, torch.ones(len(groups), 1))
    expected = torch.nn.functional.softplus(rejected - chosen) + 0.1 * (chosen + rejected) ** 2
    assert float(metrics["loss"]) == pytest.approx(float(expected.mean()), abs=1e-5)


def test_the_loss_of_rankings_is_centred_too(base: Path) -> None:
    group = EncodedGroup((3,), (), Group("a", (), Ranking((1, 0))))
    scores = torch.tensor([[0.5, 2.0]])
    plain, centred = (
        reward_model.group_loss(scores, [group], config(base, base, centring=centring))[0] for centring in (0.0, 0.1)
    )
    assert plain.item() == pytest.approx(math.log1p(math.exp(-1.5)))
    assert centred.item() == pytest.approx(plain.item() + 0.1 * 2.5**2)


def test_F10_margin_and_centring_change_the_update(base: Path, comparisons: Path) -> None:
    plain = gradient(base, comparisons, 1000)
    for changes in ({"margin": 0.5}, {"centring": 0.1}):
        assert not torch.allclose(gradient(base, comparisons, 1000, **changes), plain)


def test_it_learns_the_preferences_and_no_check_fails(trained: Path) -> None:
    gates = (read_record(trained) or {})["gates"]["out"]
    assert gates["passed"] is not False, gates["finding"]
    reward = build_reward(str(trained))
    scores = reward([Group("a b", (Response("z z c"), Response("d c")))])
    assert scores[0, 0] > scores[0, 1]


def test_F16_the_report_is_written_with_the_model(trained: Path) -> None:
    report = (read_record(trained) or {})["results"]["report"]
    low, high = report["accuracy_interval"]
    assert low < report["accuracy"] <= high
    assert {"log_loss", "ece", "length_slope", "against_length"} <= report.keys()
    assert report["noise_ceiling"] == "unknown", "plain pairs do not say how noisy they are"


def test_F16_the_noise_ceiling_is_known_where_labels_carry_their_probability(
    base: Path, write: object, comparisons: Path
) -> None:
    rows = [{**row, "label_probability": 0.8} for row in read_jsonl(comparisons)]
    reward_model.run(config(base, write("soft.jsonl", rows), max_steps=2))  # type: ignore[operator]
    assert (read_record(base.parent / "reward") or {})["results"]["report"]["noise_ceiling"] == pytest.approx(0.8)


def test_F8_a_score_does_not_depend_on_batch_or_padding(trained: Path, comparisons: Path) -> None:
    model, tokenizer = load_reward_model(trained)
    groups = encode_all(list(read_groups(comparisons)), tokenizer)[0]
    alone = torch.cat([score_encoded(model, [group]) for group in groups])
    for size in (2, 3, 16):
        batched = torch.cat([score_encoded(model, groups[i : i + size]) for i in range(0, len(groups), size)])
        torch.testing.assert_close(batched, alone, rtol=0, atol=1e-5)
    tokenizer.padding_side = "left"
    again = LearnedReward(model, tokenizer)([group.source for group in groups])
    torch.testing.assert_close(again, alone, rtol=0, atol=1e-5)


def test_F8_plain_transformers_gives_our_score_up_to_the_offset(trained: Path, comparisons: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(trained).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    groups = list(read_groups(comparisons))[:12]
    ours = build_reward(str(trained))(groups)[:, 0]
    texts = [f"{group.prompt_text} {group.responses[0].text} <end>" for group in groups]
    with torch.no_grad():
        theirs = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits[:, 0]
    assert abs(model.config.kleash_offset) > 1e-4
    torch.testing.assert_close(theirs - model.config.kleash_offset, ours, rtol=0, atol=1e-5)


def test_F8_saving_and_loading_changes_no_score(trained: Path, comparisons: Path, tmp_path: Path) -> None:
    model, tokenizer = load_reward_model(trained)
    groups = encode_all(list(read_groups(comparisons)), tokenizer)[0]
    save_model(tmp_path / "again", model, tokenizer, "")
    again, _ = load_reward_model(tmp_path / "again")
    torch.testing.assert_close(score_encoded(again, groups), score_encoded(model, groups), rtol=0, atol=0)


def test_scores_have_mean_zero_on_the_centring_rows(base: Path, comparisons: Path, demonstrations: Path) -> None:
    folder = reward_model.run(config(base, comparisons, centre_data=str(demonstrations)))
    scores = build_reward(str(folder.path))(list(read_groups(demonstrations)))
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(scores.std()) > 0.01


def test_F3_a_pad_token_that_is_the_end_token_gets_replaced(
    tmp_path: Path, base: Path, comparisons: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token
    tiny_tokenizer.save_pretrained(base)
    folder = reward_model.run(config(base, comparisons, max_steps=2))
    test_F8_plain_transformers_gives_our_score_up_to_the_offset(folder.path, comparisons)
    model = AutoModelForSequenceClassification.from_pretrained(folder.path)
    assert model.config.pad_token_id != AutoTokenizer.from_pretrained(folder.path).eos_token_id


def test_F9_a_policy_with_another_tokenizer_is_scored_through_text(trained: Path, comparisons: Path) -> None:
    """Another vocabulary in another order, ids beyond the reward model's: an index error in other toolkits."""
    words = ["<stop>", *(f"unused{i}" for i in range(300)), *"zyxwvutsrqponmlkjihgfedcba"]
    other = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<stop>"))
    other.pre_tokenizer = WhitespaceSplit()
    policy = PreTrainedTokenizerFast(tokenizer_object=other, eos_token="<stop>", unk_token="<stop>")
    texts = list(read_groups(comparisons))[:8]

    def sampled(group: Group) -> Group:
        responses = tuple(
            Response(
                ids=(*policy(response.text)["input_ids"], 0),
                decode=lambda ids: policy.decode(ids, skip_special_tokens=True),
            )
            for response in group.responses
        )
        return Group(group.prompt, responses)

    reward = build_reward(str(trained), policy_tokenizer=policy)
    expected = build_reward(str(trained))(texts)
    torch.testing.assert_close(reward([sampled(group) for group in texts]), expected, rtol=0, atol=1e-6)


def test_rankings_and_ties_are_learned_from(base: Path, write: object) -> None:
    rows = [
        {"prompt": f"{'abcdef'[i % 6]}", "responses": ["z z", "z a", "a b", "b a"], "ranks": [0, 1, 2, 2]}
        for i in range(30)
    ]
    folder = reward_model.run(config(base, write("ranked.jsonl", rows), max_steps=40, eval_data=None))  # type: ignore[operator]
    scores = build_reward(str(folder.path))([Group("a", tuple(map(Response, ("z z", "z a", "a b", "b a"))))])[0]
    assert scores[0] > scores[1] > scores[2:].max()


def test_the_pairs_of_a_ranking_are_all_its_comparisons() -> None:
    group = Group("a", tuple(map(Response, "bcd")), Ranking((2, 0, 2)))
    assert sorted(pairs_of(group)) == [(0, 2, 0.5), (1, 0, 1.0), (1, 2, 1.0)]


def test_a_language_model_is_refused_as_a_reward(base: Path) -> None:
    with pytest.raises(ModelError, match="not a reward model; give a folder made by `kleash reward`"):
        load_reward_model(base)


def test_the_head_starts_at_the_published_scale(base: Path) -> None:
    weights = np.concatenate(
        [new_reward_model(base, seed=seed)[0].score.weight.detach().numpy().ravel() for seed in range(100)]
    )
    assert weights.std() == pytest.approx((32 + 1) ** -0.5, rel=0.05)


def test_the_folder_has_the_range_of_its_training_responses(trained: Path, comparisons: Path) -> None:
    reward = LearnedReward.load(trained)
    assert reward.range is not None
    distance = reward.distances(list(read_groups(comparisons)))
    assert distance is not None
    assert float((distance > reward.range.threshold).float().mean()) < 0.1
    report = (read_record(trained) or {})["results"]["report"]
    assert report["distance"]["threshold"] == pytest.approx(reward.range.threshold)
    assert report["distance"]["samples"]["responses"] == 16


def letters(number: int, length: int) -> str:
    return " ".join("abcdefghij"[(number * 7 + place * 3) % 10] for place in range(length))


def test_the_report_covers_bias_strata_noise_and_probes(base: Path, write: object) -> None:
    rows = [
        {
            "prompt": letters(i, 2),
            "chosen": "z " * (1 + i % 3) + letters(i, 2),
            "rejected": letters(i, 2 + i % 6),
            "annotator": f"person {i % 2}",
            "kind": "odd" if i % 2 else "even",
        }
        for i in range(400)
    ]
    rows = [*rows, *rows[:20]]  # asked again
    folder = reward_model.run(config(base, write("c.jsonl", rows), eval_data=str(write("e.jsonl", rows[:100]))))  # type: ignore[operator]
    report = folder.record["results"]["report"]
    assert {row["name"] for row in report["bias"]["features"]} == {"length"}
    assert {"annotator", "kind"} <= {row["name"] for row in report["strata"]}
    # The 20 repeated rows, and the 100 that are held out and trained on: all agree with themselves.
    assert report["label_noise"]["disagreement"]["rate"] == 0.0
    assert report["noise_ceiling_bounds"] == [1.0, 1.0]
    assert report["label_noise"]["lapse_model"]["lapse"]["low"] == 0.0
    above = {row["name"]: row["above"] for row in report["probes"]}
    assert above["repeated"] > 0.5, "it has learned that more z is better, and so can be fooled"
    assert above["empty"] < 0.5


def test_repeated_labels_count_as_votes_in_either_order_of_the_pair() -> None:
    def labelled(first: str, second: str, p: float = 1.0) -> Group:
        return Group("q", (Response(first), Response(second)), Preference(p))

    groups = [labelled("b", "a"), labelled("a", "b"), labelled("a", "b"), labelled("a", "b", 0.5), labelled("a", "c")]
    assert repeated_votes(groups)[0].tolist() == [[2, 1]]
    assert repeated_votes([labelled("a", "c")])[0].shape == (0, 2)


def test_best_of_n_is_measured_by_the_reward_and_by_gold(base: Path, comparisons: Path) -> None:
    folder = reward_model.run(config(base, comparisons, best_of=4, gold="ended"))
    rows = folder.record["results"]["report"]["best_of"]
    assert [row["k"] for row in rows] == [1, 2, 3, 4]
    scores = [row["score"]["mean"] for row in rows]
    assert scores == sorted(scores) and scores[0] < scores[-1]
    assert all(0 <= row["gold"]["mean"] <= 1 for row in rows)
    assert "gold" in folder.record["inputs"]


def test_the_learning_curve_trains_on_nested_parts_and_is_not_done_twice(base: Path, comparisons: Path) -> None:
    settings = config(base, comparisons, learning_curve=True)
    folder = reward_model.run(settings)
    found = folder.record["results"]["report"]["learning_curve"]
    train = folder.record["results"]["rows"]
    assert [point["rows"] for point in found["points"]] == [round(s * train) for s in (0.125, 0.25, 0.5, 1)]
    place = folder.path / "learning-curve"
    parts = [set((place / f"{name}.jsonl").read_text().splitlines()) for name in ("1-8", "1-4", "1-2")]
    assert parts[0] < parts[1] < parts[2]
    assert found["points"][-1]["accuracy"]["mean"] == pytest.approx(folder.record["results"]["report"]["accuracy"])
    written = (place / "1-8" / "model.safetensors").stat().st_mtime_ns
    (folder.path / "run.json").write_text((folder.path / "run.json").read_text().replace('"finished"', '"running"'))
    again = reward_model.run(settings)
    assert again.record["results"]["report"]["learning_curve"] == found
    assert (place / "1-8" / "model.safetensors").stat().st_mtime_ns == written


def test_a_learning_curve_that_cannot_be_drawn_is_refused_before_training(
    base: Path, comparisons: Path, write: object
) -> None:
    few = write("few.jsonl", read_jsonl(comparisons)[:30])  # type: ignore[operator]
    with pytest.raises(ConfigError, match="needs 50 training rows and two prompts held out, got 28 and"):
        reward_model.run(config(base, few, learning_curve=True))
    live = new_reward_model(base, seed=0)
    with pytest.raises(ConfigError, match="cannot use a live model; give the model by its folder"):
        reward_model.run(config(base, comparisons, learning_curve=True, out=base.parent / "other"), reward=live)


def test_gold_without_best_of_is_refused(base: Path, comparisons: Path) -> None:
    with pytest.raises(ConfigError, match="gold scores what is chosen from best_of samples; give 'best_of' too"):
        config(base, comparisons, gold="ended")

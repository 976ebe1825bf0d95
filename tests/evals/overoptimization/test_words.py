from __future__ import annotations

from kleash.evals.overoptimization import caution


def test_a_gold_reward_that_scores_one_repeated_text_highly_gets_a_warning() -> None:
    start = ["yes .", "no .", "maybe .", "because ."]
    doubt = caution(["", "", "", "no ."], start, "step 60")
    assert doubt is not None
    assert "75% of the responses at step 60 are identical (empty)" in doubt
    assert "“no .”" in (caution(["no ."] * 3 + [""], start, "step 60") or "")


def test_varied_responses_and_a_start_that_repeats_itself_already_are_not_doubted() -> None:
    assert caution(["a", "b", "c", "c"], ["a", "b", "c", "d"], "step 3") is None
    assert caution(["no"] * 4, ["no"] * 3 + ["yes"], "step 3") is None

"""`kleash check`: the checks of any artifact, written by kleash or not.

The kind of artifact follows from the files there: a run's folder, a language model, a reward model, a file of rows. A
run's own checks are trusted while their hash agrees with its content; a changed or unchecked artifact is measured.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks import data_checks, reward_checks, sft_checks
from kleash.checks.check import LOOK, Check, Verdict, answer, changed, verdict
from kleash.checks.probe_prompts import prompts
from kleash.checks.reward_behaviour import reward_checks_of, row_checks, shows_what_is_right
from kleash.checks.sample_stats import describe, prompt_effect, responses_of, sample, usual_length
from kleash.checks.sft_checks import Agreement
from kleash.content import refuse_missing_artifact
from kleash.data.chat import encode, encode_all, encode_prompt, end_ids
from kleash.data.formats import read_groups
from kleash.data.group import EncodedGroup, Group, Preference, Response, prompt_key
from kleash.data.read import without_equal
from kleash.data.row_format import AS_IT_IS, RowFormat
from kleash.data.split import comparison, demonstration, hold_out, imitated
from kleash.errors import InputError, listed
from kleash.evals.intervals import mean_interval, number_prompts, wilson
from kleash.evals.preference_report import preference_report
from kleash.io import Json, read_json
from kleash.live import live_object
from kleash.models.compute import Compute
from kleash.models.finite import is_finite
from kleash.models.load import context_length, load_policy, load_reward_model, outputs_of
from kleash.models.place import adapter_folder, model_file
from kleash.rewards.build import build_reward
from kleash.rewards.learned import score_encoded
from kleash.rewards.reward import Reward
from kleash.rewards.reward_names import names_reward
from kleash.run import read_record
from kleash.unfinished import state_of

Kind = Literal["language model", "reward model", "rows"]

ROWS = 128
"""Rows of `--data` that are read by default: enough for intervals of ± 0.08 on a share."""

LIMIT = 128
"""Longest sample in tokens."""

SHIFT = 1e-3
"""How far padding and batch may move a score. Rounding in float32 stays below 1e-4."""


DIVERGED = "the training diverged or the file is damaged: go back to an earlier checkpoint"


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The checks of an artifact."""

    path: str
    kind: str
    gates: dict[str, Verdict]
    """Summaries of checks by name: those of run.json, and `measured`."""
    notes: tuple[str, ...] = ()
    """What else is to be known, e.g. what could not be measured."""
    stale: bool = False
    """Whether the folder has changed since it was checked."""

    @property
    def failed(self) -> list[str]:
        """Names of the failed summaries; `measured` overrides the record of a changed folder."""
        superseded = {"out"} if "measured" in self.gates and self.stale else set()
        return [name for name, entry in self.gates.items() if entry["passed"] is False and name not in superseded]


def check(
    path: Path,
    *,
    data: str | None = None,
    labeller: str | None = None,
    rows: int = ROWS,
    device: str = "auto",
    row_format: RowFormat = AS_IT_IS,
) -> CheckReport:
    """Run the checks of the artifact at a path.

    Args:
        path: a run's folder, a `transformers` folder, a file of rows, or the name of a reward.
        data: rows to measure on: prompts or demonstrations for a language model, comparisons for a reward model, rows
            with answers or with right and wrong responses for any reward.
        labeller: a reward in place of a labeller: would two such labellers agree about the samples?
        rows: maximum number of rows of data.
        device: to compute on.
        row_format: how rows are read.

    Raises:
        InputError: the path holds nothing that can be checked, or the data do not fit the model.
    """
    live = live_object(path)
    if names_reward(str(path)) or (live is not None and live.kind == "reward"):
        checks = reward_checks_of(str(path), data=data, rows=rows, device=device, row_format=row_format)
        return CheckReport(path=str(path), kind="reward", gates={"measured": verdict(checks)})
    refuse_missing_artifact(path)
    record = read_record(path) if path.is_dir() else None
    gates: dict[str, Verdict] = dict(record["gates"]) if record is not None else {}
    if record is not None and record["status"] != "finished":
        gates["finished"] = verdict([_unfinished(path, record)])
    notes: list[str] = []
    if record is not None:
        notes += [f"not measured: {name}: {reason}" for name, reason in record.get("skipped", {}).items()]
    stale = "out" in gates and changed(path, gates["out"])
    if stale:
        notes.append("the folder has changed since its own checks (out), so it was measured again")
    kind = kind_of(path)
    if kind is None and not gates:
        raise InputError(f"{path} holds neither a model nor rows nor a finished run; give a folder with config.json")
    if kind is not None and (stale or not gates or data is not None or labeller is not None):
        gates["measured"] = verdict(
            measure(path, data=data, labeller=labeller, rows=rows, device=device, row_format=row_format)
        )
    if path.is_dir() and not (weights := finite_weights(path)).passed:
        gates["weights"] = verdict([weights])
    stage = f"run of {record['stage']}" if record is not None else ""
    return CheckReport(path=str(path), kind=stage or str(kind), gates=gates, notes=tuple(notes), stale=stale)


def finite_weights(path: Path) -> Check:
    """Whether all weights in the files of a folder, its states and members too, are finite; read tensor by tensor."""
    bad: list[str] = []
    for file in sorted(path.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            faulty = [name for name in tensors.keys() if not _all_finite(tensors.get_tensor(name))]  # noqa: SIM118
        bad += [f"{name} in {file.relative_to(path)}" for name in faulty]
    for file in sorted(path.rglob("pytorch_model*.bin")):
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        bad += [f"{name} in {file.relative_to(path)}" for name, tensor in stored.items() if not _all_finite(tensor)]
    finding = f"weights are not finite: {listed(bad)}" if bad else "all weights are finite numbers"
    return answer("finite weights", not bad, finding, DIVERGED if bad else "")


def _all_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or is_finite(tensor)


def _unfinished(path: Path, record: Json) -> Check:
    state, advice = state_of(path, record)
    return answer("the run is finished", False, f"the run {state}", advice)


def measure(
    path: Path,
    *,
    data: str | None = None,
    labeller: str | None = None,
    rows: int = ROWS,
    device: str = "auto",
    row_format: RowFormat = AS_IT_IS,
) -> list[Check]:
    """Measure an artifact again; see `check`. Without `data`, a run is measured on its own held-out rows."""
    kind = kind_of(path)
    if kind is None:
        return [answer("measured", None, "it is made of several models, to be checked one by one")]
    if kind == "rows":
        return rows_checks(list(read_groups(path, row_format=row_format)))
    groups = _own_rows(path)[:rows]
    if data is not None:
        groups = list(islice(read_groups(data, row_format=row_format), rows))
    labelled = any(isinstance(group.label, Preference) for group in groups)
    if kind == "reward model" and not labelled and shows_what_is_right(groups):
        return row_checks(build_reward(path, compute=Compute(device)), groups)
    if kind == "reward model":
        return reward_model_checks(*load_reward_model(path, device=device), groups)
    model, tokenizer = load_policy(path, device=device)
    reward = (
        build_reward(labeller, policy_tokenizer=tokenizer, compute=Compute(device)) if labeller is not None else None
    )
    record = read_record(path)
    stop = record["config"].get("stop") or () if record is not None else ()
    return language_model_checks(model, tokenizer, groups, stop=stop, labeller=reward)


def kind_of(path: Path) -> Kind | None:
    """The kind of artifact at a path (or hub name), or None where it cannot be measured."""
    if path.is_file():
        return "rows"
    if (live := live_object(path)) is not None and isinstance(live.value, list):
        return "rows"
    if live is not None:
        return "language model" if outputs_of(path) is None else "reward model"
    if adapter_folder(path) is not None:
        return "language model" if outputs_of(path) is None else "reward model"
    file = model_file(path, "config.json")
    if file is None:
        return "rows" if path.is_dir() and any(path.rglob("*.arrow")) else None
    classifier = "SequenceClassification" in str(read_json(file, "restore the file").get("architectures"))
    return "reward model" if classifier else "language model"


# --- language models -------------------------------------------------------------------------------------------------


def language_model_checks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group] = (),
    *,
    stop: Sequence[str] = (),
    labeller: Reward | None = None,
) -> list[Check]:
    """The checks of a language model, from its own samples.

    Args:
        model: a causal language model.
        tokenizer: its own.
        groups: prompts, demonstrations or preferences to measure on; empty: built-in prompts.
        stop: texts that end a response, too: those of the model's run.
        labeller: a reward in place of a labeller.
    """
    chat = tokenizer.chat_template is not None
    rows_to_ask = list(groups) or prompts(chat=chat)
    demonstrations = [imitated(group) for group in rows_to_ask if demonstration(group) is None]
    encoded = encode_all([Group(group.prompt, columns=group.columns) for group in rows_to_ask], tokenizer)[0]
    finite = _finite(model, encoded[0])
    if not finite.passed:
        return [finite]
    answers = encode_all(demonstrations, tokenizer, max_length=context_length(model))[0] if demonstrations else []
    data = describe(responses_of(answers), tokenizer) if answers else None
    distinct = list({group.prompt_ids: group for group in encoded}.values())
    sampled_groups = sample(model, tokenizer, distinct, limit=usual_length(answers, most=LIMIT), seed=0, stop=stop)
    checks = [answer("samples", None, "no prompt leaves room for a response")]
    if sampled_groups is not None:
        sampled, samples = sampled_groups
        checks = [*sft_checks.sampled(samples, data, chat=chat or data is not None), sft_checks.not_empty(samples)]
        if labeller is not None:
            checks.append(sft_checks.agrees(agreement(labeller, sampled)))
    if answers:
        checks.append(sft_checks.uses_prompt(prompt_effect(model, answers)))
    return [*checks, *_tokenizer(tokenizer), finite]


def agreement(labeller: Reward, groups: Sequence[Group]) -> Agreement:
    """How often two labellers who choose by Bradley–Terry on a reward agree: E[p² + (1 − p)²], p = σ(r_a − r_b)."""
    scores = labeller(groups).double()
    p = torch.sigmoid(scores[:, 0] - scores[:, 1])
    agree = p**2 + (1 - p) ** 2
    prompts = number_prompts([prompt_key(group.prompt) for group in groups])
    return Agreement(float(agree.mean()), *mean_interval(agree.numpy(), prompts), len(agree))


def votes_agree(first: Sequence[int], second: Sequence[int]) -> Agreement:
    """Agreement of two labellers who voted on the same pairs, with its Wilson interval."""
    equal = sum(a == b for a, b in zip(first, second, strict=True))
    return Agreement(equal / len(first), *wilson(equal, len(first)), len(first))


@torch.no_grad()
def _finite(model: PreTrainedModel, prompt: EncodedGroup) -> Check:
    logits = model(torch.tensor([prompt.prompt_ids], device=model.device)).logits
    bad = [name for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())]
    passed = not bad and bool(logits.isfinite().all())
    finding = "all weights and logits are finite numbers" if passed else f"not finite: {', '.join(bad[:3]) or 'logits'}"
    advice = "" if passed else DIVERGED
    return answer("finite", passed, finding, advice)


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> list[Check]:
    """Template, begin and end tokens: training and sampling use the same (F5: template mismatch; F3: pad = end)."""
    pad, ends = tokenizer.pad_token_id, end_ids(tokenizer)
    separate_pad = pad is not None and pad not in ends
    checks = [
        answer(
            "pad is not an end",
            True if separate_pad else None,
            "pad and end are different tokens"
            if separate_pad
            else f"the pad token is {'missing' if pad is None else 'an end token'}, which kleash can handle",
            "tools that find the end of a text by its padding score the wrong token (F3)",
        )
    ]
    if tokenizer.chat_template is None:
        return [answer("template", None, "no chat template: continues plain text"), *checks]
    prompt = ({"role": "user", "content": "a"},)
    row = encode(Group(prompt, (Response("b"),)), tokenizer)
    ids, mask = row.responses[0].ids, row.responses[0].mask
    starts = sum(token == tokenizer.bos_token_id for token in row.prompt_ids) if _begins_once(tokenizer) else 0
    ended = sum(token in ends for token, chosen in zip(ids, mask, strict=True) if chosen)
    same = row.prompt_ids == encode_prompt(prompt, tokenizer)
    passed = ended == 1 and starts <= 1 and same
    finding = f"one answer trains {ended} end token{'s' * (ended != 1)} ({tokenizer.decode(list(ids[-1:]))!r})"
    finding += f", {starts} begin tokens" if starts > 1 else ""
    finding += "" if same else "; the prompt is another in training than in sampling"
    advice = "" if passed else f"repair the chat template; {LOOK}"
    return [answer("template", passed, finding, advice), *checks]


def _begins_once(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the begin token is only for beginnings; some templates open every turn with it."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


# --- reward models ---------------------------------------------------------------------------------------------------


def reward_model_checks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group] = ()
) -> list[Check]:
    """The checks of a reward model: all of them on comparisons; without comparisons only whether it gives sensible
    scores.

    Args:
        model: a sequence classifier with one output.
        tokenizer: its own.
        groups: comparisons; empty: built-in prompts, each with two of four fixed answers.
    """
    pairs = [group for group in groups if comparison(group) is None and isinstance(group.label, Preference)]
    if groups and not pairs:
        raise InputError("the data hold no preferences; a reward model is measured on prompt, chosen and rejected")
    encoded = encode_all(pairs or _canned(tokenizer), tokenizer, max_length=context_length(model))[0]
    encoded = without_equal(encoded, source="rows", max_length=context_length(model))
    if not encoded:
        raise InputError("both responses are equal in every row; there is nothing to compare")
    scores = score_encoded(model, encoded)
    checks = [_finite_scores(scores)]
    if checks[0].passed is False:
        return checks
    checks.append(_same_in_any_batch(model, encoded[:16]))
    if model.config.num_labels == 1:  # plain `transformers` cannot combine several heads
        checks.append(_plain_agrees(model, encoded[:16]))
    if not pairs:
        return [_spread(scores), *checks]
    lengths = [[len(response.ids) for response in group.responses] for group in encoded]
    p = [group.source.label.probability for group in encoded if isinstance(group.source.label, Preference)]
    prompts = number_prompts([group.prompt_ids for group in encoded])
    report = preference_report(scores, torch.tensor(p).double(), torch.tensor(lengths), prompts=prompts)
    return [*reward_checks.reward_model(report), *checks]


def _canned(tokenizer: PreTrainedTokenizerBase) -> list[Group]:
    answers = ("Yes, gladly.", "I do not know.", "No.", "That depends on what you mean by it, and on whom you ask.")
    rows_to_ask = prompts(chat=tokenizer.chat_template is not None)
    return [
        Group(group.prompt, (Response(answers[row % 4]), Response(answers[(row + 1 + row // 4 % 3) % 4])))
        for row, group in enumerate(rows_to_ask)
    ]


def _finite_scores(scores: Float[Tensor, "P K"]) -> Check:
    bad = int((~scores.isfinite()).sum())
    return answer(
        "finite",
        bad == 0,
        f"{bad} of {scores.numel()} scores are not finite" if bad else "all scores are finite numbers",
        DIVERGED,
    )


def _spread(scores: Float[Tensor, "P K"]) -> Check:
    """Spread within a prompt: a constant added to all responses of a prompt is not identified."""
    spread = float((scores[:, 0] - scores[:, 1]).abs().mean())
    passed = spread >= 0.02
    return answer(
        "scores differ",
        passed,
        f"two answers to one prompt are {spread:.3g} apart in the mean",
        "the scores are all but constant: raise --learning-rate or --max-steps",
        spread=spread,
    )


def _same_in_any_batch(model: PreTrainedModel, groups: Sequence[EncodedGroup]) -> Check:
    separate = torch.cat([score_encoded(model, [group]) for group in groups])
    batched = score_encoded(model, groups)
    return _shift("same in any batch", float((separate - batched).abs().max()), "alone and in a batch")


@torch.no_grad()
def _plain_agrees(model: PreTrainedModel, groups: Sequence[EncodedGroup]) -> Check:
    """Does plain `transformers`, which finds the last token by its padding, score the right token (F3, F8)?"""
    rows = [[*group.prompt_ids, *group.responses[0].ids] for group in groups]
    pad = model.config.get_text_config().pad_token_id
    if pad is None:
        finding = "its config names no pad token, so plain `transformers` scores one row at a time"
        advice = "set `pad_token_id` in config.json to a token apart from the end"
        return answer("plain transformers agrees", None, finding, advice)
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=model.device)
    attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    plain_scores = model(input_ids=ids, attention_mask=attention).logits[:, 0].float().cpu()
    kleash_scores = score_encoded(model, groups)[:, 0]
    gap = plain_scores - kleash_scores - float(getattr(model.config, "kleash_offset", 0.0))
    return _shift("plain transformers agrees", float(gap.abs().max()), "here and by plain `transformers`, padded")


def _shift(name: str, gap: float, between: str) -> Check:
    return answer(
        name,
        gap <= SHIFT,
        f"scores {between} are at most {gap:.1g} apart",
        "is the pad token the end token? then the wrong token is scored (F3, F8)",
        gap=gap,
    )


# --- rows ------------------------------------------------------------------------------------------------------------


def rows_checks(groups: Sequence[Group]) -> list[Check]:
    """The checks of rows, by kind: comparisons, demonstrations or prompts."""
    if any(comparison(group) is None for group in groups):
        return data_checks.comparisons(groups)
    answered = [group for group in groups if len(group.responses) == 1]
    if answered:
        return data_checks.demonstrations(answered)
    distinct = len({prompt_key(group.prompt) for group in groups})
    return [answer("prompts", True, f"{len(groups)} prompts, {distinct} of them different")]


def _own_rows(path: Path) -> list[Group]:
    """The held-out rows of a run, where its data still exist; empty for other folders."""
    settings: Json = (read_record(path) or {}).get("config", {})
    held_out, data = settings.get("eval_data"), settings.get("data")
    row_format = RowFormat(settings.get("columns"), bool(settings.get("as_chat")))
    if isinstance(held_out, str) and os.path.exists(held_out):
        return list(read_groups(held_out, row_format=row_format))
    if isinstance(data, str) and os.path.exists(data):
        return hold_out(list(read_groups(data, row_format=row_format)), seed=settings["seed"])[1]
    return []

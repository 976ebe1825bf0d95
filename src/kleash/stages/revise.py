"""Revise: the supervised stage of Constitutional AI (Bai et al. 2022, arXiv:2212.08073, section 3).

    kleash revise --model runs/sft --data prompts.jsonl --constitution assistant --rounds 4 --out demonstrations.jsonl

The model answers, criticises its answer by a principle that is drawn, and rewrites it by that critique; again for as
many rounds as asked for. The last revisions are demonstrations for `kleash sft`. Revisions that change nothing are
counted, and refusals before and after: an assistant that became harmless by saying nothing shows there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from kleash.chat.client import ChatClient
from kleash.chat.messages import Chat, ChatReply, ChatRequest
from kleash.chat.quoting import conversation
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Message, Response
from kleash.data.split import demonstration, read_usable
from kleash.evals.judging import Report, share
from kleash.evals.refusals import refusal_report
from kleash.labels.constitution import Constitution
from kleash.labels.judge_prompts import critique_request, revision_request, turns_of
from kleash.progress import Progress
from kleash.run import derive_seed, fingerprint
from kleash.stages.chat_client import GROUPS_AT_ONCE, chat_client, stop_above
from kleash.stages.data_configs import ReviseConfig
from kleash.stages.files import finish, finished


@dataclass(frozen=True)
class Step:
    """One critique and the revision by it."""

    principle: str
    round: int
    original: str
    critique: str
    revised: str

    @property
    def unchanged(self) -> bool:
        """Whether the revision is the response that it revised."""
        return self.revised.strip() == self.original.strip()


@dataclass(frozen=True)
class Draft:
    """A response on its way."""

    row: int
    group: Group
    """Its prompt."""
    original: str = ""
    text: str = ""
    finished: bool = True
    history: tuple[Step, ...] = ()
    failure: str = ""


def run(config: ReviseConfig, *, chat: Chat | None = None) -> Path:
    """Sample, criticise, revise, and write the last revisions.

    Args:
        config: the settings.
        chat: a live model in place of `config.model`.

    Returns:
        The file of demonstrations; beside each its `original`, the `principles` that it was revised by, and whether it
        is `unchanged`. Figures lie beside it in `….summary.json`.

    Raises:
        GateError: too many failures, or the budget is reached.
        DataError: the file holds something else.
    """
    constitution = Constitution.load(config.constitution)
    identity = config.identity()
    identity["sha256 of constitution"] = fingerprint(Constitution.find(config.constitution))["sha256"]
    if finished(config.out, identity):
        return config.out
    mixed_in = read_usable(config.mix_in, demonstration) if config.mix_in else []
    prompts = [
        Draft(row, replace(group, responses=(), label=None))
        for row, group in enumerate(islice(read_groups(config.data), config.max_rows))
    ]
    done: list[Draft] = []
    with chat_client(config, chat) as (asked, store), Progress(len(prompts), "revise") as progress:
        for start in range(0, len(prompts), GROUPS_AT_ONCE):
            done += _revise(config, constitution, asked, prompts[start : start + GROUPS_AT_ONCE])
            failed = [draft for draft in done if draft.failure]
            progress.update(len(done), failed=len(failed), cost=asked.usage.cost)
            stop_above(config.max_failures, len(failed), len(done), len(prompts), failed[-1].failure if failed else "")
        _keep(store, asked.chat.name, [draft for draft in done if not draft.failure])
        results = _measure(config, constitution, done) | {"usage": asked.figures(), "mixed_in": len(mixed_in)}
    write_groups(chain((_demonstration(draft) for draft in done if not draft.failure), mixed_in), config.out)
    finish(config.out, identity, results)
    return config.out


def _revise(
    config: ReviseConfig, constitution: Constitution, asked: ChatClient, drafts: Sequence[Draft]
) -> list[Draft]:
    def ask(drafts: Sequence[Draft], conversations: Sequence[Sequence[Message]], step: str) -> list[ChatReply]:
        questions = [
            ChatRequest(
                tuple(turns), config.max_new_tokens, temperature=config.temperature,
                seed=derive_seed(config.seed, step, draft.row),
            )
            for draft, turns in zip(drafts, conversations, strict=True)
        ]  # fmt: skip
        return asked(questions, step.split("/")[0])

    answers = ask(drafts, [turns_of(draft.group.prompt) for draft in drafts], "sample")
    drafts = [_with(draft, answer, original=answer.text) for draft, answer in zip(drafts, answers, strict=True)]
    for round_ in range(1, config.rounds + 1):
        alive = [draft for draft in drafts if not draft.failure]
        drawn = [constitution.draw((config.seed, draft.row, round_)) for draft in alive]
        conversations = [
            (*turns_of(draft.group.prompt), _turn("assistant", draft.text), _turn("user", critique_request(principle)))
            for draft, principle in zip(alive, drawn, strict=True)
        ]
        critiques = ask(alive, conversations, f"critique/{round_}")
        conversations = [
            (*turns, _turn("assistant", critique.text), _turn("user", revision_request(principle)))
            for turns, critique, principle in zip(conversations, critiques, drawn, strict=True)
        ]
        revised: dict[int, Draft] = {}
        for draft, principle, critique, answer in zip(
            alive, drawn, critiques, ask(alive, conversations, f"revise/{round_}"), strict=True
        ):
            step = Step(principle.name, round_, draft.text, critique.text, answer.text)
            failure = f"critique: {critique.error}" if critique.error else ""
            revised[draft.row] = _with(draft, answer, failure=failure, history=(*draft.history, step))
        drafts = [revised.get(draft.row, draft) for draft in drafts]
    return list(drafts)


def _with(draft: Draft, answer: ChatReply, *, failure: str = "", **changes: Any) -> Draft:
    """The draft with a new text; an answer without words is a failure and no revision."""
    failure = failure or answer.error or ("" if answer.text.strip() else "an answer without words")
    return replace(draft, text=answer.text, finished=answer.finished, failure=failure, **changes)


def _turn(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _keep(store: Any, model: str, drafts: Sequence[Draft]) -> None:
    """Critiques and revisions into the store; those that an earlier run left there are not kept twice."""
    from kleash.labels.store import Revision

    def key(revision: Revision) -> str:
        return repr(replace(revision, prompt=conversation(revision.prompt)))

    known = {key(revision) for revision in store.revisions()}
    for draft in drafts:
        for step in draft.history:
            revision = Revision(
                prompt=draft.group.prompt, original=step.original, critique=step.critique, revised=step.revised,
                principle=step.principle, round=step.round, model=model, unchanged=step.unchanged,
            )  # fmt: skip
            if key(revision) not in known:
                store.keep_revision(revision)


def _demonstration(draft: Draft) -> Group:
    columns: dict[str, Any] = {
        **draft.group.columns,
        "original": draft.original,
        "principles": [revision.principle for revision in draft.history],
        "unchanged": draft.text.strip() == draft.original.strip(),
    }
    return Group(draft.group.prompt, (Response(draft.text, finished=draft.finished),), columns=columns)


def _measure(config: ReviseConfig, constitution: Constitution, drafts: Sequence[Draft]) -> Report:
    kept = [draft for draft in drafts if not draft.failure]
    revisions = [revision for draft in kept for revision in draft.history]

    def unchanged(some: Sequence[Step]) -> Report:
        return share([revision.unchanged for revision in some])

    def said(texts: Sequence[str]) -> Report:
        groups = [
            Group(draft.group.prompt, (Response(text),), columns=draft.group.columns)
            for draft, text in zip(kept, texts, strict=True)
        ]
        return refusal_report(groups)

    return {
        "rows": len(drafts),
        "demonstrations": len(kept),
        "failures": {"rows": len(drafts) - len(kept),
                     "reasons": list(dict.fromkeys(draft.failure for draft in drafts if draft.failure))[:5]},
        "cut": sum(not draft.finished for draft in kept),
        "unchanged": share([draft.text.strip() == draft.original.strip() for draft in kept]),
        "unchanged_by_round": [
            unchanged([one for one in revisions if one.round == n]) for n in range(1, config.rounds + 1)
        ],
        "principles": {
            principle.name: unchanged([one for one in revisions if one.principle == principle.name])
            for principle in constitution.principles
        },
        "refusals_before": said([draft.original for draft in kept]),
        "refusals_after": said([draft.text for draft in kept]),
    }  # fmt: skip

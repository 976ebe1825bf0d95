"""Critiques and revisions by a constitution (Bai et al. 2022, arXiv:2212.08073, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from kleash.chat.answer_text import without_announcement, without_thoughts
from kleash.chat.client import ChatClient, Usage
from kleash.chat.judge_prompts import Principle, critique_request, revision_request
from kleash.chat.messages import ChatReply, ChatRequest
from kleash.chat.quoting import conversation
from kleash.data.group import Group, Message, Response
from kleash.data.shown import turns_before, turns_of
from kleash.evals.estimates import Share, share, share_json
from kleash.evals.refusals import RefusalReport, refusal_report, refuses
from kleash.labels.constitution import Constitution
from kleash.run import derive_seed

if TYPE_CHECKING:
    from kleash.labels.store import Store


WITHOUT_WORDS = "a reply without words"


@dataclass(frozen=True)
class Step:
    """One critique and the revision by it."""

    principle: str
    round: int
    original: str
    critique: str
    revised: str
    critique_finished: bool = True
    """False where the critique was cut off at the longest length."""

    @property
    def unchanged(self) -> bool:
        """Whether the revision equals the response that it revises."""
        return self.revised.strip() == self.original.strip()


@dataclass(frozen=True)
class Draft:
    """A response and its revisions so far."""

    row: int
    group: Group
    """Its prompt."""
    original: str = ""
    text: str = ""
    """The last revision."""
    finished: bool = True
    history: tuple[Step, ...] = ()
    failure: str = ""
    """Why there is no response or revision; empty where there is."""

    @property
    def unchanged(self) -> bool:
        """Whether the last revision equals the first response."""
        return self.text.strip() == self.original.strip()


@dataclass(frozen=True)
class CritiqueReport:
    """Critiques that a revision can do little with."""

    without_words: int
    """Rows left out, since a critique had no words."""
    cut: int
    """Critiques of demonstrations that were cut off at the longest length."""
    refusals: int
    """Critiques of demonstrations that refuse, see `kleash.evals.refusals`."""


@dataclass(frozen=True)
class TakenOff:
    """Replies that held more than the answer."""

    thoughts: int
    """Replies that began with the thoughts of a reasoning model."""
    announcements: int
    """Revisions that began with a line like "Here is the revised response:"."""


@dataclass(frozen=True)
class RevisionSummary:
    """The results of `kleash revise`, as written to its summary file."""

    rows: int
    demonstrations: int
    """Rows with a last revision."""
    reasons: list[str]
    """Why other rows have none: the first five different reasons."""
    cut: int
    """Demonstrations that were cut off at the longest length."""
    critiques: CritiqueReport
    taken_off: TakenOff
    unchanged: Share | None
    """Share of demonstrations equal to the first response."""
    unchanged_by_round: list[Share | None]
    """Share of unchanged revisions of each round."""
    principles: dict[str, Share | None]
    """Share of unchanged revisions by each principle."""
    refusals_before: RefusalReport
    """Of the first responses."""
    refusals_after: RefusalReport
    """Of the demonstrations."""
    usage: Usage
    mixed_in: int
    """Rows of `mix_in`."""

    def to_json(self) -> dict[str, object]:
        """The results as a JSON object."""
        return {
            "rows": self.rows,
            "demonstrations": self.demonstrations,
            "failures": {"rows": self.rows - self.demonstrations, "reasons": self.reasons},
            "cut": self.cut,
            "critiques": asdict(self.critiques),
            "taken_off": asdict(self.taken_off),
            "unchanged": share_json(self.unchanged),
            "unchanged_by_round": [share_json(value) for value in self.unchanged_by_round],
            "principles": {name: share_json(value) for name, value in self.principles.items()},
            "refusals_before": self.refusals_before.to_json(),
            "refusals_after": self.refusals_after.to_json(),
            "usage": asdict(self.usage),
            "mixed_in": self.mixed_in,
        }


class Reviser:
    """Samples a response to each prompt, criticises it by a drawn principle, and rewrites it by that critique.

    Args:
        client: the chat model.
        constitution: the principles.
        rounds: critiques and revisions of each response.
        temperature: of responses, critiques and revisions.
        max_tokens: longest response, critique or revision.
        seed: of drawn principles and samples.
    """

    def __init__(
        self,
        client: ChatClient,
        constitution: Constitution,
        *,
        rounds: int = 1,
        temperature: float = 1.0,
        max_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        self.client, self.constitution, self.rounds = client, constitution, rounds
        self.temperature, self.max_tokens, self.seed = temperature, max_tokens, seed
        self.taken_off = TakenOff(0, 0)

    def revise(self, drafts: Sequence[Draft]) -> list[Draft]:
        """Sample and revise a response to the prompt of each draft; failures are part of the draft."""
        replies = self._ask(drafts, [turns_of(draft.group.prompt) for draft in drafts], "sample")
        drafts = [_with_reply(draft, reply, original=reply.text) for draft, reply in zip(drafts, replies, strict=True)]
        for n in range(1, self.rounds + 1):
            revised = {draft.row: draft for draft in self._round([one for one in drafts if not one.failure], n)}
            drafts = [revised.get(draft.row, draft) for draft in drafts]
        return list(drafts)

    def _round(self, drafts: Sequence[Draft], n: int) -> list[Draft]:
        """One critique and revision of each draft."""
        principles = [self.constitution.draw((self.seed, draft.row, n)) for draft in drafts]
        threads = [_critique_thread(draft, principle) for draft, principle in zip(drafts, principles, strict=True)]
        critiques = self._ask(drafts, threads, f"critique/{n}")
        criticised = [
            (draft, principle, critique, (*turns, _turn("assistant", critique.text),
                                          _turn("user", revision_request(principle))))
            for draft, principle, turns, critique in zip(drafts, principles, threads, critiques, strict=True)
            if not _failure(critique)
        ]  # fmt: skip
        revisions = self._ask([draft for draft, *_ in criticised], [turns for *_, turns in criticised], f"revise/{n}")
        revised = [
            _with_reply(
                draft,
                revision,
                history=(
                    *draft.history,
                    Step(principle.name, n, draft.text, critique.text, revision.text, critique.finished),
                ),
            )
            for (draft, principle, critique, _), revision in zip(criticised, revisions, strict=True)
        ]
        return revised + [
            replace(draft, failure=f"critique: {_failure(critique)}")
            for draft, critique in zip(drafts, critiques, strict=True)
            if _failure(critique)
        ]

    def _ask(self, drafts: Sequence[Draft], threads: Sequence[Sequence[Message]], step: str) -> list[ChatReply]:
        requests = [
            ChatRequest(
                tuple(turns), self.max_tokens, temperature=self.temperature,
                seed=derive_seed(self.seed, step, draft.row),
            )
            for draft, turns in zip(drafts, threads, strict=True)
        ]  # fmt: skip
        name = step.split("/")[0]
        return [self._answer(reply, name == "revise") for reply in self.client(requests, name)]

    def _answer(self, reply: ChatReply, is_revision: bool) -> ChatReply:
        """The reply without thoughts, and a revision without the line that announces it."""
        answer = without_thoughts(reply.text)
        text = without_announcement(answer) if is_revision else answer
        self.taken_off = TakenOff(
            self.taken_off.thoughts + (answer != reply.text), self.taken_off.announcements + (text != answer)
        )
        return replace(reply, text=text)


def save_revisions(store: Store, model: str, drafts: Sequence[Draft]) -> None:
    """Store critiques and revisions; those that an earlier run stored are not stored again."""
    from kleash.labels.store import Revision

    def key(revision: Revision) -> str:
        return repr(replace(revision, prompt=conversation(revision.prompt)))

    stored = {key(revision) for revision in store.revisions()}
    for draft in drafts:
        for step in draft.history:
            revision = Revision(
                prompt=draft.group.prompt, original=step.original, critique=step.critique, revised=step.revised,
                principle=step.principle, round=step.round, model=model, unchanged=step.unchanged,
            )  # fmt: skip
            if key(revision) not in stored:
                store.save_revision(revision)


def demonstration_of(draft: Draft) -> Group:
    """The last revision as a demonstration, with columns that record its critiques and revisions."""
    columns = {
        **draft.group.columns,
        "original": draft.original,
        "principles": [step.principle for step in draft.history],
        "unchanged": draft.unchanged,
    }
    return Group(draft.group.prompt, (Response(draft.text, finished=draft.finished),), columns=columns)


def summarise(
    drafts: Sequence[Draft],
    constitution: Constitution,
    *,
    rounds: int,
    taken_off: TakenOff,
    usage: Usage,
    mixed_in: int,
) -> RevisionSummary:
    """Measure revisions.

    Args:
        drafts: of all rows.
        constitution: whose principles they were revised by.
        rounds: of critiques and revisions.
        taken_off: of the reviser.
        usage: of the chat client.
        mixed_in: rows of `mix_in`.
    """
    complete = [draft for draft in drafts if not draft.failure]
    steps = [step for draft in complete for step in draft.history]

    def unchanged(revisions: Sequence[Step]) -> Share | None:
        return share([step.unchanged for step in revisions])

    def refusals(texts: Sequence[str]) -> RefusalReport:
        return refusal_report(
            [
                Group(draft.group.prompt, (Response(text),), columns=draft.group.columns)
                for draft, text in zip(complete, texts, strict=True)
            ]
        )

    return RevisionSummary(
        rows=len(drafts),
        demonstrations=len(complete),
        reasons=list(dict.fromkeys(draft.failure for draft in drafts if draft.failure))[:5],
        cut=sum(not draft.finished for draft in complete),
        critiques=CritiqueReport(
            without_words=sum(draft.failure == f"critique: {WITHOUT_WORDS}" for draft in drafts),
            cut=sum(not step.critique_finished for step in steps),
            refusals=sum(refuses(step.critique) for step in steps),
        ),
        taken_off=taken_off,
        unchanged=share([draft.unchanged for draft in complete]),
        unchanged_by_round=[unchanged([step for step in steps if step.round == n]) for n in range(1, rounds + 1)],
        principles={
            principle.name: unchanged([step for step in steps if step.principle == principle.name])
            for principle in constitution.principles
        },
        refusals_before=refusals([draft.original for draft in complete]),
        refusals_after=refusals([draft.text for draft in complete]),
        usage=usage,
        mixed_in=mixed_in,
    )


def _critique_thread(draft: Draft, principle: Principle) -> tuple[Message, ...]:
    prompt, request = turns_of(draft.group.prompt), critique_request(principle, turns_before(draft.group))
    return (*prompt, _turn("assistant", draft.text), _turn("user", request))


def _with_reply(draft: Draft, reply: ChatReply, **changes: Any) -> Draft:
    """The draft with a new text; a reply without words is a failure, not a revision."""
    return replace(draft, text=reply.text, finished=reply.finished, failure=_failure(reply), **changes)


def _failure(reply: ChatReply) -> str:
    """Why a reply cannot be used; empty where it can."""
    return reply.error or ("" if reply.text.strip() else WITHOUT_WORDS)


def _turn(role: str, text: str) -> Message:
    return {"role": role, "content": text}

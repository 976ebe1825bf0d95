"""A verifier as a reward: 1 for a right response, 0 for any other, with each outcome counted separately (F15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.data.group import Group, Response
from kleash.errors import DataError
from kleash.progress import Progress
from kleash.rewards.non_answers import is_loop
from kleash.rewards.reward import Parts
from kleash.rewards.verifiers import OUTCOMES, BadRowError, Outcome, Verifier
from kleash.sandbox.runner import Completed, LimitExceeded, Limits, Runner

LIMITS = Limits(seconds=5.0, memory=4 << 30)
"""Limits of one check: processor time (math-verify's own limit) and memory (9^(9^9) has more digits than fit)."""

PROBE = "0"
"""The response with which a row's value is tried before there is any."""

SHORTEST_COPY = 4
"""Words of a prompt from which a copy of it cannot be an answer: a response to "5" may begin with 5."""

_runner = Runner()


class VerifierReward:
    """A `Reward` that checks each response against a column of its row."""

    def __init__(
        self,
        verifier: Verifier,
        *,
        column: str | None = None,
        expected: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Take a verifier; see `kleash.rewards.verifiers`.

        Args:
            verifier: whose check it is.
            column: the column to read; None: the verifier's own.
            expected: what every response is checked against, in place of a column: a pattern, a schema.
            options: of the check, by name.

        Raises:
            BadRowError: `expected` cannot be read.
        """
        self.verifier = verifier
        self.column = column
        self.expected = expected
        self.options = options or {}
        if expected is not None:
            self._outcome_of(PROBE, expected)

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Scores, and for each outcome 1 where it is the response's; see `reward.explain`.

        Raises:
            DataError: a row lacks the column, or its value cannot be read.
        """
        outcomes = [[self.outcome(group, response) for response in group.responses] for group in groups]
        parts: Parts = {
            name: torch.tensor([[float(item == name) for item in row] for row in outcomes]) for name in OUTCOMES
        }
        return parts["right"], parts

    def faults(self, groups: Sequence[Group]) -> Mapping[int, str]:
        """Read the answer, pattern or schema of every row, each once; see `reward.faults`."""
        readable: set[str] = set()
        bad: dict[int, str] = {}
        with Progress(len(groups), f"read each row's {self.verifier.column}") as progress:
            for row, group in enumerate(groups):
                try:
                    value = repr(self._expected(group) if self.verifier.prepare is None else group.columns)
                    if value not in readable:
                        self._checked(group, PROBE)
                        readable.add(value)
                except DataError as error:
                    bad[row] = str(error)
                progress.update(row + 1)
        return bad

    def outcome(self, group: Group, response: Response) -> Outcome:
        """The outcome of a response. An empty response or a loop is unparsable in any case."""
        self._expected(group)
        text = self._without_prompt(group, response.text)
        if not text.strip() or (not self.verifier.loops_count and is_loop(text, finished=response.finished)):
            return "unparsable"
        return self._checked(group, text)

    def _without_prompt(self, group: Group, text: str) -> str:
        """A response without a copy of the prompt at its beginning, which is not an answer to it."""
        prompt = group.prompt_text.strip()
        begins = len(prompt.split()) >= SHORTEST_COPY and text.lstrip().startswith(prompt)
        if not self.verifier.reads_answer or not prompt or not (begins or text.strip() == prompt):
            return text
        return text.lstrip().removeprefix(prompt)

    def _checked(self, group: Group, text: str) -> Outcome:
        try:
            accepted = self._expected(group)
            outcomes = [self._outcome_of(text, self._prepared(expected, group)) for expected in accepted]
        except BadRowError as error:
            raise DataError(
                f"--reward {self.verifier.name}: the row with prompt {group.prompt_text[:60]!r}: {error}"
            ) from None
        return min(outcomes, key=OUTCOMES.index)  # one of the accepted answers is enough

    def _prepared(self, expected: Any, group: Group) -> Any:
        prepare = self.verifier.prepare
        return expected if prepare is None else prepare(expected, group.columns)

    def _outcome_of(self, text: str, expected: Any) -> Outcome:
        if self.verifier.guarded:
            return self._guarded(text, expected)
        return self.verifier.check(text, expected, **self.options)

    def _guarded(self, text: str, expected: Any) -> Outcome:
        verifier = self.verifier
        result = _runner.run(
            verifier.program, text, expected, limits=LIMITS, imports=verifier.imports, options=self.options
        )
        if isinstance(result, LimitExceeded):
            return "timed_out"
        if isinstance(result, Completed):
            outcome: Outcome = result.value
            return outcome
        if result.kind == BadRowError.__name__:
            raise BadRowError(result.message)
        return "unparsable"  # any error of a parser on a model's text: it could not be read, and gets no reward

    def _expected(self, group: Group) -> list[Any]:
        """The values of which a response has to match one: that of the row's column, or its items."""
        if self.expected is not None:
            return [self.expected]
        value = self._value(group)
        accepts = self.verifier.accepts
        values = list(value) if isinstance(value, (list, tuple)) and list in accepts else [value]
        if not values or not all(_is_one_of(item, accepts) for item in values):
            problem = "has none" if value is None or value == [] else f"has a {type(value).__name__} there"
            raise DataError(
                f"--reward {self.verifier.name} reads the column '{self.column or self.verifier.column}', but the row "
                f"with prompt {group.prompt_text[:60]!r} {problem}; give each row one ({_names(accepts)}), or name "
                f"another column: --columns {self.verifier.column}=NAME"
            )
        return [str(item) if isinstance(item, (int, float)) and not isinstance(item, bool) else item for item in values]

    def _value(self, group: Group) -> Any:
        if self.column is not None:
            return group.columns.get(self.column)
        names = (self.verifier.column, *self.verifier.other_columns)
        value = next((group.columns[name] for name in names if group.columns.get(name) is not None), None)
        nested = group.columns.get("reward_model")  # verl's rows
        if value is None and self.verifier.other_columns and isinstance(nested, Mapping):
            return nested.get("ground_truth")
        return value


def _is_one_of(value: Any, types: tuple[type, ...]) -> bool:
    return (
        isinstance(value, types)
        and not isinstance(value, (list, tuple))
        and (not isinstance(value, bool) or bool in types)
    )


def _names(types: tuple[type, ...]) -> str:
    return ", ".join(item.__name__ for item in types if item is not tuple)

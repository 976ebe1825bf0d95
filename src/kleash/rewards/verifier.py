"""A verifier as a reward: 1 for a right response, 0 for any other, with each outcome counted separately (F15)."""

from __future__ import annotations

from collections.abc import Sequence
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

_runner = Runner()


class VerifierReward:
    """A `Reward` that checks each response against a column of its row."""

    def __init__(self, verifier: Verifier) -> None:
        """Take a verifier; see `kleash.rewards.verifiers`."""
        self.verifier = verifier

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

    def check_rows(self, groups: Sequence[Group]) -> None:
        """Read the answer, pattern or schema of every row, each once; see `reward.check_rows`.

        Raises:
            DataError: names the first row whose value cannot be read, and how many there are.
        """
        readable: set[str] = set()
        faults: list[DataError] = []
        with Progress(len(groups), f"read each row's {self.verifier.column}") as progress:
            for row, group in enumerate(groups, start=1):
                try:
                    value = repr(self._expected(group))
                    if value not in readable:
                        self._checked(group, PROBE)
                        readable.add(value)
                except DataError as error:
                    faults.append(error)
                progress.update(row)
        if faults:
            more = f" ({len(faults)} of {len(groups)} rows cannot be read)" if len(faults) > 1 else ""
            raise DataError(f"{faults[0]}{more}")

    def outcome(self, group: Group, response: Response) -> Outcome:
        """The outcome of a response. An empty response or a loop is unparsable in any case."""
        self._expected(group)
        text = response.text
        if not text.strip() or (not self.verifier.loops_count and is_loop(text, finished=response.finished)):
            return "unparsable"
        return self._checked(group, text)

    def _checked(self, group: Group, text: str) -> Outcome:
        expected = self._expected(group)
        try:
            return self._guarded(text, expected) if self.verifier.guarded else self.verifier.check(text, expected)
        except BadRowError as error:
            raise DataError(
                f"--reward {self.verifier.name}: the row with prompt {group.prompt_text[:60]!r}: {error}"
            ) from None

    def _guarded(self, text: str, expected: Any) -> Outcome:
        verifier = self.verifier
        result = _runner.run(verifier.program, text, expected, limits=LIMITS, imports=verifier.imports)
        if isinstance(result, LimitExceeded):
            return "timed_out"
        if isinstance(result, Completed):
            outcome: Outcome = result.value
            return outcome
        if result.kind == BadRowError.__name__:
            raise BadRowError(result.message)
        return "unparsable"  # any error of a parser on a model's text: it could not be read, and gets no reward

    def _expected(self, group: Group) -> Any:
        column, accepts = self.verifier.column, self.verifier.accepts
        value = group.columns.get(column)
        if not isinstance(value, accepts) or (isinstance(value, bool) and bool not in accepts):
            problem = "has none" if value is None else f"has a {type(value).__name__} there"
            raise DataError(
                f"--reward {self.verifier.name} reads the column '{column}', but the row with prompt "
                f"{group.prompt_text[:60]!r} {problem}; give each row one ({', '.join(t.__name__ for t in accepts)})"
            )
        return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

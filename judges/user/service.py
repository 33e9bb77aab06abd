"""The child's side of a `python` judge: the user's code, built and asked in a process of its own."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from judges.protocol import Question, StopJudging, check_verdicts, collect_counts, limits_of
from judges.user.python_judge import adapt
from judges.user.user_code import load_target

FIELDS = ("first", "second", "score", "probability", "reason", "abstention", "uncertainty", "rationale")
"""Of a verdict, as they travel; the prompt is known."""


class JudgeService:
    """A user's judge, and its answers as plain values."""

    def __init__(
        self,
        target: str,
        source: str | None,
        args: Mapping[str, Any],
        *,
        field: str,
        both_orders: bool,
        threads: int | None,
    ) -> None:
        """Run the user's code and build the judge.

        Args:
            target: what the section names.
            source: the text of its file, where it is one.
            args: of the constructor or the function.
            field: the section's place in the config.
            both_orders: ask `compare` both ways.
            threads: of torch, where the code imports it.

        Raises:
            JudgeError: it does not import, or does not fit.
        """
        found = load_target(target, source, label=f"{field}.target {target}")
        self._judge = adapt(found, args, field=field, name=target, both_orders=both_orders)
        if threads is not None and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)

    def about(self) -> dict[str, Any]:
        """The limits that it sets."""
        return dataclasses.asdict(limits_of(self._judge))

    async def judge(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Judge a batch.

        Returns:
            `verdicts`, for each question a list of their fields without the prompt, or `stopped`, why there are none;
            and `counts`.

        Raises:
            JudgeError: the judge does not keep its contract.
        """
        with collect_counts() as counts:
            try:
                said = check_verdicts(questions, await self._judge.judge(questions))
            except StopJudging as error:
                return {"stopped": str(error), "counts": counts}
        rows = [[[getattr(verdict, name) for name in FIELDS] for verdict in verdicts] for verdicts in said]
        return {"verdicts": rows, "counts": counts}

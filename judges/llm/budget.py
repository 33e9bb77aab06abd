"""What a judge may still spend.

The budget is never exceeded: the worst case of a request is reserved before the request is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from judges.protocol import StopJudging, count
from online_dpo.config.judges.llm import Budget, Prices


class BudgetSpent(StopJudging):
    """What is left of a budget is not enough."""


COUNTS = {
    "calls": "num_judge_charged_calls",
    "prompt": "num_judge_prompt_tokens",
    "completion": "num_judge_completion_tokens",
}


@dataclass(frozen=True, slots=True)
class Spend:
    """Something spent, or at worst about to be."""

    calls: int = 0
    prompt: int = 0  # tokens
    completion: int = 0

    @property
    def tokens(self) -> tuple[int, int]:
        return self.prompt, self.completion

    def amount(self, name: str, prices: Prices | None) -> float:
        """So much of a limit of the budget: calls, tokens or cost."""
        if name == "calls":
            return self.calls
        return sum(self.tokens) if name == "tokens" else 0.0 if prices is None else prices.cost(*self.tokens)

    def __add__(self, other: Spend) -> Spend:
        return Spend(self.calls + other.calls, self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Spend) -> Spend:
        return Spend(self.calls - other.calls, self.prompt - other.prompt, self.completion - other.completion)


class BudgetAccount:
    """What one judge has spent of its budget, and what it has reserved. One event loop."""

    def __init__(
        self, budget: Budget, prices: Prices | None, *, field: str, counted: Mapping[str, float], scope: str = ""
    ) -> None:
        """Open the account.

        Args:
            budget: its limits.
            prices: of tokens, where it has a limit in money.
            field: the budget's section, for messages.
            counted: what the run's judges counted before, under the names that `spend` counts by.
            scope: where the judge is inside another one: it then counts by these names with this ending as well.
        """
        self._budget, self._prices, self._field = budget, prices, field
        self._scope = scope
        self._spent = _counted(counted, scope)
        self._reserved = Spend()
        self._closed: str | None = None
        self._changed = asyncio.Condition()

    async def reserve(self, worst: Sequence[Spend]) -> None:
        """Set the worst case of some requests aside. Waits while requests under way may still cost less than reserved.

        Raises:
            BudgetSpent: what is left is not enough. Nothing can be reserved from then on.
        """
        wanted = sum(worst, Spend())
        async with self._changed:
            while self._closed is None:
                if self._fits(wanted):
                    self._reserved += wanted
                    return
                if self._reserved == Spend():
                    self._closed = self._explain(wanted)
                    self._changed.notify_all()
                    break
                await self._changed.wait()
            raise BudgetSpent(self._closed)

    async def reserve_again(self, worst: Spend) -> bool:
        """For another try of a request that may have been charged for; never waits."""
        async with self._changed:
            fits = self._fits(worst)
            self._reserved += worst if fits else Spend()
            return fits

    async def settle(self, worst: Spend, actual: Spend) -> None:
        """A reserved request is over: this is what it cost."""
        async with self._changed:
            self._reserved -= worst
            self._spent += actual
            self._changed.notify_all()
        for part, name in COUNTS.items():
            for ending in dict.fromkeys(("", self._scope)):
                count(name + ending, getattr(actual, part))

    def _fits(self, wanted: Spend) -> bool:
        return not self._exceeded(self._spent + self._reserved + wanted)

    def _exceeded(self, total: Spend) -> list[tuple[str, float, float]]:
        limits = {name: limit for name, limit in self._budget.model_dump().items() if limit is not None}
        return [
            (name, limit, amount)
            for name, limit in limits.items()
            if (amount := total.amount(name, self._prices)) > limit
        ]

    def _explain(self, wanted: Spend) -> str:
        lines = []
        for name, limit, amount in self._exceeded(self._spent + wanted):
            spent = self._spent.amount(name, self._prices)
            lines.append(
                f"{self._field}.{name} is {limit:g}, of which {spent:g} are spent, and the next prompt may take "
                f"up to {amount - spent:g}"
            )
        return f"{'; '.join(lines)}: what was paid for is kept; raise it and resume"


def spent_of(counted: Mapping[str, float], field: str) -> Spend:
    """What a judge has spent of its budget, of what the judge that it is, or is inside of, counted.

    Args:
        counted: sums of the counters of that judge.
        field: the judge's own section, such as `judge` or `judge.judges.a`.
    """
    return _counted(counted, scope_of(field))


def scope_of(field: str) -> str:
    """Empty for a judge that has a host of its own; else where it is inside that judge."""
    own = {"judge": 1, "pairing": 2}.get(field.split(".")[0], 3)  # judge, pairing.annotator, evaluation.judges.NAME
    inside = ".".join(field.split(".")[own:])
    return f"[{inside}]" if inside else ""


def _counted(counted: Mapping[str, float], scope: str) -> Spend:
    return Spend(*(int(counted.get(name + scope, 0)) for name in COUNTS.values()))

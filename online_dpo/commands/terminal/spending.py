"""What a run will ask of chat models, in words, and the question whether it is to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import typer

from judges.estimating import MAX_SAMPLED_PROMPTS, Use
from online_dpo.commands.preparing.spending import Expected, billed, total_cost
from online_dpo.config.judges.llm import LlmJudge

ASSUMPTIONS = (
    f"counted as the policy's tokenizer counts, with the run's prompts (of more than {MAX_SAMPLED_PROMPTS} a sample), "
    f"answers from 1 token to sampling.max_tokens, and replies from 1 token to the longest that is asked for; if all "
    f"rounds are played, the answers to a prompt differ, and no request has to be made again"
)


def describe(expected: Sequence[Expected]) -> Iterator[str]:
    """A line about each judge, about all, and about every budget that may not suffice."""
    for one in expected:
        money = "no prices are set" if one.is_billed else "by an engine of its own"
        yield f"{one.field}: {_asked(one.use)}; {money if one.cost is None else f'cost {_money(one.cost)}'}"
    cost = total_cost(expected)
    if cost is not None and len(billed(expected)) > 1:
        yield f"together: cost {_money(cost)}"
    yield from beyond_budget(expected)
    yield ASSUMPTIONS


def in_one_line(expected: Sequence[Expected]) -> str:
    """What a run says before it begins: requests, tokens and money of all judges and writers behind an endpoint."""
    asked = _asked(reduce(add, [one.use for one in billed(expected)]))
    cost, unpriced = total_cost(expected), [one.field for one in billed(expected) if one.cost is None]
    money = "" if cost is None else f"; cost {_money(cost)}"
    without = f"; no prices are set for {', '.join(unpriced)}" if unpriced else ""
    return f"endpoints will be asked: {asked}{money}{without}"


def beyond_budget(expected: Sequence[Expected]) -> Iterator[str]:
    """A line for each limit of a budget that the run may reach."""
    for one in expected:
        for name, limit, least, most in one.limits():
            if most is None or most > limit:
                verb = "will" if least > limit else "may"
                then = f"it {verb} stop before its end, and can be resumed with a larger budget"
                if not isinstance(one.section, LlmJudge):
                    then = f"later prompts {verb} go on without its answers"
                yield f"{one.field}.budget.{name} is {limit:g}, and the whole run takes {_range(least, most)}: {then}"


def as_json(expected: Sequence[Expected]) -> dict[str, Any]:
    """The same for machines; every amount is [least, most], and most is null where it is not known."""
    judges = {one.field: {**one.use.amounts(), "cost": one.cost} for one in expected}
    return {"judges": judges, "cost": total_cost(expected), "beyond_budget": list(beyond_budget(expected))}


def ask_before_spending(pause: Callable[[], Any]) -> Callable[[Sequence[Expected]], None] | None:
    """Asks whether a run that costs money is to go on; None where nobody sits at a terminal.

    Args:
        pause: gives a context manager, in which the terminal belongs to the question.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None

    def ask(expected: Sequence[Expected]) -> None:
        cost = total_cost(expected)
        if cost is None or cost[1] == 0.0:
            return
        with pause():
            if not typer.confirm(f"this may cost {_money(cost)}; go on?"):
                typer.echo("nothing was started", err=True)
                raise typer.Abort

    return ask


def _asked(use: Use) -> str:
    requests, prompts, replies = (_range(*amount) for amount in use.amounts().values())
    return f"{requests} requests, {prompts} tokens of prompts, {replies} of replies"


def _range(low: float, high: float | None) -> str:
    if high is None:
        return f"{_number(low)} or more"
    return _number(low) if low == high else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"


def _money(cost: tuple[float, float | None]) -> str:
    low, high = cost
    return f"{_price(low)} or more" if high is None else f"{_price(low)} to {_price(high)}"


def _price(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 0.1 or amount == 0.0 else f"{amount:.2g}"

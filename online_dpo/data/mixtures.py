"""Several data sets of prompts as one: each round takes from every one of them by its weight, without replacement."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, lcm
from typing import Any, TypeAlias

from online_dpo.config.data import PromptSet, names_of
from online_dpo.config.run import RunConfig
from online_dpo.data.drawing import Cursor, MixtureCursor
from online_dpo.data.prompts import PromptDraw, PromptSource
from online_dpo.errors import DataError
from online_dpo.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptMixture:
    """The prompts of several data sets. A data set that was gone through begins anew in another order."""

    sources: Mapping[str, PromptSource]  # by their names, which begin the ids of their prompts
    weights: Sequence[int]  # of each, relative to the others

    def __len__(self) -> int:
        """Rows, usable or not."""
        return sum(map(len, self.sources.values()))

    def draw(self, cursor: Cursor | MixtureCursor, n: int) -> PromptDraw:
        """The next `n` usable prompts, all different, of every data set its share.

        Args:
            cursor: `Cursor()` at first, afterwards the one that the last draw returned.
            n: prompts of a round.

        Raises:
            DataError: a data set has fewer usable prompts than its share, or the cursor is of other data sets.
        """
        parts = self._parts(cursor)
        order = allot(self.weights, [drawn for drawn, _ in parts.values()], n)
        draws = {
            name: source.draw(parts[name][1], order.count(index))
            for index, (name, source) in enumerate(self.sources.items())
        }
        queues = [iter(draw.prompts) for draw in draws.values()]
        after = {name: (parts[name][0] + len(draw.prompts), _plain(draw.cursor)) for name, draw in draws.items()}
        passed_over: dict[str, int] = {}
        for draw in draws.values():
            for reason, number in draw.passed_over.items():
                passed_over[reason] = passed_over.get(reason, 0) + number
        return PromptDraw(
            prompts=tuple(next(queues[index]) for index in order),
            passed_over=passed_over,
            cursor=MixtureCursor(after),
            sources={
                name: {
                    "num_prompts": len(draw.prompts),
                    "num_drawn": after[name][0],
                    "epochs": after[name][1].epoch + after[name][1].position / len(self.sources[name]),
                    **{f"num_prompts_{reason}": number for reason, number in draw.passed_over.items()},
                }
                for name, draw in draws.items()
            },
        )

    def check(self, n: int, rounds: int) -> None:
        """See whether every data set has enough usable prompts for its share of every round.

        Raises:
            DataError: one has not.
        """
        most: list[int] | None = None
        for index, (name, source) in enumerate(self.sources.items()):
            bound = min(n, ceil(Fraction(n * self.weights[index], sum(self.weights))) + 1)
            num_usable = len(source.count(bound).prompts)
            if num_usable < bound:
                most = most or most_of_a_round(self.weights, n, rounds)
                if num_usable < most[index]:
                    share = self.weights[index] / sum(self.weights)
                    raise DataError(
                        f"{name} is {share:.1%} of the mixture, up to {most[index]} of a round of {n} different "
                        f"prompts; {source.too_few('prompts.per_round', n, num_usable).args[0]}"
                    )

    def describe(self, n: int, rounds: int) -> Iterator[str]:
        """A line for each data set: its usable prompts, its share, and how often a run goes through it.

        Args:
            n: prompts of a round.
            rounds: of the run.
        """
        order = allot(self.weights, [0] * len(self.weights), n * rounds)
        for index, (name, source) in enumerate(self.sources.items()):
            usable, num_drawn = source.count(), order.count(index)
            lost = ", ".join(f"{reason.replace('_', ' ')} {found}" for reason, found in usable.passed_over.items())
            share = self.weights[index] / sum(self.weights)
            yield (
                f"{source.field}: {name}, {len(usable.prompts)} usable of {len(source)} prompts ({lost}), "
                f"{share:.1%} of the mixture, {num_drawn} prompts in {rounds} rounds, "
                f"{num_drawn / max(1, len(usable.prompts)):.2f} epochs"
            )

    def _parts(self, cursor: Cursor | MixtureCursor) -> Mapping[str, tuple[int, Cursor]]:
        if isinstance(cursor, Cursor):
            return {name: (0, Cursor()) for name in self.sources}
        if cursor.parts.keys() != self.sources.keys():
            raise DataError(
                f"prompts.sources are {', '.join(self.sources)}, but the run began with {', '.join(cursor.parts)}; put "
                f"them back as they were when the run began"
            )
        return {name: cursor.parts[name] for name in self.sources}  # committed JSON has its keys in another order


AnyPrompts: TypeAlias = PromptSource | PromptMixture


def allot(weights: Sequence[int], drawn: Sequence[int], n: int) -> list[int]:
    """Which data set each of the next `n` prompts is of.

    The quota method (Balinski and Young, "The quota method of apportionment", 1975): after any number of prompts,
    every data set has had its exact share of them, rounded up or down, whatever the number in a round.

    Args:
        weights: of the data sets.
        drawn: prompts that each has given before.
        n: how many follow.
    """
    total, given = sum(weights), list(drawn)
    order = []
    for num_all in range(sum(given) + 1, sum(given) + n + 1):
        below = [i for i, weight in enumerate(weights) if given[i] * total < num_all * weight]
        chosen = max(below, key=lambda i: Fraction(weights[i], given[i] + 1))  # the first of equals
        given[chosen] += 1
        order.append(chosen)
    return order


def most_of_a_round(weights: Sequence[int], n: int, rounds: int) -> list[int]:
    """The most prompts that each data set gives in any round."""
    drawn, most = [0] * len(weights), [0] * len(weights)
    for _ in range(rounds):
        order = allot(weights, drawn, n)
        of_round = [order.count(index) for index in range(len(weights))]
        drawn = [before + now for before, now in zip(drawn, of_round, strict=True)]
        most = [max(pair) for pair in zip(most, of_round, strict=True)]
    return most


def whole_numbers(weights: Sequence[float]) -> list[int]:
    """Weights in the same relation, exact: 0.7, 0.2 and 0.1 are 7, 2 and 1."""
    exact = [Fraction(repr(weight)) for weight in weights]
    scale = lcm(*(weight.denominator for weight in exact))
    return [int(weight * scale) for weight in exact]


def load_prompts(config: RunConfig, **common: Any) -> AnyPrompts | None:
    """The prompts that a run samples for; None where there are none.

    Args:
        config: of the run.
        common: tokenizer and so on, as `PromptSource.load` takes them.

    Raises:
        DataError: a data set is missing, malformed or empty, or two of them do not go together.
    """
    section = config.prompts
    if section is None:
        return None
    if not section.sources:
        [(field, part)] = section.parts("prompts").items()
        return PromptSource.load(part, field=field, **common)
    sources = _load_parts(section.parts("prompts"), names_of(section.sources), **common)
    _leave_out_duplicates(sources)
    return PromptMixture(sources=sources, weights=whole_numbers([part.weight for part in section.sources]))


def load_evaluation_sets(config: RunConfig, **common: Any) -> dict[str, tuple[Prompt, ...]]:
    """Name -> the prompts of an evaluation set, in the order of its data sets and their files.

    Args:
        config: of the run.
        common: tokenizer and so on, as `PromptSource.load` takes them.

    Raises:
        DataError: a data set is missing, malformed or too small, or two of a set do not go together.
    """
    found = {}
    for name, section in config.evaluation.sets.items():
        field = f"evaluation.sets.{name}"
        if section.sources:
            sources = _load_parts(section.parts(field), names_of(section.sources), **common)
            counts = [part.count for part in section.sources]
        else:
            sources = {name: PromptSource.load(section.parts(field)[field], field=field, **common)}
            counts = [section.count]
        heads = [source.head(count) for source, count in zip(sources.values(), counts, strict=True)]
        found[name] = tuple(prompt for head in heads for prompt in head.prompts)
    return found


def _load_parts(parts: Mapping[str, PromptSet], names: Sequence[str], **common: Any) -> dict[str, PromptSource]:
    sources = {
        name: PromptSource.load(part, field=field, name=name, **common)
        for name, (field, part) in zip(names, parts.items(), strict=True)
    }
    forms: dict[str, str] = {}
    for source in sources.values():
        for prompt in source.count(1).prompts:
            forms.setdefault("plain text" if prompt.messages is None else "chats", source.field)
    if len(forms) > 1:
        held = " and ".join(f"{field} holds {form}" for form, field in forms.items())
        raise DataError(f"{held}, which one table of a round cannot hold: write all prompts in one way")
    return sources


def _leave_out_duplicates(sources: Mapping[str, PromptSource]) -> None:
    """A prompt that an earlier data set has, too, is not drawn from a later one."""
    before: set[bytes] = set()
    for source in sources.values():
        own = list(_fingerprints(source))
        source.leave_out([row for row, key in enumerate(own) if key in before], "duplicate")
        before.update(own)


def _fingerprints(source: PromptSource) -> Iterator[bytes]:
    """16 bytes for each row, equal where a policy would be asked the same."""
    for content in source.contents():
        text = content.strip() if isinstance(content, str) else json.dumps(content)
        yield hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _plain(cursor: Cursor | MixtureCursor) -> Cursor:
    assert isinstance(cursor, Cursor)
    return cursor

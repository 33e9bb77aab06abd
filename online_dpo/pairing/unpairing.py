"""Pairs -> labelled answers, and the mismatched completions that KTO estimates its KL from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from online_dpo.types import Labelled, Pair


def halves(pair: Pair) -> tuple[Labelled, Labelled]:
    """The two labelled answers of a pair, chosen and rejected; not mismatched yet."""
    chosen, rejected = (
        Labelled(prompt=pair.prompt, completion=answer, desirable=answer is pair.chosen, weight=pair.weight)
        for answer in (pair.chosen, pair.rejected)
    )
    return chosen, rejected


def unpair(items: Sequence[Pair | Labelled]) -> list[Labelled]:
    """Two labelled answers of every pair, chosen and rejected in turn, beside the labelled ones; all are mismatched."""
    return with_mismatches([part for item in items for part in (halves(item) if isinstance(item, Pair) else (item,))])


def with_mismatches(items: Sequence[Labelled]) -> list[Labelled]:
    """Give every item the completion of another prompt, by the smallest cyclic shift that leaves no item its own.

    One shift for all uses every completion exactly once, so that the mismatched completions are the same set as the
    matched ones (arXiv:2402.01306, section 4.1). Where none will do, because one prompt has more than half of the
    items, each item takes the next one of another prompt; without another prompt it has none.
    """
    prompts = [item.prompt.token_ids for item in items]  # rows of a data set may share a prompt under several ids
    count = len(items)

    def differ(index: int, shift: int) -> bool:
        return prompts[index] != prompts[(index + shift) % count]

    common = next((shift for shift in range(1, count) if all(differ(i, shift) for i in range(count))), None)
    found = []
    for index, item in enumerate(items):
        shift = common or next((shift for shift in range(1, count) if differ(index, shift)), None)
        other = () if shift is None else items[(index + shift) % count].completion.token_ids
        found.append(replace(item, kl_completion_ids=other))
    return found

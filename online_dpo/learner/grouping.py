"""Which pairs make up which optimizer step, which rank takes which, and which rows go through the model together."""

from __future__ import annotations

import random
from collections.abc import Sequence

from online_dpo.types import Row, derive_seed


def round_batches(num_pairs: int, batch_pairs: int, *, epochs: int, seed: int, round_index: int) -> list[list[int]]:
    """Indices of the pairs of every optimizer step of a round.

    Each epoch is a permutation of its own, split into `ceil(num_pairs / batch_pairs)` batches whose sizes differ by
    at most one and never exceed `batch_pairs`. A short tail would otherwise get a full-size update: with 33 pairs
    and batches of 16, one pair would weigh as much as sixteen others.

    Args:
        num_pairs: of the round.
        batch_pairs: largest batch.
        epochs: passes over the pairs.
        seed: of the run.
        round_index: 0-based.
    """
    batches = []
    for epoch in range(epochs):
        order = list(range(num_pairs))
        random.Random(derive_seed(seed, "batches", round_index, epoch)).shuffle(order)
        count = -(-num_pairs // batch_pairs)
        start = 0
        for index in range(count):
            size = num_pairs // count + (index < num_pairs % count)
            batches.append(order[start : start + size])
            start += size
    return batches


def pack_by_tokens(
    longest: Sequence[int], tokens: Sequence[int], *, budget: int, padded: bool = False
) -> list[list[int]]:
    """Group items, such as the two rows of a pair, of similar length within a token budget.

    Args:
        longest: tokens of each item's longest row.
        tokens: that each item brings to a group.
        budget: of a group. An item that exceeds it alone is a group of its own.
        padded: every item of a group costs as much as its largest one.

    Returns:
        Indices of the items, longest group first, so that a run that does not fit in memory fails at once.
    """
    order = sorted(range(len(longest)), key=lambda index: (-longest[index], -tokens[index]))
    groups: list[list[int]] = []
    for index in order:
        if groups:
            costs = [tokens[i] for i in (*groups[-1], index)]
            if (max(costs) * len(costs) if padded else sum(costs)) <= budget:
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups


def deal(tokens: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Share items out, so that every rank gets about as many tokens: the longest first, each to whom has fewest.

    Args:
        tokens: of each item.
        num_ranks: of a learner; there may be fewer items.

    Returns:
        Indices of each rank's items, in their order.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    taken = [0] * num_ranks
    for index in sorted(range(len(tokens)), key=lambda index: -tokens[index]):
        rank = min(range(num_ranks), key=taken.__getitem__)  # of equals the first
        shares[rank].append(index)
        taken[rank] += tokens[index]
    return [sorted(share) for share in shares]


def deal_rows(rows: Sequence[Row], num_ranks: int) -> list[list[int]]:
    """As `deal`; rows of one prompt stay together, since they can share it in a forward pass."""
    members = same_prompt(rows)
    shares = deal([num_tokens([rows[index] for index in indices]) for indices in members], num_ranks)
    return [sorted(index for item in share for index in members[item]) for share in shares]


def same_prompt(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of the rows of each prompt, prompts in the order in which they come."""
    found: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        found.setdefault(row.prompt_ids, []).append(index)
    return list(found.values())


def num_tokens(rows: Sequence[Row]) -> int:
    """Of prompts and completions. Layouts make no difference, so that all ranks deal alike."""
    return sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows)

"""Which pairs make up which optimizer step, and which rows go through the model together."""

from __future__ import annotations

import random
from collections.abc import Sequence

from online_dpo.types import derive_seed


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


def pack_by_tokens(lengths: Sequence[int], *, rows_per_item: int, budget: int) -> list[list[int]]:
    """Group items of similar length so that a padded group stays within a token budget.

    Args:
        lengths: tokens of each item's longest row.
        rows_per_item: rows that an item brings: 2 for a pair, whose halves stay together.
        budget: padded tokens of a group, `rows * longest`. An item that exceeds it alone is a group of its own.

    Returns:
        Indices into `lengths`, longest group first, so that a run that does not fit in memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    start = 0
    while start < len(order):
        longest = max(lengths[order[start]], 1)
        size = max(budget // (rows_per_item * longest), 1)
        groups.append(order[start : start + size])
        start += size
    return groups

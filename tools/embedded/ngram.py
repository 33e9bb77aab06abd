"""The n-gram language model the embedded policy is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class KneserNey:
    """Interpolated Kneser-Ney with one absolute discount per order (Chen & Goodman 1999, section 2.7).

    The discount of an order is `n1 / (n1 + 2 n2)` of its counts, or one half where either is 0. Below the highest
    order, counts are the numbers of distinct preceding tokens. Documents are padded on the left with `bos`, which
    is never predicted, and contexts do not reach across documents.
    """

    def __init__(self, documents: Sequence[Sequence[int]], *, order: int, vocabulary: int, bos: int) -> None:
        """Count `documents` (token ids, without `bos`; an `<eos>` is a token like any other).

        Raises:
            ValueError: an n-gram of this order does not fit into 63 bits.
        """
        if vocabulary**order >= 2**63:
            raise ValueError(f"{order}-grams over {vocabulary} tokens do not fit into 63 bits; lower the order")
        self.order, self.vocabulary, self.bos = order, vocabulary, bos
        keys, counts = np.unique(np.concatenate([self._keys(doc) for doc in documents]), return_counts=True)
        self._levels = [_Level(keys, counts, vocabulary)]
        for n in range(order - 1, 0, -1):
            # Each distinct longer n-gram is one distinct way to precede its suffix.
            keys, counts = np.unique(keys % vocabulary**n, return_counts=True)
            self._levels.insert(0, _Level(keys, counts, vocabulary))

    def _keys(self, ids: Sequence[int]) -> Ints:
        """`[T]` the n-gram that ends in each token, packed as the digits of a number in base `vocabulary`."""
        padded = np.concatenate([np.full(self.order - 1, self.bos), np.asarray(ids, dtype=np.int64)]).astype(np.int64)
        keys = np.zeros(len(ids), dtype=np.int64)
        for i in range(self.order):
            keys = keys * self.vocabulary + padded[i : i + len(ids)]
        return keys

    def log_probs(self, ids: Sequence[int]) -> Floats:
        """`[T]` the natural log-probability of each token of one document."""
        keys = self._keys(ids)
        # `bos` is never a target, so the uniform distribution at the bottom has one token fewer.
        probs = np.full(len(ids), 1.0 / (self.vocabulary - 1))
        for n, level in enumerate(self._levels, start=1):
            probs = level.interpolate(keys % self.vocabulary**n, probs)
        return np.log(probs)


class _Level:
    """The counts of one order, and its step of the interpolation."""

    def __init__(self, keys: Ints, counts: Ints, vocabulary: int) -> None:
        self._keys, self._counts, self._vocabulary = keys, counts, vocabulary
        self._contexts, first, types = np.unique(keys // vocabulary, return_index=True, return_counts=True)
        self._types, self._totals = types, np.add.reduceat(counts, first)
        ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
        self.discount = ones / (ones + 2 * twos) if ones and twos else 0.5

    def interpolate(self, keys: Ints, lower: Floats) -> Floats:
        """`max(c(hw) - d, 0) / c(h) + d types(h) / c(h) * lower`; `lower` itself where `h` was never seen."""
        counts = _look_up(keys, self._keys, self._counts)
        totals = _look_up(keys // self._vocabulary, self._contexts, self._totals)
        types = _look_up(keys // self._vocabulary, self._contexts, self._types)
        seen = totals > 0
        safe = np.where(seen, totals, 1)
        mixed = np.maximum(counts - self.discount, 0) / safe + self.discount * types / safe * lower
        return np.where(seen, mixed, lower)


def _look_up(wanted: Ints, keys: Ints, values: Ints) -> Ints:
    """The value of each wanted key, 0 where it is missing. `keys` is sorted."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)

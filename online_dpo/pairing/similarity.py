"""How alike two texts are: the share of their runs of words that they have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SHINGLE_WORDS = 3

Shingles = frozenset[tuple[str, ...]]


def shingles(text: str) -> Shingles:
    """Every run of three words, without regard to case; a text of fewer words is one run. Words end at whitespace."""
    words = text.casefold().split()
    size = min(SHINGLE_WORDS, len(words))
    return frozenset(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def similarity(a: Shingles, b: Shingles) -> float:
    """Resemblance of two texts in [0, 1]: shared runs over all runs (Broder 1997, "On the resemblance and containment
    of documents", w-shingling)."""
    return len(a & b) / len(a | b)


def alike(
    compared: Iterable[tuple[int, int]], texts: Mapping[int, str], threshold: float | None
) -> frozenset[tuple[int, int]]:
    """Those of the pairs of indices whose texts are at least this similar; None = none."""
    if threshold is None:
        return frozenset()
    runs = {index: shingles(text) for index, text in texts.items()}
    return frozenset((i, j) for i, j in compared if similarity(runs[i], runs[j]) >= threshold)

"""The film reviews the embedded models are built from: loading, splitting, and cutting them into training text."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

_SENTENCE_END = re.compile(r"[.!?]+[\"')]*\s+(?:\"\s+)?(?=\S)")
_WORD_START = re.compile(r"(?:^|(?<=\s))\S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One labelled review.

    Attributes:
        review_id: the data set's own id, unique over both labels.
        text: the whole review, lower-cased.
        positive: the reviewer's verdict.
        split: `train` or `heldout`.
    """

    review_id: str
    text: str
    positive: bool
    split: str


def load_reviews(path: Path) -> list[Review]:
    """Read the gzipped JSON lines of `split, id, label, text`, with runs of white space made one space."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Review(
            review_id=row["id"],
            text=" ".join(row["text"].split()),
            positive=row["label"] == "pos",
            split=row["split"],
        )
        for row in rows
    ]


def half_of(review_id: str) -> str:
    """Which judge may be fitted to a train review: `reward` or `gold`.

    A hash of the id, so that the answer depends neither on the file's order nor on a seed: the gold classifier is
    independent of the reward model only while the two halves stay disjoint.
    """
    return "reward" if hashlib.sha256(review_id.encode()).digest()[0] % 2 == 0 else "gold"


def sentence_starts(text: str) -> list[int]:
    """Character offsets at which a sentence begins, 0 included. A heuristic: abbreviations count as ends."""
    return [0, *(match.end() for match in _SENTENCE_END.finditer(text))]


def word_starts(text: str) -> list[int]:
    """Character offsets of the first characters of the white-space separated words."""
    return [match.start() for match in _WORD_START.finditer(text)]


def openings(reviews: Sequence[Review], *, seed: int, whole: int = 4) -> Iterator[tuple[int, int]]:
    """Yield `(review index, character offset)` of document starts for ever, shuffled within each pass.

    Each pass has every sentence of every review once, and each review's beginning `whole` times in all: the policy
    is prompted with openings, so every row it learns from begins at one.
    """
    starts = [(i, at) for i, review in enumerate(reviews) for at in sentence_starts(review.text)]
    starts += [(i, 0) for i in range(len(reviews)) for _ in range(whole - 1)]
    rng = random.Random(seed)
    while True:
        rng.shuffle(starts)
        yield from starts


def random_snippet(review: Review, rng: random.Random, *, words: tuple[int, int]) -> str:
    """A run of adjacent words from anywhere in a review; its length is uniform in `words`, the review permitting."""
    length = rng.randint(*words)
    starts = word_starts(review.text)
    first = rng.randrange(max(1, len(starts) - length))
    last = first + length
    return review.text[starts[first] : starts[last] if last < len(starts) else None].rstrip()


def token_snippets(
    reviews: Sequence[Review], tokenizer: Tokenizer, *, tokens: int, per_review: int, seed: int
) -> tuple[list[str], list[bool]]:
    """Snippets cut from `tokens` adjacent tokens, and the labels of the reviews they come from."""
    rng = random.Random(seed)
    texts, labels = [], []
    for review in reviews:
        ids = tokenizer.encode(review.text, add_special_tokens=False).ids
        for _ in range(per_review):
            first = rng.randrange(max(1, len(ids) - tokens))
            texts.append(tokenizer.decode(ids[first : first + tokens]).strip())
            labels.append(review.positive)
    return texts, labels

"""Which completions of a prompt people compare, and the verdicts that follow from what they said.

The same text is never compared with itself, and two texts are asked about once, however many completions have them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeAlias

from online_dpo.types import Completion, Verdict, derive_seed

Places: TypeAlias = tuple[int, int]
"""Two completions of a prompt by their places in its list, the lower one first."""

Answer: TypeAlias = float | str
"""The probability that the first of two wins, or why there is none."""

ALONE = "nothing to compare with"

MAX_DRAWS = 100
"""The best of so many is far more likely than not to compare all equally often."""


def compared(texts: Sequence[str], max_comparisons: int | None, seed: int, prompt_id: str) -> list[Places]:
    """The places that are compared, of each text the first one.

    Args:
        texts: of the completions of one prompt.
        max_comparisons: at most so many; each text is then in as many as any other, or in one more. None = every two.
        seed: with the prompt, draws which.
        prompt_id: of the prompt.
    """
    every = list(combinations([texts.index(text) for text in dict.fromkeys(texts)], 2))
    if max_comparisons is None or len(every) <= max_comparisons:
        return every
    draw = random.Random(derive_seed(seed, "comparisons", prompt_id))
    for _ in range(MAX_DRAWS):
        taken, times = _draw(every, max_comparisons, draw)
        if max(times.values()) - min(times.values()) <= 1:
            break
    return sorted(taken)


def _draw(every: Sequence[Places], number: int, draw: random.Random) -> tuple[list[Places], Mapping[int, int]]:
    """So many of the pairs, each time one whose two are in the fewest so far, and how many each is in."""
    left, taken = draw.sample(every, len(every)), list[Places]()
    times = Counter({i: 0 for pair in every for i in pair})
    while len(taken) < number:
        i, j = min(left, key=lambda pair: sorted((times[pair[0]], times[pair[1]]), reverse=True))
        left.remove((i, j))
        times.update((i, j))
        taken.append((i, j))
    return taken, times


def verdicts_of(completions: Sequence[Completion], said: Mapping[Places, Answer]) -> list[Verdict]:
    """What people say about every two completions of one prompt; nothing about two that were not compared.

    Args:
        completions: of one prompt, in the order that `compared` was given.
        said: about places that were compared.
    """
    texts, name = [completion.text for completion in completions], completions[0].prompt_id
    if len(completions) == 1:
        return [Verdict(prompt_id=name, first=completions[0].sample_index, reason=ALONE)]
    found = []
    for i, j in combinations(range(len(texts)), 2):
        first, second = texts.index(texts[i]), texts.index(texts[j])
        answer = 0.5 if first == second else said.get((min(first, second), max(first, second)))
        if answer is None:
            continue
        p = None if isinstance(answer, str) else answer if first < second else 1.0 - answer
        reason = answer if isinstance(answer, str) else None
        a, b = completions[i].sample_index, completions[j].sample_index
        found.append(Verdict(prompt_id=name, first=a, second=b, probability=p, reason=reason))
    return found

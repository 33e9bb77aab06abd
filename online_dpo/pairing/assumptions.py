"""Answers that are taken to be better than the policy's samples (`assume: better`), as opinions that pairing reads.

A pair strategy sees them like a judge's. A pair that rests on one has neither margin nor probability: nobody said by
how much its chosen answer is better.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from online_dpo.types import Completion, Pair, Verdict, group_by_prompt

NOT_ASKED = "no judge is asked about it"


def assume(completions: Sequence[Completion], verdicts: Sequence[Verdict], better: Collection[str]) -> list[Verdict]:
    """Verdicts for what the judge was not asked: every assumed answer beats every sample that has another text.

    A completion about which nobody says anything gets an abstention.

    Args:
        completions: of a round.
        verdicts: of its judge.
        better: writers.
    """
    known = {(v.prompt_id, i) for v in verdicts for i in (v.first, v.second) if i is not None}
    found: list[Verdict] = []
    for name, group in group_by_prompt(completions).items():
        compared = {
            (candidate.sample_index, sample.sample_index)
            for candidate in group
            for sample in group
            if candidate.source in better and sample.source is None and not _same(candidate, sample)
        }
        found += [Verdict(prompt_id=name, first=i, second=j, probability=1.0) for i, j in sorted(compared)]
        known |= {(name, i) for indices in compared for i in indices}
        silent = [c.sample_index for c in group if (name, c.sample_index) not in known]
        found += [Verdict(prompt_id=name, first=i, reason=NOT_ASKED) for i in silent]
    return found


def as_assumed(pair: Pair, better: Collection[str]) -> Pair:
    """The pair without what no judge said."""
    sources = {pair.chosen.source, pair.rejected.source}
    return replace(pair, margin=None, probability=None) if None in sources and sources & {*better} else pair


def count_assumed(completions: Sequence[Completion], pairs: Sequence[Pair], better: Collection[str]) -> dict[str, int]:
    """Pairs that rest on an assumption, and candidates that say the same as a sample and so can make none with it."""
    repeated = 0
    for group in group_by_prompt(completions).values():
        samples = [c for c in group if c.source is None]
        repeated += sum(any(_same(c, sample) for sample in samples) for c in group if c.source in better)
    return {
        "num_assumed_pairs": sum(as_assumed(pair, better).margin is None for pair in pairs),
        "num_candidates_like_a_sample": repeated,
    }


def _same(left: Completion, right: Completion) -> bool:
    return left.token_ids == right.token_ids or left.text.strip() == right.text.strip()

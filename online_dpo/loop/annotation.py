"""A second judge, asked about the two answers of each selected pair alone: its preference decides who is chosen.

A dear judge's calls go where the training judge found a pair worth having. What it says is committed shard by shard
like the training judge's, and a run that stops or is killed asks it only for the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from online_dpo.config.pairing import ANNOTATOR
from online_dpo.config.run import RunConfig
from online_dpo.errors import JudgingStopped
from online_dpo.loop.stages import Event, Stages, Task
from online_dpo.pairing.pairs import by_prompt, opinion_on, penalty_of
from online_dpo.pairing.selection import Selection, settled
from online_dpo.statistics.judges import report
from online_dpo.store.run_store import RoundStore
from online_dpo.store.shards import commit_judged, get_parts, name_commit, sum_counters
from online_dpo.types import Completion, Pair, Shard, Verdict

SELECTED = "selected"
"""The commit of what the annotator is asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the annotator says about a round's pairs."""

    verdicts: tuple[Verdict, ...]
    counters: Mapping[str, int | float]


def label_pairs(
    config: RunConfig, stages: Stages, store: RoundStore, found: Selection
) -> Generator[Event, None, Selection]:
    """Have the annotator settle a round's pairs.

    Returns (as the generator's value): the selection that is left, with every pair counted.

    Raises:
        JudgingStopped: as `ask_annotator`.
    """
    pairs = [item for item in found.items if isinstance(item, Pair)]
    said = yield from ask_annotator(stages, store, pairs, config.generator.shard_prompts)
    penalty = penalty_of(config.sampling.truncated, config.sampling.truncated_penalty)
    left, counts = settle(pairs, said.verdicts, penalty)
    answers = [completion for pair in pairs for completion in in_sample_order(pair)]
    figures = {"judges": {ANNOTATOR: report(answers, said.verdicts, said.counters)}}
    return settled(replace(found, figures={**found.figures, **figures}), left, counts, said.counters)


def ask_annotator(
    stages: Stages, store: RoundStore, pairs: Sequence[Pair], shard_prompts: int
) -> Generator[Event, None, Said]:
    """Ask about the answers of each pair, in the order in which they were sampled; commit what is said as it comes.

    Args:
        stages: one of whose judges is the annotator.
        store: of the round.
        pairs: at most one of each prompt.
        shard_prompts: prompts of a shard.

    Returns (as the generator's value): `Said`.

    Raises:
        JudgingStopped: the annotator may or can go on no more; all that it said is committed.
    """
    _commit_selection(store, pairs)
    answers = {pair.prompt.prompt_id: in_sample_order(pair) for pair in pairs}
    prompts = [pair.prompt for pair in pairs]
    shards = [
        Shard(index=i, prompts=tuple(prompts[start : start + shard_prompts]))
        for i, start in enumerate(range(0, len(prompts), shard_prompts))
    ]
    running: dict[Task, Shard] = {}
    for shard in shards:
        if not store.has(_name("verdicts", shard)):
            parts = get_parts(store, _name("parts", shard))
            judged = {verdict.prompt_id for part in parts for verdict in part.verdicts}
            asked = [c for p in shard.prompts if p.prompt_id not in judged for c in answers[p.prompt_id]]
            yield _event("judging_started", store, shard)
            running[stages.start_judging(ANNOTATOR, shard, asked)] = shard
    stopped = None
    while running:
        task, result = stages.first_done(list(running))
        shard = running.pop(task)
        whole = commit_judged(store, shard, result, partial(_name, shard=shard))
        if whole is None:
            stopped = stopped or result.stopped
        else:
            yield _event("shard_judged", store, shard, verdicts=whole.verdicts, latencies_s=result.latencies_s)
    if stopped is not None:
        raise JudgingStopped(f"round {store.index + 1}: {stopped}")
    verdicts = [store.get_records(_name("verdicts", shard), Verdict) for shard in shards]
    return Said(
        verdicts=tuple(verdict for found in verdicts for verdict in found),
        counters=sum_counters(store.get_json(_name("counters", shard)) for shard in shards),
    )


def settle(pairs: Sequence[Pair], verdicts: Sequence[Verdict], penalty: float) -> tuple[list[Pair], Counter[str]]:
    """The pairs as the annotator has them, and what became of all.

    Args:
        pairs: at most one of each prompt.
        verdicts: of the annotator, about their completions.
        penalty: taken off a truncated side's margin.

    Returns:
        Those in which it strictly prefers one answer, with its margin and probability; and counts that sum to the
        pairs: `upheld`, `overturned`, `tie`, `abstained`, `judge_failed`.
    """
    said = by_prompt(verdicts)
    found: list[Pair] = []
    counts = Counter(dict.fromkeys(("upheld", "overturned", "tie", "abstained", "judge_failed"), 0))
    for pair in pairs:
        opinion = opinion_on(in_sample_order(pair), said.get(pair.prompt.prompt_id, []), penalty)
        preference = opinion.preference(pair.chosen.sample_index, pair.rejected.sample_index)
        if preference is None:
            counts["judge_failed" if opinion.has_failures else "abstained"] += 1
        elif preference.is_strict:
            counts["upheld"] += 1
            found.append(replace(pair, margin=preference.margin, probability=preference.probability))
        elif (other := preference.reversed()).is_strict:
            counts["overturned"] += 1
            swapped = {"chosen": pair.rejected, "rejected": pair.chosen}
            found.append(replace(pair, margin=other.margin, probability=other.probability, **swapped))  # type: ignore[arg-type]
        else:
            counts["tie"] += 1
    return found, counts


def in_sample_order(pair: Pair) -> list[Completion]:
    """Its answers in an order that does not tell which is chosen."""
    return sorted((pair.chosen, pair.rejected), key=lambda answer: answer.sample_index)


def _commit_selection(store: RoundStore, pairs: Sequence[Pair]) -> None:
    """Once. Where the training judge was asked again since, what was said about another selection is forgotten."""
    found = {"pairs": [[p.prompt.prompt_id, *(c.sample_index for c in in_sample_order(p))] for p in pairs]}
    if store.has(SELECTED):
        if store.get_json(SELECTED) == found:
            return
        for what in ("verdicts", "counters", "parts"):
            for name in store.names(f"{what}-{ANNOTATOR}/"):
                store.remove(name)
        store.remove(SELECTED)
    store.put_json(SELECTED, found)


def _name(what: str, shard: Shard) -> str:
    return name_commit("", what, shard.index, ANNOTATOR)


def _event(kind: str, store: RoundStore, shard: Shard, **data: Any) -> Event:
    return Event(
        kind=kind, round_index=store.index, data={"shard": shard.index, "base": "", "judge": ANNOTATOR, **data}
    )

"""What a round commits of its candidates: each writer's answers to each shard, with what was counted.

A writer's answers to a shard and their counts are one commit. A writer that stops in the middle of a shard leaves a
part, which its continuation joins with the rest, so that nobody is asked, or paid, twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore
from online_dpo.types import Completion

WHOLE, PARTS = "candidates-", "candidate-parts-"
"""How the folders of whole shards and of parts begin; the writer's name follows."""

COUNTED = "candidates/"
"""How the names of writers begin beside those of judges, which have no slash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What came of a writer's answers to a shard, or to some of its prompts."""

    completions: tuple[Completion, ...]  # those that were kept
    prompt_ids: tuple[str, ...]  # all that it is about
    outcomes: Mapping[str, int]  # word of `online_dpo.written.Outcome` -> answers
    details: Mapping[str, int]  # what is known about failures -> answers
    counters: Mapping[str, int | float]  # of the writer's host

    def plus(self, other: Given) -> Given:
        """Both together; they are about different prompts."""
        return Given(
            completions=(*self.completions, *other.completions),
            prompt_ids=(*self.prompt_ids, *other.prompt_ids),
            outcomes=dict(Counter(self.outcomes) + Counter(other.outcomes)),
            details=dict(Counter(self.details) + Counter(other.details)),
            counters={
                name: self.counters.get(name, 0) + other.counters.get(name, 0)
                for name in sorted({*self.counters, *other.counters})
            },
        )


NOTHING = Given(completions=(), prompt_ids=(), outcomes={}, details={}, counters={})


class CandidateCommits:
    """The commits about the candidates of one round."""

    def __init__(self, store: RoundStore) -> None:
        self._store = store

    def has(self, source: str, shard: int) -> bool:
        """Whether a writer's answers to a whole shard are committed."""
        return self._store.has(_name(WHOLE, source, shard))

    def put(self, source: str, shard: int, given: Given, *, is_part: bool = False) -> None:
        """Commit what a writer gave, with the parts that are there, or as a further part."""
        if is_part:
            number = len(self._part_names(source, shard))
            self._put(f"{_name(PARTS, source, shard)}-{number:03d}", given)
            return
        whole = self.parts(source, shard).plus(given)
        self._put(_name(WHOLE, source, shard), whole)
        self.remove_parts(source, shard)

    def parts(self, source: str, shard: int) -> Given:
        """What was given before the writer stopped, all times together."""
        found = NOTHING
        for name in self._part_names(source, shard):
            found = found.plus(self._get(name))
        return found

    def remove_parts(self, source: str, shard: int) -> None:
        """Once the whole shard is committed; a kill may have left some beside it."""
        for name in self._part_names(source, shard):
            self._store.remove(name)

    def completions(self, shard: int) -> list[Completion]:
        """All candidates of a shard, in no order that means anything."""
        names = [name for name in self._store.names(WHOLE) if name.endswith(f"/shard-{shard:05d}")]
        return [completion for name in names for completion in self._store.get_records(name, Completion)]

    def total(self, source: str) -> Given:
        """Of all shards that are whole."""
        found = NOTHING
        for name in self._store.names(f"{WHOLE}{source}/"):
            found = found.plus(self._get(name))
        return found

    def num_prompts(self, source: str) -> int:
        """Prompts that a writer has answered, in whole shards or parts."""
        names = [*self._store.names(f"{WHOLE}{source}/"), *self._store.names(f"{PARTS}{source}/")]
        return len({prompt_id for name in names for prompt_id in self._store.get_json(name)["prompt_ids"]})

    def counted(self, source: str) -> Iterator[Mapping[str, int | float]]:
        """What a writer counted in each commit, each request once."""
        whole = self._store.names(f"{WHOLE}{source}/")
        finished = {name.rpartition("/")[2] for name in whole}  # a kill may leave parts beside what they went into
        parts = [n for n in self._store.names(f"{PARTS}{source}/") if n.rpartition("/")[2][:-4] not in finished]
        yield from (self._store.get_json(name)["counters"] for name in (*whole, *parts))

    def _put(self, name: str, given: Given) -> None:
        values = {
            "prompt_ids": list(given.prompt_ids),
            "outcomes": dict(given.outcomes),
            "details": dict(given.details),
            "counters": dict(given.counters),
        }
        self._store.put_records(name, given.completions, beside=values)

    def _get(self, name: str) -> Given:
        values = self._store.get_json(name)
        return Given(
            completions=tuple(self._store.get_records(name, Completion)),
            prompt_ids=tuple(values["prompt_ids"]),
            outcomes=values["outcomes"],
            details=values["details"],
            counters=values["counters"],
        )

    def _part_names(self, source: str, shard: int) -> list[str]:
        return self._store.names(f"{_name(PARTS, source, shard)}-")


def candidates_counted(store: RunStore, sources: Sequence[str]) -> dict[str, dict[str, int | float]]:
    """`candidates/WRITER` -> sums of what it counted in all that is committed."""
    rounds = [*(store.round(index) for index in store.finished_rounds()), *store.unfinished_rounds()]
    found: dict[str, dict[str, int | float]] = {}
    for source in sources:
        total: Counter[str] = Counter()
        for part in rounds:
            for counts in CandidateCommits(part).counted(source):
                total.update(counts)
        found[f"{COUNTED}{source}"] = dict(total)
    return found


def _name(folder: str, source: str, shard: int) -> str:
    return f"{folder}{source}/shard-{shard:05d}"

"""What a round commits of its shards: completions, each judge's verdicts with what was counted, and parts of verdicts.

A shard's verdicts and its counts are one commit, so neither is ever there without the other. A judge that stops in the
middle of a shard leaves a part, which its continuation joins with the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from online_dpo.member_agreement import MemberAgreement
from online_dpo.store.candidates import CandidateCommits
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore
from online_dpo.types import REWARD, Completion, Judged, Shard, Verdict
from online_dpo.votes import CastVote

VOTES = "votes"
"""The table beside a shard's verdicts in which the votes lie that they rest on, where people are the judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who was asked about a shard, and whether it was for the second time."""

    judge: str = REWARD
    again: bool = False

    @property
    def verdicts(self) -> str:
        """The folder of whole shards; that of the training judge has no judge in its name."""
        return f"{'repeats' if self.again else 'verdicts'}{'' if self.judge == REWARD else f'-{self.judge}'}"

    @property
    def parts(self) -> str:
        """The folder of parts of shards."""
        return f"{'repeat-' if self.again else ''}parts{'' if self.judge == REWARD else f'-{self.judge}'}"


class ShardCommits:
    """The commits about the shards of one sampling in one round."""

    def __init__(self, store: RoundStore, base: str = "") -> None:
        """Begin to use them.

        Args:
            store: of the round.
            base: prefix of the commits' names, such as `evaluation/heldout/`; empty for the round's own samples.
        """
        self.store, self.base = store, base

    def has_completions(self, shard: int) -> bool:
        return self.store.has(self._name("completions", shard))

    def put_completions(self, shard: int, completions: Sequence[Completion]) -> None:
        self.store.put_records(self._name("completions", shard), completions)

    def samples(self, shard: int) -> list[Completion]:
        """The policy's own."""
        return self.store.get_records(self._name("completions", shard), Completion)

    def completions(self, shard: int) -> list[Completion]:
        """All that judges are asked about: the policy's samples, and the candidates of a round, in prompt order."""
        samples = self.samples(shard)
        candidates = [] if self.base else CandidateCommits(self.store).completions(shard)
        if not candidates:
            return samples
        order = {name: i for i, name in enumerate(dict.fromkeys(c.prompt_id for c in samples))}
        return sorted([*samples, *candidates], key=lambda c: (order[c.prompt_id], c.sample_index))

    def has_verdicts(self, shard: int, asked: Asked) -> bool:
        """Whether all that is asked about the shard is answered."""
        return self.store.has(self._name(asked.verdicts, shard))

    def verdicts(self, shard: int, asked: Asked) -> Judged:
        """What was said about a whole shard."""
        return self._get(self._name(asked.verdicts, shard))

    def parts(self, shard: int, asked: Asked) -> list[Judged]:
        """What was said and counted before the judge stopped, once for each time that it did."""
        return [self._get(name) for name in self._part_names(shard, asked)]

    def put(self, shard: Shard, asked: Asked, result: Judged) -> Judged | None:
        """Commit what a judge said about a shard, with the parts that are there.

        Args:
            shard: what it was asked about.
            asked: who was.
            result: as the judge's host returned it.

        Returns:
            All that was said about the shard; None where the judge stopped before its end.
        """
        if result.stopped is not None:
            self._put_part(shard.index, asked, result)
            return None
        whole = join(shard, [*self.parts(shard.index, asked), result])
        self._put(self._name(asked.verdicts, shard.index), shard.index, whole)
        self.remove_parts(shard.index, asked)
        return whole

    def remove_parts(self, shard: int, asked: Asked) -> None:
        """Once the whole shard is committed; a kill may have left some beside it."""
        for name in self._part_names(shard, asked):
            self.store.remove(name)

    def reopen(self, shard: int, asked: Asked, kept: Sequence[Verdict]) -> None:
        """Turn a whole shard into a part with fewer verdicts, so that the rest is asked again. What was counted stays.

        A kill on the way leaves the whole shard, with or without the part; this can then be done again.
        """
        whole = self.verdicts(shard, asked)
        self.remove_parts(shard, asked)
        self._put_part(shard, asked, replace(whole, verdicts=tuple(kept)))
        self.store.remove(self._name(asked.verdicts, shard))

    def remove_verdicts(self, judge: str) -> None:
        """Forget all that a judge said about these shards."""
        asked = Asked(judge=judge)
        for name in [*self._names(asked.verdicts), *self._names(asked.parts)]:
            self.store.remove(name)

    def counted(self, judge: str) -> Iterator[Mapping[str, int | float]]:
        """What a judge counted in each commit, each question once."""
        for asked in (Asked(judge=judge), Asked(judge=judge, again=True)):
            whole = [self.store.get_json(name) for name in self._names(asked.verdicts)]
            parts = [self.store.get_json(name) for name in self._names(asked.parts)]
            finished = {values["shard"] for values in whole}  # a kill may leave parts beside what they went into
            yield from (values["counters"] for values in whole)
            yield from (values["counters"] for values in parts if values["shard"] not in finished)

    def num_judged(self, asked: Asked) -> int:
        """Prompts on which verdicts are committed, in whole shards or parts."""
        names = [*self._names(asked.verdicts), *self._names(asked.parts)]
        return len({verdict.prompt_id for name in names for verdict in self.store.get_records(name, Verdict)})

    def _put_part(self, shard: int, asked: Asked, part: Judged) -> None:
        number = len(self._part_names(shard, asked))
        self._put(f"{self._name(asked.parts, shard)}-{number:03d}", shard, part)

    def _put(self, name: str, shard: int, judged: Judged) -> None:
        agreement = {field: found.to_json() for field, found in judged.agreement.items()}
        values = {"shard": shard, "counters": dict(judged.counters), "agreement": agreement}
        tables = {VOTES: judged.votes} if judged.votes else None
        self.store.put_records(name, judged.verdicts, beside=values, tables=tables)

    def _get(self, name: str) -> Judged:
        values = self.store.get_json(name)
        return Judged(
            verdicts=tuple(self.store.get_records(name, Verdict)),
            counters=values["counters"],
            agreement={field: MemberAgreement.from_json(rows) for field, rows in values["agreement"].items()},
            votes=self._votes(name),
        )

    def _votes(self, name: str) -> tuple[CastVote, ...]:
        if not self.store.has_table(name, VOTES):
            return ()
        return tuple(self.store.get_records(name, CastVote, table=VOTES))

    def _part_names(self, shard: int, asked: Asked) -> list[str]:
        return self.store.names(f"{self._name(asked.parts, shard)}-")

    def _names(self, folder: str) -> list[str]:
        return self.store.names(f"{self.base}{folder}/")

    def _name(self, folder: str, shard: int) -> str:
        return f"{self.base}{folder}/shard-{shard:05d}"


def join(shard: Shard, parts: Iterable[Judged]) -> Judged:
    """Parts about different prompts as one: verdicts in prompt order, counts added up."""
    parts = list(parts)
    order = {prompt.prompt_id: i for i, prompt in enumerate(shard.prompts)}
    verdicts = sorted((v for part in parts for v in part.verdicts), key=lambda v: order[v.prompt_id])  # stable
    return Judged(
        verdicts=tuple(verdicts),
        counters=sum_counters(part.counters for part in parts),
        agreement=add_agreement(part.agreement for part in parts),
        votes=tuple(vote for part in parts for vote in part.votes),
    )


def sum_counters(counters: Iterable[Mapping[str, int | float]]) -> dict[str, int | float]:
    """Of parts or shards; a count of 0 stays."""
    total: Counter[str] = Counter()
    for each in counters:
        total.update(each)
    return dict(total)


def add_agreement(parts: Iterable[Mapping[str, MemberAgreement]]) -> dict[str, MemberAgreement]:
    """Of parts or shards, by the field of each ensemble."""
    total: dict[str, MemberAgreement] = {}
    for part in parts:
        for field, found in part.items():
            total[field] = total[field].plus(found) if field in total else found
    return total


def counted_so_far(
    store: RunStore, judges: Sequence[str], evaluation_sets: Sequence[str]
) -> dict[str, dict[str, int | float]]:
    """Judge -> sums of what it counted in all that is committed, evaluations included."""
    bases = ["", *(evaluation_base(name, is_initial=flag) for name in evaluation_sets for flag in (True, False))]
    rounds = [*(store.round(index) for index in store.finished_rounds()), *store.unfinished_rounds()]
    commits = [ShardCommits(part, base) for part in rounds for base in bases]
    return {judge: sum_counters(counts for found in commits for counts in found.counted(judge)) for judge in judges}


def evaluation_base(name: str, *, is_initial: bool) -> str:
    """The prefix of an evaluation set's commits in a round: for the policy that the round made, or the initial one."""
    return f"evaluation{'-initial' if is_initial else ''}/{name}/"

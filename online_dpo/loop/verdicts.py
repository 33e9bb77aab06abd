"""Asking judges about shards, a second time about some of them, and committing what they say as it comes.

The one place where the loop asks a judge: about the samples of a round, of an evaluation, and about the pairs that an
annotator settles.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from online_dpo.config.judges.view import ViewSection
from online_dpo.errors import AnswersMissing, JudgingStopped
from online_dpo.loop.calls import Call, Calls
from online_dpo.loop.stages import Event
from online_dpo.member_agreement import MemberAgreement
from online_dpo.pairing.answers import with_answers
from online_dpo.statistics.judges import report
from online_dpo.statistics.people import describe_votes, place_bias
from online_dpo.store.shards import Asked, ShardCommits, add_agreement, sum_counters
from online_dpo.types import Completion, Judged, Shard, Verdict, derive_seed
from online_dpo.votes import CastVote


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """All that one judge says about the shards of one sampling."""

    verdicts: tuple[Verdict, ...]  # in prompt order
    repeats: tuple[Verdict, ...]  # what it said when it was asked again
    counters: Mapping[str, int | float]  # of its host, those of repeats included
    agreement: Mapping[str, MemberAgreement]  # of the verdicts; by the config field of each ensemble
    votes: tuple[CastVote, ...] = ()  # of people


NOTHING_SAID = Said(verdicts=(), repeats=(), counters={}, agreement={})
"""Where there is no judge."""


class Asking:
    """The questions to judges that are under way, and what to do when one is answered.

    A judge that stops ends the asking of all: what others were asked before is still waited for and committed.
    """

    def __init__(
        self,
        calls: Calls,
        commits: ShardCommits,
        judges: Sequence[str],
        again: Mapping[str, Collection[str]] | None = None,
        unjudged: Collection[str] = (),
    ) -> None:
        """Nothing is asked yet.

        Args:
            calls: where each question is entered while it is under way, and whose judges are asked.
            commits: of the sampling that is judged.
            judges: names.
            again: judge -> prompts that it is asked about a second time, where it had an opinion.
            unjudged: writers whose answers no judge is shown.
        """
        self._calls, self._commits, self._unjudged = calls, commits, unjudged
        self._judges, self._again = judges, again or {}
        self._stopped: str | None = None  # why a judge stopped
        self._lacks_answers = False  # of people, and the run is not to wait for them

    @property
    def is_stopped(self) -> bool:
        return self._stopped is not None

    def stop(self, reason: str) -> None:
        """Ask nothing more: a writer of candidates can go on no more, and judges are to see its answers too."""
        self._stopped = self._stopped or reason

    def ask(self, shard: Shard, completions: Sequence[Completion]) -> Iterator[Event]:
        """Ask every judge about a shard, unless what it says is committed."""
        for judge in self._judges:
            asked = Asked(judge=judge)
            if self.is_stopped:
                return
            if self._commits.has_verdicts(shard.index, asked):
                self._commits.remove_parts(shard.index, asked)  # which a kill left beside the whole
                self._ask_again(shard, judge, completions)
            else:
                yield self.event("judging_started", shard, judge=judge)
                self._start(shard, asked, completions)

    def _on_judged(self, shard: Shard, asked: Asked, result: Judged | None) -> Iterator[Event]:
        """Commit what was said, and ask again where the shard has prompts that were drawn for it."""
        if result is None:
            self._lacks_answers = True
            return
        whole = self._commits.put(shard, asked, result)
        if whole is None:
            self._stopped = self._stopped or result.stopped
        elif asked.again:
            yield self.event("shard_repeated", shard, judge=asked.judge, latencies_s=result.latencies_s)
        else:
            seconds = result.latencies_s
            yield self.event("shard_judged", shard, judge=asked.judge, verdicts=whole.verdicts, latencies_s=seconds)
            self._ask_again(shard, asked.judge, None)

    def said(self, shards: Sequence[Shard]) -> dict[str, Said]:
        """Judge -> what it said, read back from the store: what is used is what was committed."""
        found = {}
        for judge in self._judges:
            first, second = Asked(judge=judge), Asked(judge=judge, again=True)
            whole = [self._commits.verdicts(shard.index, first) for shard in shards]
            repeated = [
                self._commits.verdicts(shard.index, second)
                for shard in shards
                if self._commits.has_verdicts(shard.index, second)
            ]
            found[judge] = Said(
                verdicts=tuple(verdict for part in whole for verdict in part.verdicts),
                repeats=tuple(verdict for part in repeated for verdict in part.verdicts),
                counters=sum_counters(part.counters for part in (*whole, *repeated)),
                agreement=add_agreement(part.agreement for part in whole),
                votes=tuple(vote for part in whole for vote in part.votes),
            )
        return found

    def event(self, kind: str, shard: Shard, **data: Any) -> Event:
        place = {"shard": shard.index, "base": self._commits.base}
        return Event(kind=kind, round_index=self._commits.store.index, data={**place, **data})

    def _ask_again(self, shard: Shard, judge: str, completions: Sequence[Completion] | None) -> None:
        """About those of the shard's prompts that were drawn for it, and on which the judge has an opinion."""
        drawn, again = self._again.get(judge, ()), Asked(judge=judge, again=True)
        if self.is_stopped or not any(prompt.prompt_id in drawn for prompt in shard.prompts):
            return
        if self._commits.has_verdicts(shard.index, again):
            self._commits.remove_parts(shard.index, again)
            return
        verdicts = self._commits.verdicts(shard.index, Asked(judge=judge)).verdicts
        wanted = {v.prompt_id for v in verdicts if v.reason is None and v.prompt_id in drawn}
        if wanted:
            completions = self._commits.completions(shard.index) if completions is None else completions
            self._start(shard, again, [c for c in completions if c.prompt_id in wanted])

    def _start(self, shard: Shard, asked: Asked, completions: Sequence[Completion]) -> None:
        """Ask about what is not among the parts yet."""
        parts = self._commits.parts(shard.index, asked)
        judged = {verdict.prompt_id for part in parts for verdict in part.verdicts}
        left = tuple(c for c in completions if c.prompt_id not in judged and c.source not in self._unjudged)
        then, people = partial(self._on_judged, shard, asked), self._calls.people
        if people is not None and asked.judge in people.judges:
            self._calls.add(
                people.ask(asked.judge, self._commits.store.index, shard, left), Call(then=then, owner=self)
            )
            return
        task = self._calls.stages.start_judging(asked.judge, shard, left, again=asked.again)
        self._calls.add(task, Call(then=then, owner=self, asks_judge=True))

    def finish(self) -> Iterator[Event]:
        """Wait for everything that is under way, and for what follows from it; once a judge has stopped, for judges.

        Raises:
            JudgingStopped: a judge stopped. What people were asked is left.
            AnswersMissing: people have not answered all of it, and the run is not to wait.
        """
        yield from self._calls.serve(self, only_judges=lambda: self.is_stopped)
        if self._stopped is not None:
            raise JudgingStopped(f"round {self._commits.store.index + 1}: {self._stopped}")
        if self._lacks_answers:
            raise AnswersMissing(f"round {self._commits.store.index + 1} waits for answers of people")


def asked_again(share: float, prompt_ids: Sequence[str], seed: int, version: int, judge: str) -> frozenset[str]:
    """The prompts that a judge is asked about a second time: each by a chance of its own.

    Args:
        share: of the prompts, expected.
        prompt_ids: of one sampling.
        seed: of the run.
        version: of the policy that was sampled.
        judge: its name.
    """
    return frozenset(name for name in prompt_ids if derive_seed(seed, "again", judge, version, name) < share * 2.0**63)


def report_on(completions: Sequence[Completion], said: Said, view: ViewSection | None) -> dict[str, Any]:
    """What a round tells about one judge, given the completions that it was asked about and its view of them."""
    figures = report(with_answers(completions, view), said.verdicts, said.counters, said.repeats, said.agreement)
    return {**figures, **place_bias(said.votes), "people": describe_votes(said.votes)} if said.votes else figures

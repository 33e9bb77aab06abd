"""Asks people about shards, waits for their answers or does not, and turns votes into verdicts.

Votes are durable in the annotation store; a verdict is made from them once, when everything that is asked beside it is
answered, and is committed with the votes that it rests on. What is asked is told from its content, so a run that is
continued asks the same questions and nobody is asked twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

from online_dpo.annotation.consensus import Consensus, find_consensus
from online_dpo.annotation.records import Question, Vote
from online_dpo.annotation.store import AnnotationStore
from online_dpo.config.judges.human import HumanJudge
from online_dpo.config.judges.view import ViewSection
from online_dpo.loop.people.comparisons import Answer, Places, compared, verdicts_of
from online_dpo.loop.stages import Event
from online_dpo.pairing.answers import for_judges
from online_dpo.types import Completion, Judged, Prompt, Shard, Verdict, group_by_prompt
from online_dpo.votes import CastVote

POLL_S = 0.5
"""How often a run that waits looks for new votes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A prompt whose completions people compare."""

    completions: tuple[Completion, ...]
    questions: Mapping[Places, Question]


@dataclass(eq=False, frozen=True, slots=True, kw_only=True)
class AskedPeople:
    """A shard that people are asked about; stands among the calls under way."""

    judge: str
    round_index: int
    prompts: tuple[Compared, ...]
    settled: Mapping[str, Sequence[Verdict]]  # prompt id -> what nobody is asked about

    @property
    def questions(self) -> list[Question]:
        return [question for prompt in self.prompts for question in prompt.questions.values()]


class People:
    """All human judges of a run. Only the process that runs the loop asks; any number look on."""

    def __init__(
        self,
        store: AnnotationStore,
        judges: Mapping[str, HumanJudge],
        *,
        view: ViewSection | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Ask nothing yet.

        Args:
            store: of the run's questions and votes.
            judges: judge's name -> its section.
            view: of the run, for a judge that has none of its own.
            sleep: waits, in seconds.
        """
        self.store, self.judges, self._view = store, judges, view
        self._sleep = sleep
        self._open: dict[str, None] = {}  # questions that this process asked and that are not answered; ordered

    def ask(self, judge: str, round_index: int, shard: Shard, completions: Sequence[Completion]) -> AskedPeople:
        """Publish the questions about a shard, unless they are there already.

        Args:
            judge: its name.
            round_index: of the round in whose folder the verdicts are committed.
            shard: the prompts.
            completions: of some or all of them.
        """
        section = self.judges[judge]
        seen, settled = for_judges(completions, section.view or self._view)
        groups = group_by_prompt(seen)
        prompts = [prompt for prompt in shard.prompts if prompt.prompt_id in groups]
        found = [_compare(judge, round_index, prompt, groups[prompt.prompt_id], section) for prompt in prompts]
        task = AskedPeople(judge=judge, round_index=round_index, prompts=tuple(found), settled=settled)
        self.store.add_questions(task.questions, time.time())
        self._open |= dict.fromkeys(question.question_id for question in task.questions)
        return task

    def open_questions(self) -> list[str]:
        """What this process has asked and has no answer to."""
        return list(self._open)

    def answers(self, tasks: Sequence[AskedPeople]) -> Generator[Event, None, list[tuple[AskedPeople, Judged | None]]]:
        """Wait until all of it is answered, if the config says so.

        Returns (as the generator's value): each task, and what people say about it; None for each where answers are
        missing and the run is not to wait.
        """
        ids = [question.question_id for task in tasks for question in task.questions]
        told, round_index = None, tasks[0].round_index
        while (taken := self.store.take_answers(ids, time.time())) is None:
            if told is None:
                self.store.withdraw_others(self._open, round_index, time.time())
            if not all(self.judges[task.judge].wait for task in tasks):
                return [(task, None) for task in tasks]
            if (missing := self.store.num_missing(ids)) != told:
                told = missing
                data = {"num_questions": len(ids), "num_missing_votes": missing}
                yield Event(kind="people_asked", round_index=round_index, data=data)
            self._sleep(POLL_S)
        for question_id in ids:
            self._open.pop(question_id, None)
        votes = self.store.votes()
        consensus = {judge: self._consensus(judge, taken, votes) for judge in {task.judge for task in tasks}}
        of_question: dict[str, list[Vote]] = {question_id: [] for question_id in ids}
        for vote in votes:
            if vote.question_id in of_question:
                of_question[vote.question_id].append(vote)
        return [(task, _judged(task, consensus[task.judge], of_question)) for task in tasks]

    def _consensus(
        self, judge: str, taken: Mapping[str, Sequence[Vote]], votes: Sequence[Vote]
    ) -> dict[str, Consensus]:
        """By the rules of a judge, of all questions; other votes only tell how reliable people are."""
        section = self.judges[judge]
        return find_consensus(
            taken,
            method=section.consensus,
            min_agreement=section.min_agreement,
            disagreement=section.disagreement,
            evidence=votes,
            known=self.store.gold(),
        )


def _judged(task: AskedPeople, consensus: Mapping[str, Consensus], votes: Mapping[str, Sequence[Vote]]) -> Judged:
    """The verdicts on a shard, and the votes behind them."""
    verdicts: list[Verdict] = []
    cast: list[CastVote] = []
    for prompt in task.prompts:
        said = {places: _answer(consensus[question.question_id]) for places, question in prompt.questions.items()}
        verdicts += verdicts_of(prompt.completions, said)
        for question in prompt.questions.values():
            cast += [_cast(question, vote) for vote in votes[question.question_id]]
    verdicts += [verdict for found in task.settled.values() for verdict in found]
    counters = {
        "num_judge_calls": len(task.questions),
        "num_judge_votes": sum(vote.counts for vote in cast),
        "num_judge_failures": 0,
        **({"num_unclosed_completions": sum(map(len, task.settled.values()))} if task.settled else {}),
    }
    return Judged(verdicts=tuple(verdicts), counters=counters, votes=tuple(cast))


def _compare(
    judge: str, round_index: int, prompt: Prompt, completions: Sequence[Completion], section: HumanJudge
) -> Compared:
    texts = [completion.text for completion in completions]
    questions = {
        (i, j): Question(
            purpose=judge,
            round_index=round_index,
            prompt_id=prompt.prompt_id,
            prompt=prompt.content,
            first=completions[i].sample_index,
            second=completions[j].sample_index,
            first_text=texts[i],
            second_text=texts[j],
        )
        for i, j in compared(texts, section.max_comparisons, section.seed, prompt.prompt_id)
    }
    return Compared(completions=tuple(completions), questions=questions)


def _cast(question: Question, vote: Vote) -> CastVote:
    return CastVote(
        prompt_id=question.prompt_id,
        first=question.first,
        second=question.second,
        question_id=vote.question_id,
        vote_id=vote.vote_id,
        annotator=vote.annotator,
        outcome=vote.outcome,
        status=vote.status,
        swapped=vote.swapped,
        seconds=vote.seconds,
        at=vote.at,
        ratings=vote.ratings,
        comment=vote.comment,
    )


def _answer(consensus: Consensus) -> Answer:
    if consensus.probability is None:
        return consensus.reason or "no opinion"
    return consensus.probability

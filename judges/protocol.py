"""What every judge is: an object with an async method that takes a batch of questions and returns verdicts.

    class Longer:
        async def judge(self, questions):
            return [[q.score(i, len(text)) for i, text in enumerate(q.completions)] for q in questions]

Most judges need less than this: see `judges.user.python_judge` for plain functions and `docs/judges.md` for all forms.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from judges.values import as_list, how_many, read_number, read_position, show, storable
from online_dpo.errors import JudgeError
from online_dpo.types import Abstention, PromptContent, Verdict

ABSTAIN_HINT = 'return Abstain("why") to abstain'


@dataclass(frozen=True, slots=True)
class Abstain:
    """What a judge returns in place of a score, a probability or a ranking when it cannot tell.

    It is counted and never trained on. `kind` is for the judges of this package, which can tell why they abstain.
    """

    reason: str = "no reason given"
    kind: Abstention = field(default="abstained", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str):
            raise JudgeError(f'gave {show(self.reason)} as the reason of an Abstain; write it as text: Abstain("why")')


class StopJudging(JudgeError):
    """Raised by a judge that can answer nothing more, such as at the end of its budget.

    The questions of this call do not count as failures but as not asked. What was answered before is committed, the
    run stops with this message, and its continuation asks the questions that are missing.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt and the texts of its `K` completions. Verdicts name a completion by its position in `completions`."""

    prompt_id: str
    prompt: PromptContent  # text for plain prompts, messages for chat prompts
    completions: tuple[str, ...]  # [K]
    metadata: Mapping[str, Any] = field(default_factory=dict)  # further columns of the prompt's source
    # The question was answered before, and another, independent answer is wanted: from no cache, and by other seeds.
    again: bool = False

    def score(self, position: int, value: object) -> Verdict:
        """A score of one completion; higher is better.

        Raises:
            JudgeError: `value` is neither a finite number nor an `Abstain`.
        """
        if isinstance(value, Abstain):
            return self.abstain(position, value.reason, kind=value.kind)
        number = read_number(value)
        if number is None:
            raise JudgeError(
                f"returned {show(value)} for completion {position} of prompt {self.prompt_id}; return a finite "
                f"number, or {ABSTAIN_HINT}"
            )
        return Verdict(prompt_id=self.prompt_id, first=position, score=number)

    def compare(self, first: int, second: int, value: object) -> Verdict:
        """The probability that completion `first` beats `second`; "a" = 1, "b" = 0, "tie" = one half.

        Raises:
            JudgeError: `value` is none of these, outside [0, 1], or not an `Abstain`.
        """
        if isinstance(value, Abstain):
            return self.abstain(first, value.reason, second=second, kind=value.kind)
        named = {"a": 1.0, "b": 0.0, "tie": 0.5}
        number = named.get(value) if isinstance(value, str) else read_number(value)
        if number is None or not 0.0 <= number <= 1.0:
            raise JudgeError(
                f"returned {show(value)} for completions {first} (a) and {second} (b) of prompt {self.prompt_id}; "
                f'return the probability in [0, 1] that a wins, "a", "b" or "tie", or {ABSTAIN_HINT}'
            )
        return Verdict(prompt_id=self.prompt_id, first=first, second=second, probability=number)

    def ranking(self, value: object) -> list[Verdict]:
        """A ranking as scores: the number of completions ranked below, so a margin is a number of places.

        Args:
            value: every position once, the best first, or an `Abstain` about the whole question.

        Raises:
            JudgeError: a position is missing, repeated or unknown.
        """
        if isinstance(value, Abstain):
            return self.abstain_from_all(value.reason, kind=value.kind)
        count = len(self.completions)
        items = as_list(value, count)
        order = [i for item in items or [] if (i := read_position(item)) is not None]
        if items is None or len(order) != len(items) or sorted(order) != list(range(count)):
            raise JudgeError(
                f"returned {show(value)} for the {count} completions of prompt {self.prompt_id}; return a list of "
                f"every position from 0 to {count - 1} once, the best first, or {ABSTAIN_HINT}"
            )
        places = {position: place for place, position in enumerate(order)}
        return [self.score(i, float(count - 1 - places[i])) for i in range(count)]

    def abstain(
        self, position: int, reason: str, *, second: int | None = None, kind: Abstention = "abstained"
    ) -> Verdict:
        """No opinion about a completion, or about the pair (`position`, `second`)."""
        return Verdict(
            prompt_id=self.prompt_id, first=position, second=second, reason=storable(reason), abstention=kind
        )

    def abstain_from_all(self, reason: str, *, kind: Abstention = "abstained") -> list[Verdict]:
        """No opinion about any of the completions."""
        return [self.abstain(i, reason, kind=kind) for i in range(len(self.completions))]


@runtime_checkable
class Judge(Protocol):
    """Whatever answers questions about completions.

    A judge may also have a `limits` attribute (see `Limits`), and may call `count` while it judges.
    """

    async def judge(self, questions: Sequence[Question]) -> Sequence[Sequence[Verdict]]:
        """Judge a batch.

        Returns:
            One list of verdicts for each question, in order. Every completion is the subject of at least one
            verdict: a score, a probability against another completion, or an abstention.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits that a judge sets on its calls, below the config's `batch_size` and `concurrency`. None = no limit."""

    questions_per_call: int | None = None
    calls_in_flight: int | None = None
    own_retries: bool = False  # it limits and repeats its calls itself; repeating them all would pay twice
    own_timeout: bool = False  # it holds `timeout_s` itself, and raises TimeoutError

    @property
    def held_from_outside(self) -> bool:
        """Whether whoever calls it has to hold `timeout_s`."""
        return not (self.own_retries or self.own_timeout)


def limits_of(judge: Judge) -> Limits:
    """The judge's `limits`; no limits where it sets none."""
    limits = getattr(judge, "limits", None)
    # A user's class may have a `limits` of another type.
    return limits if isinstance(limits, Limits) else Limits()


# The only context variable of this package: users' code calls `count` from anywhere, with nothing to pass it through.
_COUNTS: ContextVar[Counter[str] | None] = ContextVar("counts of the current judge call", default=None)


def count(event: str, amount: int = 1) -> None:
    """Add to a counter of the shard that is being judged. What a failed call counted is dropped with its verdicts."""
    counts = _COUNTS.get()
    if counts is not None:
        counts[event] += amount


@contextlib.contextmanager
def collect_counts() -> Iterator[Counter[str]]:
    """Collect what `count` adds inside this block, also from threads that the judge's own call starts."""
    counts: Counter[str] = Counter()
    token = _COUNTS.set(counts)
    try:
        yield counts
    finally:
        _COUNTS.reset(token)


def check_verdicts(questions: Sequence[Question], answer: object) -> list[list[Verdict]]:
    """Hold a judge to its contract.

    Raises:
        JudgeError: the number of lists is not the number of questions, something is no `Verdict`, names another
            prompt or an unknown position, says two things about the same subject, or leaves a completion out.
    """
    lists = as_list(answer, len(questions))
    if lists is None or len(lists) != len(questions):
        found = show(answer) if lists is None else f"{how_many(lists, len(questions))} lists of verdicts"
        raise JudgeError(
            f"returned {found} for {len(questions)} questions; return a list with one list of verdicts for each"
        )
    return [_check_one(question, item) for question, item in zip(questions, lists, strict=True)]


def _check_one(question: Question, answer: object) -> list[Verdict]:
    where = f"for prompt {question.prompt_id}"
    positions = range(len(question.completions))
    # At most one about each completion, and one about each two in each order.
    verdicts = as_list(answer, len(positions) ** 2)
    if verdicts is None or not all(isinstance(v, Verdict) for v in verdicts):
        raise JudgeError(f"returned {show(answer)} {where}; return a list of Verdict, such as question.score(0, 1.5)")
    verdicts = [_with_plain_values(verdict, where) for verdict in verdicts]
    seen: set[tuple[int, int | None]] = set()
    for verdict in verdicts:
        subject = (verdict.first, verdict.second)
        if verdict.prompt_id != question.prompt_id:
            raise JudgeError(f"returned a verdict on prompt {verdict.prompt_id} {where}; keep the order of questions")
        known = verdict.first in positions and (verdict.second is None or verdict.second in positions)
        if not known or verdict.first == verdict.second:
            raise JudgeError(
                f"returned a verdict on {subject} {where}; name completions by position, 0 to {len(positions) - 1}"
            )
        if subject in seen:
            raise JudgeError(f"returned two verdicts on {subject} {where}; return one for each subject")
        seen.add(subject)
    left_out = sorted(set(positions) - {i for subject in seen for i in subject if i is not None})
    if left_out:
        raise JudgeError(
            f"returned no verdict on completion {', '.join(map(str, left_out))} {where}; judge every completion, or "
            f"{ABSTAIN_HINT}"
        )
    return verdicts


def _with_plain_values(verdict: Verdict, where: str) -> Verdict:
    """A verdict that the judge may have made itself, with Python's own numbers and text that can be stored."""
    plain: dict[str, Any] = {name: getattr(verdict, name) for name in PLAIN}
    texts = verdict.reason or verdict.rationale
    if all(plain[name] is None or type(plain[name]) is kind for name, kind in PLAIN.items()) and not texts:
        return verdict
    readers = {int: read_position, float: read_number, str: lambda v: storable(v) if isinstance(v, str) else None}
    for name, kind in PLAIN.items():
        value = plain[name]
        plain[name] = None if value is None else readers[kind](value)
        if value is not None and plain[name] is None:
            raise JudgeError(f"returned a verdict {where} whose {name} is {show(value)}, which is no {kind.__name__}")
    return replace(verdict, **plain)


PLAIN = {
    "first": int, "second": int, "score": float, "probability": float, "uncertainty": float, "reason": str,
    "rationale": str,
}  # fmt: skip

"""People who answer the questions of a run, through its annotation store alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from online_dpo.annotation.records import Choice, Question
from online_dpo.annotation.store import FILE, AnnotationStore
from online_dpo.types import derive_seed

Taste = Callable[[Question], str]
"""An outcome in the question's own order."""

HUMAN = {"type": "human", "wait": False, "annotators": 1, "quality": {"repeat_share": 0.0, "min_seconds": 0.0}}


def likes(text: str) -> float:
    """What simulated people want: a fixed number for each text."""
    return derive_seed(0, "likes", text) / 2**63


def better(question: Question) -> str:
    """The answer that is liked more; ties where it is close."""
    gap = likes(question.first_text) - likes(question.second_text)
    return "tie" if abs(gap) < 0.05 else "first" if gap > 0 else "second"


@contextmanager
def opened(run_dir: Path) -> Iterator[AnnotationStore]:
    with AnnotationStore.open(run_dir / FILE) as store:
        yield store


def sign_up(run_dir: Path, name: str) -> str:
    """A pseudonym; made once per name."""
    with opened(run_dir) as store:
        known = {figures.annotator.name: figures.annotator.annotator for figures in store.annotators()}
        if name in known:
            return known[name]
        now = time.time()
        invitation = store.invite(name, expires_at=now + 1e6, now=now)
        store.sign_in(invitation.token, now)
        return invitation.annotator.annotator


def answer(run_dir: Path, name: str = "Ada", taste: Taste = better, at_most: int = 10**9) -> list[Question]:
    """Let one person answer what there is.

    Returns:
        The questions, in the order in which they came.
    """
    person, answered = sign_up(run_dir, name), list[Question]()
    with opened(run_dir) as store:
        while len(answered) < at_most:
            found = store.next_assignment(person, time.time())
            if found is None:
                break
            outcome = taste(found.question)
            sides = {"first": "left", "second": "right"}
            if found.swapped:
                sides = {"first": "right", "second": "left"}
            choice: Choice = sides.get(outcome, outcome)  # type: ignore[assignment]
            store.vote(found.assignment_id, person, choice, now=time.time())
            answered.append(found.question)
    return answered

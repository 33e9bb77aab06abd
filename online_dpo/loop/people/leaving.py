"""A run that does not wait for people: it commits what it lacks, and its continuation sees at once if that is there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from online_dpo.annotation.store import AnnotationStore
from online_dpo.loop.people.asking import People
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore

MARK = "waits-for-people"
"""The commit of the questions without which a run that left cannot go on; it is gone once the run goes on."""


def leave(people: People, store: RoundStore) -> dict[str, Any]:
    """Commit what is waited for.

    Args:
        people: of the run.
        store: of the round under way.

    Returns:
        How many questions are waited for, and how many votes they still want.
    """
    ids = people.open_questions()
    store.put_json(MARK, {"questions": ids})
    return standing(ids, people.store)


def forget_leaving(store: RunStore) -> None:
    """The run goes on."""
    for part in store.unfinished_rounds():
        if part.has(MARK):
            part.remove(MARK)


def awaited(store: RunStore) -> list[str] | None:
    """The questions that the run waits for since it left; None where it did not leave."""
    for part in store.unfinished_rounds():
        if part.has(MARK):
            found: list[str] = part.get_json(MARK)["questions"]
            return found
    return None


def standing(question_ids: Sequence[str], annotation: AnnotationStore) -> dict[str, Any]:
    """How many questions are waited for, and how many votes they still want."""
    return {"num_questions": len(question_ids), "num_missing_votes": annotation.num_missing(question_ids)}


def still_missing(store: RunStore, annotation: AnnotationStore) -> dict[str, Any] | None:
    """How far the people are who keep a run that left from going on; None where it can go on, or did not leave.

    Questions that the annotation store does not know were lost with it; the run asks them again.
    """
    ids = awaited(store)
    if ids is None:
        return None
    questions = annotation.questions(ids)
    if len(questions) < len(ids):
        return None
    annotation.add_questions(questions, time.time())  # another number of annotators may be wanted by now
    found = standing(ids, annotation)
    return found if found["num_missing_votes"] else None

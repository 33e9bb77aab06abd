"""The routes of an annotator's page. What they say of a question is what a blind comparison may know, and no more."""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from online_dpo.annotation.records import Assignment, Choice, Excluded, LeaseLost, NotUndoable, Paused, Vote
from online_dpo.annotation.tables.voting import MAX_COMMENT, MAX_RATING
from online_dpo.annotation.web.rendering import shown, shown_prompt
from online_dpo.annotation.web.signing_in import sentence
from online_dpo.annotation.web.site import AnnotatorVisit, Answer, Body, Visitor

router = APIRouter(prefix="/api")

Reply = dict[str, Any]


class Held(Body):
    """A question that the page shows."""

    assignment: str = Field(max_length=100)


class Ballot(Held):
    """A choice, as it was made on the screen."""

    choice: Choice
    ratings: dict[str, int] = Field(default_factory=dict, max_length=100)  # above 0 = the left answer is better
    comment: str = Field("", max_length=MAX_COMMENT)
    seconds: float = Field(ge=0.0, allow_inf_nan=False)  # that the page was in sight


@router.post("/next")
def next_question(body: Body, visit: AnnotatorVisit) -> Reply:
    """The question to answer, or why there is none."""
    visit.check(body)
    return _next(visit)


@router.post("/vote")
def vote(ballot: Ballot, visit: AnnotatorVisit) -> Reply:
    """Save a vote, and hand out the next question. The reply is sent when the vote is on the disk."""
    visit.check(ballot)
    site, person = visit.site, visit.person.annotator
    if any(abs(rating) > MAX_RATING for rating in ballot.ratings.values()):
        raise Answer(422, f"A rating is a whole number from -{MAX_RATING} to {MAX_RATING}.")
    if not set(ballot.ratings) <= set(site.store.rules.criteria):
        raise Answer(422, "The criteria have changed: load the page again.")
    try:
        given = site.store.vote(
            ballot.assignment, person, ballot.choice, ratings=ballot.ratings, comment=ballot.comment,
            seconds=ballot.seconds, now=site.clock(),
        )  # fmt: skip
    except Excluded as error:
        return {"saved": False, **_excluded(error)}
    except LeaseLost as error:
        return {"saved": False, "lost": sentence(error), **_next(visit)}
    earlier = choice_of(given) != ballot.choice  # sent before, by another tab or before a reply was lost
    return {"saved": True, "earlier": earlier, "too_fast": given.status == "too_fast", **_next(visit)}


@router.post("/undo")
def undo(body: Body, visit: AnnotatorVisit) -> Reply:
    """Take back the last vote and show its question again."""
    visit.check(body)
    try:
        return _question(visit, visit.site.store.undo(visit.person.annotator, visit.site.clock()))
    except Excluded as error:
        return _excluded(error)
    except NotUndoable as error:
        raise Answer(409, sentence(error)) from error


@router.post("/renew")
def renew(body: Held, visit: AnnotatorVisit) -> Reply:
    """Keep a question that somebody is looking at."""
    visit.check(body)
    try:
        visit.site.store.renew(body.assignment, visit.person.annotator, visit.site.clock())
    except Excluded as error:
        return {"kept": False, **_excluded(error)}
    except LeaseLost as error:
        return {"kept": False, "lost": sentence(error)}
    return {"kept": True}


@router.post("/release")
def release(body: Held, visit: AnnotatorVisit) -> Reply:
    """Give a question back: the page was closed."""
    visit.check(body)
    visit.site.store.release(body.assignment, visit.person.annotator)
    return {}


def choice_of(vote: Vote) -> str:
    """What was chosen on the screen."""
    sides = {"first": "right", "second": "left"} if vote.swapped else {"first": "left", "second": "right"}
    return sides.get(vote.outcome, vote.outcome)


def _next(visit: Visitor) -> Reply:
    store, now = visit.site.store, visit.site.clock()
    try:
        assignment = store.next_assignment(visit.person.annotator, now)
    except Paused:
        return {"state": "paused"}
    except Excluded as error:
        return _excluded(error)
    if assignment is not None:
        return _question(visit, assignment)
    progress = store.progress(now)
    if not progress.num_questions:
        return {"state": "empty"}
    return {"state": "waiting" if progress.num_missing else "done", "outlook": _outlook(visit)}


def _question(visit: Visitor, assignment: Assignment) -> Reply:
    visit.site.hand_out(assignment)
    left, right = assignment.shown
    return {
        "state": "question",
        "question": {
            "assignment": assignment.assignment_id,
            "prompt": shown_prompt(assignment.question.prompt),
            "left": shown(left),
            "right": shown(right),
        },
        "outlook": _outlook(visit),
    }


def _outlook(visit: Visitor) -> Reply:
    """Own progress. What is left is rounded up: hidden questions would show as those that leave the number as it is."""
    found = visit.site.store.outlook(visit.person.annotator)
    step = 5 if found.num_left <= 50 else 10
    num_left = math.ceil(found.num_left / step) * step
    minutes = None
    if found.seconds_left is not None and found.num_left:
        minutes = math.ceil(found.seconds_left / found.num_left * num_left / 60)
    return {"done": found.num_done, "left": num_left, "minutes": minutes}


def _excluded(error: Excluded) -> Reply:
    return {"state": "excluded", "why": sentence(error)}

"""The routes of an administrator's page: figures, people, questions that are stuck, and the export."""

from __future__ import annotations

from dataclasses import asdict
from io import BytesIO
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from fastapi import APIRouter, Response
from pydantic import Field

from online_dpo.annotation.agreement import Share, krippendorff_alpha, position_bias, share_of
from online_dpo.annotation.export import Format, make_export
from online_dpo.annotation.records import AnnotatorFigures, Invitation, Role, Vote
from online_dpo.annotation.web.rendering import visible
from online_dpo.annotation.web.site import AdministratorVisit, Answer, Body

router = APIRouter(prefix="/api/admin")

DAY_S = 24 * 3600.0
MAX_STUCK = 50
"""As many stuck questions are shown; all are counted."""

Reply = dict[str, Any]


class Whom(Body):
    """A person, by pseudonym."""

    annotator: str = Field(max_length=200)


class Newcomer(Body):
    """Somebody to be invited."""

    name: str = Field(max_length=200)
    role: Role = "annotator"
    days: float = Field(gt=0.0, le=365.0)


class Renewal(Whom):
    """Somebody who is to have another link."""

    days: float = Field(gt=0.0, le=365.0)


class Exclusion(Whom):
    """Somebody whose votes are not to count, and why."""

    reason: str = Field(min_length=1, max_length=500)


class Questions(Body):
    """Questions to be content with."""

    question_ids: list[str] = Field(min_length=1, max_length=10_000)


@router.get("/overview")
def overview(visit: AdministratorVisit) -> Reply:
    """All figures of the page."""
    store, now = visit.site.store, visit.site.clock()
    progress = store.progress(now)
    stuck = progress.stuck[:MAX_STUCK]
    counted: dict[str, list[Vote]] = {}
    for vote in store.votes():
        if vote.status == "counted":
            counted.setdefault(vote.question_id, []).append(vote)
    prompts = {q.question_id: q.prompt for q in store.questions([s.question_id for s in stuck])}
    return {
        "progress": {name: value for name, value in asdict(progress).items() if name != "stuck"},
        "alpha": krippendorff_alpha(counted.values()),
        "num_stuck": len(progress.stuck),
        "stuck": [
            {"question_id": s.question_id, "reason": s.reason, "prompt": _start(prompts[s.question_id])} for s in stuck
        ],
        "people": [_figures(figures) for figures in store.annotators()],
        "rules": asdict(store.rules),
        "you": visit.person.annotator,
    }


@router.post("/invite")
def invite(body: Newcomer, visit: AdministratorVisit) -> Reply:
    """Make a person and a link, which this reply alone has."""
    visit.check(body)
    now = visit.site.clock()
    return _link(
        visit.site.store.invite(
            body.name, expires_at=now + body.days * DAY_S, now=now, role=body.role, by=visit.person.annotator
        )
    )


@router.post("/invite-again")
def invite_again(body: Renewal, visit: AdministratorVisit) -> Reply:
    """Another link for a person; what they had before ends."""
    visit.check(body)
    now = visit.site.clock()
    return _link(
        visit.site.store.invite_again(
            body.annotator, expires_at=now + body.days * DAY_S, by=visit.person.annotator, now=now
        )
    )


@router.post("/revoke")
def revoke(body: Whom, visit: AdministratorVisit) -> Reply:
    """End a person's links and sessions."""
    visit.check(body)
    if body.annotator == visit.person.annotator:
        raise Answer(409, "You cannot revoke your own access here.")
    visit.site.store.revoke(body.annotator, visit.person.annotator, visit.site.clock())
    return {}


@router.post("/exclude")
def exclude(body: Exclusion, visit: AdministratorVisit) -> Reply:
    """Stop counting a person's votes. The reason is told to this person."""
    visit.check(body)
    visit.site.store.exclude(body.annotator, body.reason, visit.person.annotator, visit.site.clock())
    return {}


@router.post("/reinstate")
def reinstate(body: Whom, visit: AdministratorVisit) -> Reply:
    """Count a person's votes again."""
    visit.check(body)
    num_counted = visit.site.store.reinstate(body.annotator, visit.person.annotator, visit.site.clock())
    return {"num_counted": num_counted}


@router.post("/pause")
def pause(body: Body, visit: AdministratorVisit) -> Reply:
    """Give nobody a question."""
    visit.check(body)
    visit.site.store.pause(visit.person.annotator, visit.site.clock())
    return {}


@router.post("/unpause")
def unpause(body: Body, visit: AdministratorVisit) -> Reply:
    """Go on."""
    visit.check(body)
    visit.site.store.unpause(visit.person.annotator, visit.site.clock())
    return {}


@router.post("/close")
def close(body: Questions, visit: AdministratorVisit) -> Reply:
    """Be content with the votes that questions have."""
    visit.check(body)
    closed = visit.site.store.close_questions(body.question_ids, visit.person.annotator, visit.site.clock())
    return {"num_closed": closed}


@router.get("/export")
def export(visit: AdministratorVisit, form: Format) -> Response:
    """Preferences and votes, by pseudonym, as a ZIP archive."""
    made, packed = make_export(visit.site.store.snapshot(), form), BytesIO()
    with ZipFile(packed, "w", ZIP_DEFLATED) as archive:
        for name, content in made.files.items():
            archive.writestr(name, content)
    headers = {"Content-Disposition": f'attachment; filename="annotation-{form}.zip"'}
    return Response(packed.getvalue(), media_type="application/zip", headers=headers)


def _link(invitation: Invitation) -> Reply:
    """The link without the server's address, which the page knows better."""
    return {
        "path": f"/join#{invitation.token}",
        "name": invitation.annotator.name,
        "annotator": invitation.annotator.annotator,
        "expires_at": invitation.expires_at,
    }


def _figures(figures: AnnotatorFigures) -> Reply:
    found = asdict(figures)
    shares = {
        "shown_first": position_bias(figures),
        "gold": share_of(figures.num_gold_right, figures.num_gold),
        "repeats": share_of(figures.num_repeats_same, figures.num_repeats),
    }
    return {**found.pop("annotator"), **found, **{name: _share(share) for name, share in shares.items()}}


def _share(share: Share | None) -> Reply | None:
    return None if share is None else asdict(share)


def _start(prompt: object) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content")) if isinstance(prompt, list) else ""
    return visible(text[:200])

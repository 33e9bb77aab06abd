"""Pages and routes by which people come and go: a link's page, signing in by its button, signing out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from online_dpo.annotation.records import SignInRefused
from online_dpo.annotation.web.pages import show
from online_dpo.annotation.web.site import SESSION_S, Answer, Body, find_visitor, site_of, take_turn, visitor

router = APIRouter()
MAX_TOKEN = 200
HOME = {"annotator": "/", "administrator": "/admin"}


class Invitation(Body):
    """What the page of a link sends when its button is pressed."""

    token: str


@router.get("/join")
def join_page() -> Response:
    """The page of every invitation.

    The token is behind the `#` of the link: browsers do not send it, so it is in no log, and whatever previews a link
    does not sign in. The page takes it out of the address at once.
    """
    return show("join.html")


@router.post("/api/join")
def join(body: Invitation, request: Request, response: Response) -> dict[str, str]:
    """Exchange a link's token for a session."""
    site = site_of(request)
    take_turn(site.sign_ins, request.client.host if request.client else "")
    now = site.clock()
    try:
        if len(body.token) > MAX_TOKEN:
            raise SignInRefused("this link is not known: ask for a new one")
        person = site.store.sign_in(body.token, now)
    except SignInRefused as error:
        raise Answer(403, sentence(error)) from error
    session = site.store.open_session(person.annotator, now + SESSION_S, now)
    response.set_cookie(
        site.cookie, session, max_age=int(SESSION_S), httponly=True, samesite="strict",
        secure=request.url.scheme == "https", path="/",
    )  # fmt: skip
    return {"next": HOME[person.role]}


@router.post("/api/leave")
def leave(body: Body, request: Request, response: Response) -> dict[str, str]:
    """Sign out."""
    found = visitor(request)
    found.check(body)
    found.site.store.close_session(found.session, found.site.clock())
    response.delete_cookie(found.site.cookie, path="/", httponly=True, samesite="strict")
    return {"next": "/join"}


@router.get("/")
def annotator_page(request: Request) -> Response:
    """Where people answer."""
    found = find_visitor(request)
    if found is None:
        return RedirectResponse("/join", status_code=303)
    if found.person.role != "annotator":
        return RedirectResponse(HOME[found.person.role], status_code=303)
    rules = found.site.store.rules
    return show(
        "annotate.html", csrf=found.csrf, name=found.person.name, criteria=rules.criteria,
        instructions=rules.instructions, lease_s=rules.lease_s,
    )  # fmt: skip


@router.get("/admin")
def administrator_page(request: Request) -> Response:
    """Where an administrator looks after them. It holds no data: what it shows, it asks for."""
    found = find_visitor(request)
    if found is None:
        return RedirectResponse("/join", status_code=303)
    if found.person.role != "administrator":
        raise Answer(403, "This is for administrators.")
    return show("admin.html", csrf=found.csrf, run_name=found.site.run_dir.name)


def sentence(error: Exception) -> str:
    """A message of the store as a sentence on a page."""
    words = str(error)
    return words[:1].upper() + words[1:] + ("" if words.endswith(".") else ".")

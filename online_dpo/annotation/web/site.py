"""What the routes share: the store, who is signed in, and how often somebody may ask."""

from __future__ import annotations

import hashlib
import hmac
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict

from online_dpo.annotation.records import Annotator, Assignment
from online_dpo.annotation.store import AnnotationStore
from online_dpo.annotation.web.limits import RateLimit

SESSION_S = 7 * 24 * 3600.0
"""How long somebody stays signed in."""


class Answer(Exception):
    """Ends a request with a status and a sentence for whoever reads the page."""

    def __init__(self, status: int, words: str, *, retry_after_s: float | None = None) -> None:
        """Say `words`; `retry_after_s` when it is worth while to ask again."""
        super().__init__(words)
        self.status = status
        self.words = words
        self.retry_after_s = retry_after_s


class Body(BaseModel):
    """The JSON of a request that changes something. The token shows that a page of ours sent it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    csrf: str = ""


@dataclass(slots=True)
class Site:
    """One server on one store."""

    store: AnnotationStore
    run_dir: Path
    cookie: str  # cookies do not know ports, so its name has the port of this server
    clock: Callable[[], float] = time.time
    sign_ins: RateLimit = field(default_factory=lambda: RateLimit(0.5, 30))  # of an address
    requests: RateLimit = field(default_factory=lambda: RateLimit(10.0, 60))  # of a session
    _held: dict[str, str] = field(default_factory=dict)  # annotator -> assignment that this server handed out
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hand_out(self, assignment: Assignment) -> None:
        """Remember what somebody holds."""
        with self._lock:
            self._held[assignment.annotator] = assignment.assignment_id

    def give_back_all(self) -> int:
        """Give back what everybody holds, when the server ends. Returns how many questions people looked at."""
        with self._lock:
            held, self._held = self._held, {}
        for annotator, assignment_id in held.items():
            self.store.release(assignment_id, annotator)
        return len(held)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who is signed in, in one request."""

    site: Site
    person: Annotator
    session: str  # the token in the cookie

    @property
    def csrf(self) -> str:
        """What only a page that this session has loaded knows."""
        return hashlib.sha256(f"csrf {self.session}".encode()).hexdigest()

    def check(self, body: Body) -> None:
        """Refuse a change that no page of ours sent.

        Raises:
            Answer: the token is not that of the session.
        """
        if not hmac.compare_digest(body.csrf.encode(), self.csrf.encode()):
            raise Answer(403, "This page is out of date: load it again.")


def site_of(request: Request) -> Site:
    """The server's own state."""
    site: Site = request.app.state.site
    return site


def find_visitor(request: Request) -> Visitor | None:
    """Whoever the cookie stands for; None for a stranger, or somebody whose session has ended."""
    site = site_of(request)
    session = request.cookies.get(site.cookie, "")
    person = site.store.session(session, site.clock()) if session else None
    return None if person is None else Visitor(site, person, session)


def visitor(request: Request) -> Visitor:
    """Whoever is signed in.

    Raises:
        Answer: nobody is, or this session asks too often.
    """
    found = find_visitor(request)
    if found is None:
        raise Answer(401, "You are not signed in: open the link of your invitation.")
    take_turn(found.site.requests, found.session)
    return found


def annotator(request: Request) -> Visitor:
    """An annotator who is signed in.

    Raises:
        Answer: an administrator, who sees the votes of others, may not vote.
    """
    found = visitor(request)
    if found.person.role != "annotator":
        raise Answer(403, "Administrators do not answer questions: open an annotator's link in another browser.")
    return found


def administrator(request: Request) -> Visitor:
    """An administrator who is signed in.

    Raises:
        Answer: it is somebody else.
    """
    found = visitor(request)
    if found.person.role != "administrator":
        raise Answer(403, "This is for administrators.")
    return found


def take_turn(limit: RateLimit, key: str) -> None:
    """Count a request.

    Raises:
        Answer: it is one too many.
    """
    wait_s = limit.wait_s(key)
    if wait_s > 0:
        seconds = math.ceil(wait_s)
        raise Answer(429, f"Too many requests: try again in {seconds} s.", retry_after_s=seconds)


AnnotatorVisit = Annotated[Visitor, Depends(annotator)]
AdministratorVisit = Annotated[Visitor, Depends(administrator)]

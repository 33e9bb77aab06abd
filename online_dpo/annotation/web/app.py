"""The web application: routes, errors in words, and what guards all of it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from online_dpo.annotation.records import Refused, SignInRefused
from online_dpo.annotation.tables.database import AnnotationStoreError
from online_dpo.annotation.web import administration, pages, signing_in, voting
from online_dpo.annotation.web.guard import LOGGER, Guard
from online_dpo.annotation.web.signing_in import sentence
from online_dpo.annotation.web.site import Answer, Site

_WORDS = {404: "There is no such page.", 405: "There is no such page."}


def build(site: Site, *, hosts: Iterable[str] = ()) -> Guard:
    """The application on a store, which the caller closes after it has ended.

    Args:
        site: the store and what belongs to it.
        hosts: further names under which it may be asked, such as that of a proxy.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        site.give_back_all()

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.site = site
    for router in (pages.router, signing_in.router, voting.router, administration.router):
        app.include_router(router)
    app.add_exception_handler(Answer, _answer)
    app.add_exception_handler(SignInRefused, _signed_out)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(AnnotationStoreError, _store_fails)
    app.add_exception_handler(RequestValidationError, _misread)
    app.add_exception_handler(HTTPException, _no_page)
    return Guard(app, hosts=hosts)


def _say(status: int, words: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": words}, status, headers)


def _answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, Answer)
    wait_s = error.retry_after_s
    return _say(error.status, error.words, None if wait_s is None else {"Retry-After": str(math.ceil(wait_s))})


def _signed_out(request: Request, error: Exception) -> Response:
    return _say(401, sentence(error))


def _refused(request: Request, error: Exception) -> Response:
    return _say(409, sentence(error))


def _store_fails(request: Request, error: Exception) -> Response:
    LOGGER.error("%s", error)  # it names files, which are the administrator's alone
    return _say(503, "The store of the votes cannot be used at the moment. Nothing was saved; this page tries again.")


def _misread(request: Request, error: Exception) -> Response:
    return _say(422, "This request is none that a page of ours sends: load the page again.")


def _no_page(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _say(status, _WORDS.get(status, "This request cannot be answered."))

"""The report over HTTP, for browsers of this machine alone: two addresses, and no file of the run directory."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.base import RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware

from online_dpo.reports.page.live import LivePage
from online_dpo.serving import LOOPBACK, serve_until_signal

READ = ["GET", "HEAD"]
HEADERS = {
    # The page's own policy names its script and style; a <meta> cannot forbid frames.
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_app(live: LivePage) -> FastAPI:
    """What answers: the report at `/`, how far the run is at `/state`."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.api_route("/", methods=READ)
    def page() -> HTMLResponse:
        return HTMLResponse(live.html())

    @app.api_route("/state", methods=READ)
    def state() -> JSONResponse:
        found = live.state()
        return JSONResponse({"page": found.page, "progress": found.progress})

    # A page elsewhere whose name is made to lead to this machine (DNS rebinding) asks under its own name.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])

    @app.middleware("http")
    async def add_headers(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    return app


def serve(live: LivePage, listener: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM."""
    app = make_app(live)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=2
    )
    serve_until_signal(config, listener)

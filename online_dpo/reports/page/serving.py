"""The report over HTTP, for browsers of this machine alone: two addresses, and no file of the run directory."""

from __future__ import annotations

import errno
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.base import RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware

from online_dpo.errors import UserError
from online_dpo.reports.page.live import LivePage

HOST = "127.0.0.1"
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
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

    @app.middleware("http")
    async def add_headers(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    return app


def listen(port: int) -> socket.socket:
    """A socket that browsers of this machine alone can reach.

    Args:
        port: 0 = any free one.

    Raises:
        UserError: the port is taken, or this user may not have it.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        why = {errno.EADDRINUSE: "another program uses it", errno.EACCES: "only root may use it"}
        raise UserError(
            f"--port is {port}, and {why.get(error.errno or 0, error.strerror)}; give another one, or 0 for a free one"
        ) from error
    return listener


def serve(live: LivePage, listener: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM, which is how a server is meant to end."""
    config = uvicorn.Config(
        make_app(live), log_config=None, access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)

    def end(number: int, frame: FrameType | None) -> None:
        server.should_exit = True  # before uvicorn hears signals itself, and when it sends them again after its end

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, action in before.items():
            signal.signal(number, action)
        listener.close()

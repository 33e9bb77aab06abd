"""What holds for every request and reply, whatever the route: hosts, origins, sizes, headers, and words for errors."""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOGGER = logging.getLogger("online_dpo.annotation")

MAX_BODY = 256 * 1024
"""Bytes of a request: the longest comment has 10 000 characters, each of 12 bytes at most in JSON."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Robots-Tag": "noindex, nofollow",
}


class Guard:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str]) -> None:
        """Let requests through to these hosts.

        Args:
            app: what answers them.
            hosts: names in lower case. Names of this machine and all IP addresses are always let through: a page of
                somebody else, whose name is made to lead here, comes under its own name.
        """
        self._app = app
        own = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
        self._hosts = own | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _reply(_with_headers(send), *refusal)
            return
        await self._answer(scope, receive, _with_headers(send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            LOGGER.exception("the request %s %s failed", scope["method"], scope["path"])
            if not has_begun:
                await _reply(send, 500, "Something went wrong on the server; its terminal says what.")

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 421, "This server does not answer under this name: it must be started with --url and the name."
        if scope["method"] in ("GET", "HEAD"):
            return None
        # Browsers send the origin with every request that may change something, and no page can forge it.
        if headers.get("origin", "").lower() != f"{scope['scheme']}://{host}".lower():
            return 403, "This request does not come from a page of this server. Behind a proxy, see --trust-proxy."
        if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return 415, "A request must be JSON."
        # The server reads no more of a body than its length says.
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "A request must say how long it is."
        return (413, f"The request is too large: {MAX_BODY // 1024} KiB at most.") if int(length) > MAX_BODY else None

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        return name in self._hosts or is_address(name)


def is_address(name: str) -> bool:
    """Whether this is the IP address of a machine, and not its name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(send: Send) -> Send:
    async def write(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return write


async def _reply(send: Send, status: int, words: str) -> None:
    body = json.dumps({"error": words}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

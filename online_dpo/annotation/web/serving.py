"""The server's process: its socket, its lock, and its end."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from online_dpo import serving
from online_dpo.annotation.store import AnnotationStore
from online_dpo.annotation.web.app import build
from online_dpo.annotation.web.guard import is_address
from online_dpo.annotation.web.site import Site
from online_dpo.errors import UserError
from online_dpo.text_files import shown

LOOPBACK = ("127.0.0.1", "::1", "localhost")
LOCK = "server.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the server listens, and how people reach it."""

    host: str
    port: int
    url: str | None = None  # of a reverse proxy before it
    proxy: str | None = None  # the address from which that proxy asks: its forwarded headers are believed

    @property
    def public(self) -> str:
        """What links begin with, without a slash at the end."""
        if self.url is not None:
            return self.url.rstrip("/")
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return replace(self, host=name).own

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK

    @property
    def own(self) -> str:
        """What a proxy, or somebody on this machine, asks."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def check(self) -> None:
        """Refuse a public address that no link could begin with, and a proxy that is no address.

        Raises:
            UserError: one of these.
        """
        if self.proxy is not None and not is_address(self.proxy):
            raise UserError(
                f"--trust-proxy is {shown(self.proxy)}; give the address from which the proxy asks, such as 127.0.0.1"
            )
        if self.url is None:
            return
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise UserError(
                f"--url is {shown(self.url)}; give the address that people open, such as https://annotate.example.org"
            )


def listen(address: Address) -> tuple[socket.socket, Address]:
    """A listening socket, and the address with the port that it has.

    Raises:
        UserError: as `online_dpo.serving.listen`.
    """
    listener = serving.listen(address.host, address.port)
    return listener, replace(address, port=listener.getsockname()[1])


@contextmanager
def only_server(folder: Path) -> Iterator[Callable[[str], None]]:
    """Hold the lock of a store's folder: one server at a time. What is yielded notes where people reach it.

    Raises:
        UserError: another server runs, or the folder cannot be written.
    """
    with _open_lock(folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            known = file.read().strip()
            raise UserError(
                f"{folder} is in use: another `online-dpo annotate` serves it{known and f' at {shown(known)}'}; "
                f"open that, or end it first"
            ) from error

        def note(public: str) -> None:
            file.truncate(0)
            file.write(public)
            file.flush()

        yield note


def served_at(folder: Path) -> str | None:
    """What the links of the server begin with that runs on a store's folder; None where none runs."""
    with _open_lock(folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read().strip() or None
        return None


def _open_lock(folder: Path) -> TextIO:
    path = folder / LOCK
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def serve(store: AnnotationStore, run_dir: Path, address: Address, listener: socket.socket) -> None:
    """Answer until SIGINT or SIGTERM. The questions that people look at go back into the queue then.

    Args:
        store: closed by the caller.
        run_dir: of the run.
        address: how people reach the server.
        listener: from `listen`.
    """
    import uvicorn

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("online_dpo.annotation")
    logger.addHandler(handler)
    hosts = [urlsplit(address.public).hostname or "", "" if address.is_local else address.host]
    app = build(Site(store, run_dir, cookie=f"annotation_{address.port}"), hosts=[host for host in hosts if host])
    # No log of requests: terminals are shared and kept.
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, ws="none", lifespan="on",
        proxy_headers=address.proxy is not None, forwarded_allow_ips=address.proxy or "",
        timeout_graceful_shutdown=3, limit_concurrency=1000,
    )  # fmt: skip
    try:
        serving.serve_until_signal(config, listener)
    finally:
        logger.removeHandler(handler)
        listener.close()

"""A server of pages: its socket, and its end by a signal. What it answers is its maker's."""

from __future__ import annotations

import errno
import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING

from online_dpo.errors import UserError
from online_dpo.text_files import shown

if TYPE_CHECKING:
    import uvicorn

LOOPBACK = "127.0.0.1"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; what it got for port 0 is in its `getsockname()[1]`.

    Raises:
        UserError: the port is taken or not allowed, or the host is not of this machine.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}; ports are numbers from 1 to 65535, and 0 takes a free one")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host is {shown(host)}, which is no address of this machine; leave it out") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(where)
        listener.listen(512)
    except OSError as error:
        listener.close()
        words = {
            errno.EADDRINUSE: f"--port is {port}, which another program uses; give another one, or 0 for a free one",
            errno.EACCES: f"--port is {port}, which only root may use; give one from 1024 on",
            errno.EADDRNOTAVAIL: f"--host is {shown(host)}, which is no address of this machine; leave it out",
        }
        why = words.get(error.errno or 0, f"--host {shown(host)} --port {port} cannot be used: {error.strerror}")
        raise UserError(why) from error
    return listener


def serve_until_signal(config: uvicorn.Config, listener: socket.socket) -> None:
    """Answer until SIGINT or SIGTERM, which is how a server is meant to end."""
    import uvicorn

    server = uvicorn.Server(config)

    def end(number: int, frame: FrameType | None) -> None:
        server.should_exit = True  # before uvicorn hears signals itself, and when it sends them again after its end

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, action in before.items():
            signal.signal(number, action)

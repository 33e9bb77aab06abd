"""Connections to one server, of which none is used again where it may still hold an answer that nobody asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from judges.protocol import count


class Connections:
    """Idle connections, each of them with a client of its own. One event loop.

    One client of many connections looks at all of them several times for each request, which at 64 of them took four
    fifths of the process's time.
    """

    def __init__(self) -> None:
        self._idle: list[httpx.AsyncClient] = []
        self._tls = httpx.create_ssl_context()

    @asynccontextmanager
    async def lend(self, url: str) -> AsyncIterator[httpx.AsyncClient]:
        """A client for one request to `url`. It is closed where the block raises, and kept for later otherwise."""
        client = self._idle.pop() if self._idle else self._connect()
        try:
            yield client
        except BaseException:
            await client.aclose()
            raise
        client.cookies.clear()  # no request depends on the ones before
        if _holds_more(client, url):
            count("num_judge_surplus_answers")
            await client.aclose()
        else:
            self._idle.append(client)

    def _connect(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            timeout=None,  # ours is of the whole request; httpx's starts anew with every byte
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            follow_redirects=False,  # to a place that the config does not name
            verify=self._tls,
        )


def _holds_more(client: httpx.AsyncClient, url: str) -> bool:
    """Whether bytes have come after the end of the last answer; True as well where that cannot be seen.

    h11 keeps them and would read the next answer from them, and no public method of httpx shows it. What comes later
    than this, httpcore itself finds before it uses the connection again; what comes later still is found by its code.
    """
    transport = client._transport_for_url(httpx.URL(url))
    connections = getattr(getattr(transport, "_pool", None), "connections", None)
    if connections == []:
        return False  # the server has closed it
    connection = connections[0] if connections else None
    while (inner := getattr(connection, "_connection", None)) is not None:  # through a proxy there are several layers
        connection = inner
    state = getattr(connection, "_h11_state", None)
    return state is None or bool(state.trailing_data[0])

"""The pages of the human judge for tests: clients of every kind of visitor, and a server in a thread."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from annotation_kit import T0, make_store
from starlette.testclient import TestClient

from online_dpo.annotation.records import Role
from online_dpo.annotation.store import FILE, AnnotationStore
from online_dpo.annotation.web.app import build
from online_dpo.annotation.web.limits import RateLimit
from online_dpo.annotation.web.site import Site

BASE = "http://localhost:8000"
COOKIE = "annotation_8000"
CSRF = re.compile(r'<meta name="csrf" content="([0-9a-f]{64})">')


@dataclass
class Clock:
    """The time, which a test sets."""

    now: float = T0

    def __call__(self) -> float:
        return self.now


class Client:
    """A browser without a screen: it keeps cookies, sends the origin, and reads the token from the page."""

    def __init__(self, http: httpx.Client, base: str = BASE) -> None:
        self.http, self.base, self.csrf = http, base, ""

    def sign_in(self, token: str) -> Client:
        reply = self.post("/api/join", token=token)
        assert reply.status_code == 200, reply.text
        self.read_token(reply.json()["next"])
        return self

    def read_token(self, path: str) -> None:
        found = CSRF.search(self.get(path).text)
        assert found is not None
        self.csrf = found[1]

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path, follow_redirects=False)

    def post(self, path: str, **values: Any) -> httpx.Response:
        headers = {"Origin": self.base, "Content-Type": "application/json"}
        return self.http.post(path, content=json.dumps({"csrf": self.csrf, **values}), headers=headers)

    def next(self) -> Any:
        return self.post("/api/next").json()

    def vote(self, choice: str, assignment: str | None = None, **values: Any) -> Any:
        assignment = assignment or self.next()["question"]["assignment"]
        return self.post("/api/vote", assignment=assignment, choice=choice, **{"seconds": 5.0, **values})


@dataclass
class Pages:
    """A store with an application on it, without a server."""

    store: AnnotationStore
    site: Site
    clock: Clock
    running: TestClient

    def client(self) -> Client:
        """A stranger."""
        client = TestClient(self.running.app, base_url=BASE, raise_server_exceptions=False)
        client.portal = self.running.portal  # one event loop for all
        return Client(client)

    def invite(self, name: str = "Ada", role: Role = "annotator") -> str:
        return self.store.invite(name, expires_at=self.clock.now + 1e6, now=self.clock.now, role=role).token

    def annotator(self, name: str = "Ada") -> Client:
        return self.client().sign_in(self.invite(name))

    def administrator(self) -> Client:
        return self.client().sign_in(self.invite("Root", "administrator"))


@contextmanager
def pages(folder: Path, *, hosts: tuple[str, ...] = (), **options: Any) -> Iterator[Pages]:
    """A store with questions, and pages on it; options are those of `make_store`."""
    clock = Clock()
    with make_store(folder / FILE, **options) as store:
        unlimited = RateLimit(1e9, 10**9)
        site = Site(store, folder, COOKIE, clock, sign_ins=unlimited, requests=unlimited)
        with TestClient(build(site, hosts=hosts), base_url=BASE) as running:
            yield Pages(store, site, clock, running)


@contextmanager
def served(store: AnnotationStore, folder: Path) -> Iterator[str]:
    """A server on a store, in a thread of this process, with the limits and the clock that people have. Its address."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = uvicorn.Config(build(Site(store, folder, f"annotation_{port}")), log_config=None, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()

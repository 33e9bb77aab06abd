"""Who reaches what: each route for each kind of visitor, and what no request gets past."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from annotation_web_kit import BASE, Client, Pages, pages

from online_dpo.annotation.web import administration, signing_in, voting
from online_dpo.annotation.web.guard import MAX_BODY
from online_dpo.annotation.web.limits import MAX_KEYS, RateLimit
from online_dpo.annotation.web.site import SESSION_S

BODIES: dict[str, dict[str, Any]] = {
    "/api/join": {"token": "x"},
    "/api/vote": {"assignment": "x", "choice": "left", "seconds": 1.0},
    "/api/renew": {"assignment": "x"},
    "/api/release": {"assignment": "x"},
    "/api/admin/invite": {"name": "Eve", "days": 1},
    "/api/admin/invite-again": {"annotator": "annotator-x", "days": 1},
    "/api/admin/revoke": {"annotator": "annotator-x"},
    "/api/admin/exclude": {"annotator": "annotator-x", "reason": "because"},
    "/api/admin/reinstate": {"annotator": "annotator-x"},
    "/api/admin/close": {"question_ids": ["x"]},
}
"""A body that each route can read; without an entry it needs none."""

ALL = [
    (method, route.path)
    for module in (signing_in, voting, administration)
    for route in module.router.routes
    for method in route.methods  # type: ignore[attr-defined]
]
OF_ADMINISTRATORS = [r for r in ALL if r[1].startswith(("/api/admin", "/admin"))]
OF_ANNOTATORS = [
    r
    for r in ALL
    if r[1].startswith("/api/") and r not in OF_ADMINISTRATORS and r[1] not in ("/api/join", "/api/leave")
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    with pages(tmp_path_factory.mktemp("site"), num_questions=20, votes_per_question=2) as found:
        yield found


def ask(client: Client, route: tuple[str, str]) -> int:
    method, path = route
    return (client.get(path) if method == "GET" else client.post(path, **BODIES.get(path, {}))).status_code


def test_every_route_is_looked_at() -> None:
    assert len(OF_ADMINISTRATORS) >= 9 and len(OF_ANNOTATORS) == 5
    others = {r[1] for r in ALL} - {r[1] for r in OF_ADMINISTRATORS + OF_ANNOTATORS}
    assert others == {"/", "/join", "/api/join", "/api/leave"}


@pytest.mark.parametrize("route", OF_ANNOTATORS + OF_ADMINISTRATORS, ids=lambda r: r[1])
def test_only_the_right_people_reach_a_route(site: Pages, route: tuple[str, str]) -> None:
    refused = 303 if route[1] == "/admin" else 401
    assert ask(site.client(), route) == refused, "a stranger"
    token = site.invite("Rev")
    revoked = site.client().sign_in(token)
    site.store.revoke(site.store.sign_in(token, site.clock.now).annotator, "run", site.clock.now)
    assert ask(revoked, route) == refused, "somebody whose access was revoked"
    expired = site.annotator("Exp")
    then, site.clock.now = site.clock.now, site.clock.now + SESSION_S + 1
    assert ask(expired, route) == refused, "somebody whose session has run out"
    site.clock.now = then
    annotator, administrator = site.annotator(), site.administrator()
    wrong, right = (annotator, administrator) if route in OF_ADMINISTRATORS else (administrator, annotator)
    assert ask(wrong, route) == 403
    assert ask(right, route) not in (401, 403)


@pytest.mark.parametrize("route", [r for r in OF_ANNOTATORS + OF_ADMINISTRATORS if r[0] == "POST"], ids=lambda r: r[1])
def test_a_change_needs_the_token_of_a_page_and_its_origin(site: Pages, route: tuple[str, str]) -> None:
    client = site.administrator() if route in OF_ADMINISTRATORS else site.annotator()
    other = site.annotator("Other")
    for token in ("", "x", "\u00e9", other.csrf):
        forged = Client(client.http)
        forged.csrf = token
        assert ask(forged, route) == 403
    body = {"csrf": client.csrf, **BODIES.get(route[1], {})}
    for headers in (
        {},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": BASE.replace("8000", "8001")},
    ):
        assert client.http.post(route[1], json=body, headers=headers).status_code == 403
    reply = client.http.post(route[1], content=json.dumps(body), headers={"Origin": BASE, "Content-Type": "text/plain"})
    assert reply.status_code == 415, "what a form of another page could send"


def test_links_run_out_are_revoked_and_unknown(site: Pages) -> None:
    token, client = site.invite("Late"), site.client()
    then, site.clock.now = site.clock.now, site.clock.now + 2e6
    assert "run out" in client.post("/api/join", token=token).json()["error"]
    site.clock.now = then
    person = site.store.sign_in(token, then).annotator
    site.store.revoke(person, "run", then)
    assert "revoked" in client.post("/api/join", token=token).json()["error"]
    for strange in ("", "x" * 43, "x" * 100_000, "\udc00", "'; DROP TABLE votes; --"):
        assert "not known" in client.post("/api/join", token=strange).json()["error"]
    assert not client.http.cookies


def test_signing_in_gives_a_cookie_that_scripts_and_other_sites_cannot_use(site: Pages) -> None:
    token = site.invite("Kay")
    client = site.client()
    for _ in range(2):
        assert client.get("/join").status_code == 200
    assert not client.http.cookies, "a preview of the link does not sign in"
    reply = client.post("/api/join", token=token)
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie and "Secure" not in cookie
    assert token not in cookie + reply.text, "the link's token is exchanged for another one"
    https = Client(site.client().http, "https://localhost:8000")
    https.http.base_url = "https://localhost:8000"
    assert "Secure" in https.post("/api/join", token=token).headers["set-cookie"]


def test_signing_out_ends_the_session(site: Pages) -> None:
    client = site.annotator("Leo")
    stolen = Client(site.client().http)
    stolen.http.cookies.update(client.http.cookies)
    stolen.csrf = client.csrf
    assert stolen.post("/api/next").status_code == 200
    assert client.post("/api/leave").json() == {"next": "/join"}
    assert stolen.post("/api/next").status_code == 401


PATHS = (
    *("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/%00"),
    *("/static/", "/openapi.json", "/docs", "/annotation.sqlite", "/../annotation/annotation.sqlite", "/favicon.ico"),
)


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_to_a_file(site: Pages, path: str) -> None:
    for client in (site.client(), site.annotator()):
        reply = client.get(path)
        assert reply.status_code == 404
        assert reply.json() == {"error": "There is no such page."}


def test_every_reply_has_the_headers_and_says_nothing_of_the_server(
    site: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = site.annotator("Hed")
    monkeypatch.setattr(site.store, "outlook", lambda annotator: 1 / 0)
    replies = [
        client.get("/"), client.get("/join"), client.get("/static/common.css"), client.get("/nowhere"),
        client.post("/api/next"), client.post("/api/vote"), client.post("/api/admin/pause"),
        client.http.put("/api/vote"),
        client.http.get("/", headers={"Host": "evil.example"}), client.http.post("/api/vote"),
        client.http.post("/api/join", content=b"{", headers={"Origin": BASE, "Content-Type": "application/json"}),
    ]  # fmt: skip
    assert [r.status_code for r in replies] == [200, 200, 200, 404, 500, 422, 403, 403, 421, 403, 422]
    for reply in replies:
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == ("no-cache" if "etag" in reply.headers else "no-store")
        said = str(reply.headers).lower() + reply.text.lower()
        assert not re.search(r"traceback|zerodivision|fastapi|starlette|uvicorn|pydantic|python|sqlite", said)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "[::1", "127.0.0.1.evil.example"])
def test_other_names_are_not_answered(site: Pages, host: str) -> None:
    assert site.client().http.get("/join", headers={"Host": host}).status_code == 421


def test_names_of_this_machine_and_given_ones_are_answered(tmp_path: Path) -> None:
    with pages(tmp_path, hosts=("annotate.example.org",)) as site:
        for host in ("annotate.example.org", "ANNOTATE.example.org:443", "127.0.0.1:1234", "[::1]:8765", "10.0.0.7:80"):
            assert site.client().http.get("/join", headers={"Host": host}).status_code == 200


def test_a_request_is_no_longer_than_the_longest_of_ours(site: Pages) -> None:
    client = site.annotator("Big")
    headers = {"Origin": BASE, "Content-Type": "application/json"}
    assert client.vote("left", comment="\U0001f600" * 10_000).status_code == 200
    assert client.vote("left", comment="x" * 10_001).status_code == 422
    assert client.http.post("/api/vote", content=b"x" * (MAX_BODY + 1), headers=headers).status_code == 413
    assert client.http.post("/api/vote", content=iter([b"{", b"}"]), headers=headers).status_code == 411


def test_whoever_asks_too_often_is_told_how_long_to_wait(tmp_path: Path) -> None:
    with pages(tmp_path, num_questions=1) as site:
        ada, bob = site.annotator("Ada"), site.annotator("Bob")
        now = [0.0]
        site.site.requests = RateLimit(0.5, 3, clock=lambda: now[0])
        site.site.sign_ins = RateLimit(0.1, 2, clock=lambda: now[0])
        assert [ada.post("/api/next").status_code for _ in range(4)] == [200, 200, 200, 429]
        reply = ada.post("/api/next")
        assert reply.headers["retry-after"] == "2" and reply.json() == {"error": "Too many requests: try again in 2 s."}
        assert bob.post("/api/next").status_code == 200, "others are not kept waiting"
        now[0] = 2.0
        assert ada.post("/api/next").status_code == 200
        stranger = site.client()
        assert [stranger.post("/api/join", token="guess").status_code for _ in range(3)] == [403, 403, 429]


def test_many_names_do_not_fill_the_memory() -> None:
    now = [0.0]
    limit = RateLimit(1.0, 2, clock=lambda: now[0])
    assert [limit.wait_s("worst") for _ in range(3)] == [0.0, 0.0, 1.0]
    for number in range(3 * MAX_KEYS):
        limit.wait_s(str(number))
    assert len(limit._buckets) <= MAX_KEYS
    assert limit.wait_s("worst") > 0, "the busiest are remembered longest"

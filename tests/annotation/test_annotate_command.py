"""`online-dpo annotate` as a process: what it prints and refuses, and what outlives its end and its murder."""

from __future__ import annotations

import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import httpx
import pytest
from annotation_kit import ask, check_file
from annotation_web_kit import Client
from cli_kit import PROGRAM, called, refused, write_inputs, write_run

from online_dpo.annotation.store import FILE, AnnotationStore
from online_dpo.annotation.web.voting import choice_of

RUN = Path("runs/demo")
HUMAN = {"type": "human", "annotators": 2, "quality": {"min_seconds": 0.0, "repeat_share": 0.0}}


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that asks people, and one that does not."""
    folder = tmp_path_factory.mktemp("annotate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_inputs(folder, tiny_model)
        write_run()
        RUN.rename("runs/without")
        write_inputs(folder, tiny_model, judge=HUMAN)
        write_run()
    return folder


@contextmanager
def server(folder: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command, and the lines that it printed until it served. A test ends it, or it is ended here."""
    command = [*PROGRAM, "annotate", str(RUN), "--port", "0", *map(str, options)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith("Ctrl-C"):
                break
        else:
            pytest.fail("\n".join(lines))
        yield process, lines
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def administrator_link(lines: list[str]) -> tuple[str, str]:
    """Address and token."""
    found = re.search(r"(http://[^ ]+)/join#([\w-]+)", "\n".join(lines))
    assert found is not None, lines
    return found[1], found[2]


def sign_in(link: str) -> Client:
    base, _, token = link.partition("/join#")
    return Client(httpx.Client(base_url=base, timeout=30), base).sign_in(token)


def test_people_answer_and_a_signal_ends_the_server_with_questions_given_back(folder: Path) -> None:
    for number, ended_by in enumerate((signal.SIGTERM, signal.SIGINT)):
        with server(folder) as (process, lines):
            base, token = administrator_link(lines)
            root = sign_in(f"{base}/join#{token}")
            with AnnotationStore.open(folder / RUN / FILE) as store:
                store.add_questions([ask(10 * number + i) for i in range(3)], time.time())
            link = called("annotate", RUN, "--invite", f"Ada {number}", cwd=folder).out.strip()
            assert link.startswith(f"{base}/join#"), "the address is that of the server that runs"
            ada = sign_in(link)
            ada.vote("left")
            assert root.get("/api/admin/overview").json()["progress"]["num_leased"] == 1
            message = refused("annotate", RUN, cwd=folder)
            assert "is in use" in message and base in message
            process.send_signal(ended_by)
            assert process.stdout is not None
            rest = process.stdout.read()
            assert process.wait(60) == 0 and f"{number + 1} votes are in" in rest
            assert token not in rest and "Traceback" not in rest
        with AnnotationStore.open(folder / RUN / FILE) as store:
            assert store.progress(time.time()).num_leased == 0
        check_file(folder / RUN / FILE)


def test_mistakes_are_a_sentence_each(folder: Path) -> None:
    if not (folder / RUN / FILE).exists():
        called("annotate", RUN, "--invite", "Ada", cwd=folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert (
            f"--port is {port}, which another program uses"
            in called("annotate", RUN, "--port", port, cwd=folder).refusal
        )
    for words, options in {
        "holds no run": ["runs/nowhere"],
        "has no human judge": ["runs/without"],
        "--port is 99999": [RUN, "--port", 99999],
        "--host is 192.0.2.1, which is no address of this machine": [RUN, "--host", "192.0.2.1"],
        "--host is no such host": [RUN, "--host", "no such host"],
        "--url is annotate.example": [RUN, "--url", "annotate.example"],
        "--trust-proxy is somewhere": [RUN, "--trust-proxy", "somewhere"],
        "--days is 0": [RUN, "--invite", "Ada", "--days", 0],
        "1 to 200 characters": [RUN, "--invite", " "],
    }.items():
        assert words in called("annotate", *options, cwd=folder).refusal


def test_whatever_the_page_was_told_is_there_after_the_server_was_killed(folder: Path) -> None:
    people, rounds = 6, 2
    with AnnotationStore.open(folder / RUN / FILE) as store:
        store.add_questions([ask(100 + i) for i in range(400)], time.time())
        tokens = [
            store.invite(f"Person {i}", expires_at=time.time() + 1000, now=time.time()).token for i in range(people)
        ]
    told: dict[str, str] = {}
    sent: dict[str, str] = {}
    for number in range(rounds):
        with server(folder) as (process, lines):
            base, _ = administrator_link(lines)
            clients = [sign_in(f"{base}/join#{token}") for token in tokens]
            voters = [Thread(target=_vote_until_the_end, args=(client, told, sent)) for client in clients]
            for voter in voters:
                voter.start()
            time.sleep(0.6 + 0.37 * number)
            process.kill()
            for voter in voters:
                voter.join()
        check_file(folder / RUN / FILE)  # nothing is doubled
        with AnnotationStore.open(folder / RUN / FILE) as store:
            kept = {vote.vote_id: choice_of(vote) for vote in store.votes()}
        assert len(told) > 20 * (number + 1)
        assert told.items() <= kept.items(), "what the page said is saved is there"
        assert {name: kept[name] for name in sent if name in kept}.items() <= sent.items(), "and as it was sent"


def _vote_until_the_end(client: Client, told: dict[str, str], sent: dict[str, str]) -> None:
    try:
        asked = client.next()
        while asked.get("state") == "question":
            assignment, choice = asked["question"]["assignment"], random.choice(["left", "right", "tie", "both_bad"])
            sent[assignment] = choice
            asked = client.vote(choice, assignment).json()
            if asked.get("saved"):
                told[assignment] = choice
    except (httpx.TransportError, ValueError):
        pass  # the server is gone, or was while it answered


def test_a_network_is_warned_of_and_a_proxy_is_believed_only_where_it_is_named(folder: Path) -> None:
    url = "https://annotate.example.org"
    forwarded = {"Host": "annotate.example.org", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
    proxied = ["--url", url, "--trust-proxy", "127.0.0.1"]
    for options, status in ((["--host", "0.0.0.0"], 421), (proxied[:2], 403), (proxied, 200)):
        with server(folder, *options) as (_, lines):
            assert any(line.startswith("warning: 0.0.0.0 is open to the network") for line in lines) == (status == 421)
            found = re.search(r"(\S+)/join#([\w-]+)", "\n".join(lines))
            assert found is not None and (found[1] == url) == (status != 421)
            port = (folder / RUN / FILE).parent.joinpath("server.lock").read_text().rpartition(":")[2]
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}" if status == 421 else _own(lines))
            reply = client.post("/api/join", json={"token": found[2]}, headers={**forwarded, "Origin": url})
            assert reply.status_code == status
            if status == 200:
                assert "Secure" in reply.headers["set-cookie"]


def _own(lines: list[str]) -> str:
    """Where a server behind a proxy listens."""
    return next(line.split()[-1] for line in lines if line.startswith("listening at"))

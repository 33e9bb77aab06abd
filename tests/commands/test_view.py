"""`online-dpo view`: a page that follows its run and keeps its reader's place, and a server that gives nothing else."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from browser_kit import Visit, screenshots, walk_by_keyboard
from cli_kit import PROGRAM, called
from fastapi.testclient import TestClient
from loop_runs import Kill, Run
from page_kit import GOLD

from online_dpo.loop.stages import Event
from online_dpo.reports import listening
from online_dpo.reports.page.live import LivePage
from online_dpo.reports.page.serving import HEADERS, make_app

TOP_OF_A_CARD = "() => document.querySelector('#answers-cards .card:nth-child(2)')?.getBoundingClientRect().top"


SETTLED = """words => document.querySelector(".live")?.textContent.startsWith("Live:")
    && document.getElementById("progress").textContent.startsWith(words)"""
"""The page shows what was committed last, and says how far the run is."""


class Until(listening.Listener):
    """Kills the process when it hears an event, such as `shard_sampled 1`: its kind and its round, counted from 0."""

    def __init__(self, event: str) -> None:
        self._event = event

    def note(self, line: str) -> None:
        return None

    def hear(self, event: Event) -> None:
        if f"{event.kind} {event.round_index}" == self._event:
            raise Kill


def without_clock(html: str) -> str:
    return re.sub("Written [^<]*", "", html)


def go_on(run: Run, event: str) -> None:
    """Go on until an event kills the process."""
    with pytest.raises(Kill):
        run.go_on(listeners=[Until(event)])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three rounds, killed as soon as the config is committed."""
    run = Run.of(tmp_path, evaluation__judges=GOLD, run__rounds=3)
    go_on(run, "run_started 0")
    return run


@pytest.fixture
def served(run: Run) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process, and the address that it names."""
    process = subprocess.Popen(
        [*map(str, PROGRAM), "view", str(run.path), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    match = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
    assert match, process.communicate()
    yield process, match.group()
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_a_page_follows_its_run_and_keeps_its_readers_place(
    run: Run, served: tuple[subprocess.Popen[str], str], visit: Visit, tmp_path: Path
) -> None:
    process, address = served
    visitor = visit()
    page = visitor.page
    page.goto(f"{address}#curves")  # to which a reload alone would go back
    assert page.inner_text("#progress") == "0 of 3 rounds are finished."
    assert page.locator("#chart-reward").count() == 0

    go_on(run, "step 1")
    page.wait_for_function(SETTLED, arg="1 of 3 rounds are finished. Round 2 is under way:")
    assert page.locator("#chart-loss").count() == 1

    # Its reader filters and searches, unfolds a table, and reads on at some place.
    page.select_option("#answers-controls [name=order]", "longest")
    page.fill("#answers-controls [name=search]", "train")
    page.wait_for_timeout(300)  # lists of answers are drawn a moment after their filters change
    page.click("#chart-kl summary")
    page.evaluate("() => document.querySelector('#answers-cards .card:nth-child(2)').scrollIntoView()")
    before = page.evaluate(TOP_OF_A_CARD)
    cards = page.locator("#answers-cards .card h3").all_inner_texts()
    page.evaluate("() => document.querySelector('#answers-controls [name=search]').focus({preventScroll: true})")

    run.go_on()
    page.wait_for_function(SETTLED, arg="Finished: 3 rounds.")
    page.wait_for_function(f"top => Math.abs(({TOP_OF_A_CARD})() - top) < 2", arg=before)
    assert page.input_value("#answers-controls [name=search]") == "train"
    assert page.input_value("#answers-controls [name=order]") == "longest"
    assert page.input_value("#answers-controls [name=round]") == "1"
    assert page.locator("#answers-cards .card h3").all_inner_texts() == cards
    assert page.locator("#chart-kl details[open]").count() == 1 and page.locator("details[open]").count() == 1
    assert page.evaluate("() => document.activeElement.name") == "search"
    # The curves and what nobody had chosen are of the newest round.
    assert page.input_value("#held-out-controls [name=after]") == "3"
    assert page.locator("#chart-reward tbody tr").count() == 4
    screenshots(page, tmp_path, "view", full_page=False)
    assert "input Search" in walk_by_keyboard(page)

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    page.wait_for_function("() => document.querySelector('.live').textContent.startsWith('No answer')")
    visitor.expect("ERR_CONNECTION_REFUSED")
    visitor.faults[:] = [fault for fault in visitor.faults if "ERR_CONNECTION_REFUSED" not in fault]


def test_what_nobody_asked_for_is_refused(run: Run) -> None:
    client = TestClient(make_app(LivePage(run.path)), base_url="http://127.0.0.1:8017")
    assert client.get("/").status_code == client.head("/").status_code == client.get("/state").status_code == 200
    assert client.get("/", headers={"host": "localhost:8017"}).status_code == 200
    for host in ("evil.example", "evil.example:8017", "127.0.0.1.evil.example", "127.0.0.2", "0.0.0.0"):
        assert client.get("/", headers={"host": host}).status_code == 400
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/").status_code == 405
    for path in (
        "/config.yaml",
        "/run.json",
        "/rounds/00000/",
        "/%2e%2e/run.json",
        "//etc/passwd",
        "/docs",
        "/openapi.json",
    ):
        assert client.get(path).status_code == 404
    for reply in (client.get("/"), client.get("/nothing"), client.get("/", headers={"host": "evil.example"})):
        assert {name: reply.headers[name] for name in HEADERS} == HEADERS


def test_a_killed_and_resumed_run_gives_one_page_after_the_other(run: Run, tmp_path: Path) -> None:
    live = LivePage(run.path)
    pages, states = [live.html()], [live.state()]
    for event in ("evaluated 0", "paired 0", "round_committed 0", "shard_judged 1", "step 1", "round_done 1"):
        go_on(run, event)
        pages.append(live.html())
        states.append(live.state())
        assert live.state() == states[-1] and live.html() == pages[-1]
    run.go_on()
    assert live.state().progress == "Finished: 3 rounds."
    assert f'content="{live.state().page}"' in live.html()
    # A shard is told at once, and makes no new page: the reader's view changes where a round is finished.
    assert len({state.progress for state in states}) > len({state.page for state in states}) > 1


def test_a_page_that_is_made_while_the_run_writes_finds_nothing_damaged(run: Run) -> None:
    live = LivePage(run.path)
    with ThreadPoolExecutor(1) as pool:
        playing = pool.submit(run.go_on)
        pages = []
        while not playing.done():
            pages.append(live.html())
        playing.result()
    assert len(set(map(without_clock, pages))) > 2
    wrong = ("What could not be read", "The run cannot be read")
    assert [page for page in pages if any(words in page for words in wrong)] == []


def test_a_run_that_goes_away_and_comes_back_is_told(run: Run, visit: Visit, tmp_path: Path) -> None:
    run.go_on()
    live = LivePage(run.path)
    whole, moved = live.html(), tmp_path / "moved"
    shutil.move(run.path, moved)
    assert "is no run directory" in live.state().progress or "no run" in live.state().progress
    assert "The run cannot be read at the moment" in live.html()
    page = visit().page
    page.route("**/*", lambda route: route.fulfill(body=live.html(), content_type="text/html"))
    page.goto("http://127.0.0.1:1/")
    screenshots(page, tmp_path, "unreadable")
    shutil.move(moved, run.path)
    assert without_clock(live.html()) == without_clock(whole)


def test_a_taken_port_and_a_missing_run_are_sentences(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refusal = called("view", run.path, "--port", port, cwd=tmp_path).refusal
        assert refusal == f"--port is {port}, which another program uses; give another one, or 0 for a free one"
    assert "runs/none" in called("view", "runs/none", cwd=tmp_path).refusal


def test_what_cannot_be_opened_is_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)  # gives None: no browser was started
    monkeypatch.setattr("online_dpo.commands.view.serve", lambda live, listener: listener.close())
    other = tmp_path / "other"
    shutil.copytree(run.path, other)
    for arguments in (
        ["view", run.path, "--port", 0],
        ["report", run.path, "--out", "a.html"],
        ["compare", run.path, other, "--out", "b.html"],
    ):
        done = called(*arguments, "--open", cwd=tmp_path)
        assert (done.code, done.err) == (0, f"no browser could be started here; open {opened[-1]} in one\n")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", opened[0])
    assert opened[1:] == [(tmp_path / name).as_uri() for name in ("a.html", "b.html")]


def test_the_command_line_imports_no_server(tmp_path: Path) -> None:
    code = "import sys, online_dpo.cli; print({'fastapi', 'uvicorn', 'jinja2', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "set()"

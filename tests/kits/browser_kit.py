"""A real Chromium for tests of pages: found by a rule, one for each test process, a fresh profile for each visitor.

It is a pytest plugin (`tests/conftest.py` names it). A test asks for `page`, or for `visit` where several people look
at a page or where the window matters. After the test whatever went wrong in a page fails it: an uncaught error, a line
in the console, a request that leaves this machine.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

BROWSER = "ONLINE_DPO_CHROMIUM"
"""This environment variable names the browser; without it, the browser is the `chromium` on PATH."""
REQUIRED = "ONLINE_DPO_REQUIRE_BROWSER"
"""Where this environment variable is set, as in CI, a test that finds no browser fails instead of being left out."""
MISSING = f"there is no chromium on PATH; `make install-browser` installs it, or {BROWSER} names one"

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # No name but the loopback's can be looked up, and no address but its own can be reached.
    "--host-resolver-rules=MAP * ~NOTFOUND, " + ", ".join(f"EXCLUDE {host}" for host in LOOPBACK),
)

WIDER_THAN_WINDOW = """() => {
    const width = document.documentElement.clientWidth
    if (document.documentElement.scrollWidth <= width) return []
    return [...document.querySelectorAll("body *")]
        .filter(each => each.getBoundingClientRect().right > width + 1)
        .map(each => `${each.tagName.toLowerCase()}.${each.className} ends at ${each.getBoundingClientRect().right}`)
}"""
TO_THE_TOP = """() => {
    const start = document.createElement("span")
    start.tabIndex = -1
    document.body.prepend(start)
    start.focus()
    start.remove()  // the next Tab goes on from where it was
}"""
FOCUSED = """() => {
    const it = document.activeElement
    if (!it || it === document.body || it === document.documentElement) return null
    const box = it.getBoundingClientRect(), style = getComputedStyle(it)
    const inside = box.bottom > 0 && box.right > 0 && box.top < innerHeight && box.left < innerWidth
    const text = it.getAttribute("aria-label") || it.labels?.[0]?.innerText || it.innerText || it.id || ""
    const name = `${it.tagName.toLowerCase()} ${text}`.trim().replace(/\\s+/g, " ").slice(0, 60).trim()
    const isMarked = style.outlineStyle !== "none" || style.boxShadow !== "none"
    const isNew = !it.hasAttribute("data-walked")
    it.setAttribute("data-walked", "")
    return {name, isSeen: inside && box.width > 0 && box.height > 0, isMarked, isNew}
}"""


def chromium_path() -> str | None:
    """The browser to test with: what the environment names, then `chromium` on PATH; None if there is none."""
    return os.environ.get(BROWSER) or shutil.which("chromium")


@dataclass
class Visitor:
    """A profile of its own (cookies, storage) with one page, and what went wrong in it."""

    context: BrowserContext
    page: Page
    faults: list[str] = field(default_factory=list)

    def expect(self, pattern: str) -> None:
        """Take one fault that matches off the list, since the test provoked it.

        Args:
            pattern: a regular expression, searched in each fault.
        """
        found = [fault for fault in self.faults if re.search(pattern, fault)]
        assert found, f"nothing like {pattern!r} went wrong, only {self.faults}"
        self.faults.remove(found[0])


Visit = Callable[..., Visitor]


@dataclass(frozen=True)
class Chromium:
    """A started browser, and the event loop that Playwright talks to it with."""

    browser: Browser
    loop: asyncio.AbstractEventLoop


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """The one Chromium of this test process. Without any, the test is left out, or fails where one is required."""
    path = chromium_path()
    if path is None:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{MISSING} ({REQUIRED} is set)", pytrace=False)
        pytest.skip(MISSING)
    from playwright.sync_api import sync_playwright

    flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else [*FLAGS]  # its sandbox refuses to work for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        loop = asyncio.get_running_loop()
        with _running_loop(None):
            yield Chromium(browser, loop)
        browser.close()


@pytest.fixture
def visit(chromium: Chromium) -> Iterator[Visit]:
    """Open a page in a fresh profile: `visit(viewport=PHONE, color_scheme="dark").page.goto(...)`.

    The arguments are those of Playwright's `Browser.new_context`. After the test, faults of any visitor fail it.
    """
    visitors: list[Visitor] = []

    def open_profile(**options: object) -> Visitor:
        context = chromium.browser.new_context(**{"viewport": DESKTOP, **options})
        visitor = Visitor(context, context.new_page())
        _watch(visitor)
        visitors.append(visitor)
        return visitor

    with _running_loop(chromium.loop):
        yield open_profile
        for visitor in visitors:
            visitor.context.close()
    faults = [fault for visitor in visitors for fault in visitor.faults]
    assert not faults, "in the browser:\n" + "\n".join(faults)


@pytest.fixture
def page(visit: Visit) -> Page:
    """A page in a fresh profile."""
    return visit().page


def _watch(visitor: Visitor) -> None:
    context, faults = visitor.context, visitor.faults

    def note_request(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            faults.append(f"a request to {url}")

    context.on("request", lambda request: note_request(request.url))
    context.on("weberror", lambda error: faults.append(f"uncaught: {error.error}"))
    context.on("console", lambda line: faults.append(f"console: {line.text}") if line.type == "error" else None)


@contextmanager
def _running_loop(loop: asyncio.AbstractEventLoop | None) -> Iterator[None]:
    """Playwright leaves its event loop as this thread's running one, so that no other test could run one of its own."""
    before = asyncio._get_running_loop()
    asyncio._set_running_loop(loop)
    try:
        yield
    finally:
        asyncio._set_running_loop(before)


def assert_fits(page: Page) -> None:
    """No part of the page lies beyond the window's right edge, so nobody has to scroll sideways."""
    assert page.evaluate(WIDER_THAN_WINDOW) == []


def screenshots(page: Page, folder: Path, name: str, *, full_page: bool = True) -> list[Path]:
    """Take the page's picture on a desktop and on a phone, light and dark; it must fit the window each time.

    Args:
        page: what to look at; it is left at desktop width and in light colours.
        folder: gets `NAME-desktop-light.png` and so on; a test gives its `tmp_path`.
        name: how the files begin.
        full_page: also what is below the window.

    Returns:
        The four files.
    """
    files = []
    for width, size in (("phone", PHONE), ("desktop", DESKTOP)):
        page.set_viewport_size(size)
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            assert_fits(page)
            files.append(folder / f"{name}-{width}-{scheme}.png")
            page.screenshot(path=files[-1], full_page=full_page)
    return files


def walk_by_keyboard(page: Page, *, most: int = 200) -> list[str]:
    """Press Tab from the top until the focus was everywhere; each stop must be in view and look like the focused one.

    Args:
        page: is left with the focus behind its last stop.
        most: stops at which to give up.

    Returns:
        The stops in their order, such as "button Next" or "input Search".
    """
    page.evaluate(TO_THE_TOP)
    stops: list[str] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if stop is None or not stop["isNew"]:
            return stops
        assert stop["isSeen"], f"the focus is on {stop['name']!r}, which cannot be seen"
        assert stop["isMarked"], f"nothing shows that the focus is on {stop['name']!r}"
        stops.append(stop["name"])
    raise AssertionError(f"after {most} stops the focus is still not back at the first: {stops[-5:]}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what was left out without a browser."""
    skipped = terminalreporter.stats.get("skipped", [])
    number = sum(MISSING in str(report.longrepr) for report in skipped)
    if number:
        terminalreporter.write_line(f"left out: {number} tests of pages, because {MISSING}", yellow=True)

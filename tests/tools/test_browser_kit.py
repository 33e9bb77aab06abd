"""Tests of pages: left out in one line without a browser, never in CI; what goes wrong in a page fails its test."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser_kit import BROWSER, MISSING, REQUIRED, Visit, assert_fits, screenshots, walk_by_keyboard

ROOT = Path(__file__).parents[2]
TESTS = """
import asyncio

def test_of_a_page(page):
    page.set_content("<h1>A page</h1>")
    assert page.inner_text("h1") == "A page"

def test_of_something_else():
    async def seven():
        return 7
    assert asyncio.run(seven()) == 7

def test_of_another_page(visit):
    visit().page.evaluate("() => console.error('a fault')")
"""


def run_tests(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    for name in ("test_first.py", "test_second.py"):
        (folder / name).write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "browser_kit", "--rootdir", folder, *options, folder],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests/kits"), REQUIRED: "", **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_without_a_browser_one_line_says_what_was_left_out(tmp_path: Path) -> None:
    code, out = run_tests(tmp_path, "-n", "2", "--dist", "loadfile", PATH=str(tmp_path), **{BROWSER: ""})
    assert code == 0, out
    assert f"left out: 4 tests of pages, because {MISSING}" in out.splitlines()
    assert "2 passed, 4 skipped" in out


def test_where_a_browser_is_required_its_absence_is_a_failure(tmp_path: Path) -> None:
    code, out = run_tests(tmp_path, "-n", "0", PATH=str(tmp_path), **{BROWSER: "", REQUIRED: "1"})
    assert code == 1 and "left out" not in out, out
    assert "2 passed, 4 errors" in out and f"{MISSING} ({REQUIRED} is set)" in out
    assert f"export {REQUIRED}=1" in (ROOT / ".ci/run").read_text()
    assert "install-browser" in (ROOT / ".ci/run").read_text()


def test_a_browser_that_does_not_start_is_a_failure_too(tmp_path: Path) -> None:
    code, out = run_tests(tmp_path, "-n", "0", **{BROWSER: "/bin/false"})
    assert code == 1 and "2 passed, 4 errors" in out and "/bin/false" in out, out


def test_a_fault_in_a_page_fails_its_own_test(tmp_path: Path) -> None:
    code, out = run_tests(tmp_path, "-n", "0")
    assert code == 1 and "6 passed, 2 errors" in out and "console: a fault" in out, out


def test_every_kind_of_fault_is_seen(visit: Visit) -> None:
    visitor = visit()
    visitor.page.set_content("<script>setTimeout(() => { throw new Error('gone') })</script>")
    for address in ("http://example.com/a.js", "http://192.0.2.1/b.js"):
        failed = "address => fetch(address).then(() => 'reached', () => 'blocked')"
        assert visitor.page.evaluate(failed, address) == "blocked"
        visitor.expect(f"a request to {address}")
        visitor.expect("console: .*ERR_NAME_NOT_RESOLVED")
    visitor.expect("uncaught: .*gone")
    assert visitor.faults == []
    with pytest.raises(AssertionError, match="nothing like 'gone' went wrong"):
        visitor.expect("gone")


def test_other_tests_can_run_event_loops_beside_an_open_browser(chromium: object) -> None:
    assert asyncio.run(asyncio.sleep(0, 7)) == 7


def test_a_page_that_is_too_wide_is_found_at_the_width_where_it_is(visit: Visit, tmp_path: Path) -> None:
    page = visit().page
    page.set_content("<style>body {margin: 0}</style><p>short</p>")
    pictures = screenshots(page, tmp_path, "short")
    assert [file.name for file in pictures if file.stat().st_size] == [
        "short-phone-dark.png",
        "short-phone-light.png",
        "short-desktop-dark.png",
        "short-desktop-light.png",
    ]
    page.set_content("<style>body {margin: 0}</style><p class=wide style='width: 500px'>long</p>")
    assert_fits(page)
    with pytest.raises(AssertionError, match=r"p\.wide ends at 500"):
        screenshots(page, tmp_path, "long")


def test_the_walk_names_every_stop_and_refuses_a_focus_that_nobody_sees(visit: Visit) -> None:
    page = visit().page
    page.set_content(
        "<label>Search <input></label><p>text</p><button>Next</button><a href='#x' aria-label='To the top'>^</a>"
    )
    page.focus("button")
    assert walk_by_keyboard(page) == ["input Search", "button Next", "a To the top"]
    page.set_content("<button>Seen</button><button style='outline: none'>Unmarked</button>")
    with pytest.raises(AssertionError, match="nothing shows that the focus is on 'button Unmarked'"):
        walk_by_keyboard(page)
    page.set_content("<button style='position: fixed; left: -99px; width: 9px'>Away</button>")
    with pytest.raises(AssertionError, match="'button Away', which cannot be seen"):
        walk_by_keyboard(page)

"""The pages in a real browser: by mouse and by keyboard, with trouble on the way, and with texts that mean harm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from annotation_kit import check_file, make_store
from annotation_web_kit import served
from browser_kit import PHONE, Visit, Visitor, assert_fits, screenshots, walk_by_keyboard

from online_dpo.annotation.records import Question, Role
from online_dpo.annotation.store import FILE, AnnotationStore

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = (
    "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'> [a](javascript:window.hit=3) "
    "![b](https://tracker.example/pixel.png) pay\u202eevil\u202c \x00\x1b[31m </textarea></script><b>bold</b>"
)


class Site:
    """A store, and a server on it with the clock that people have."""

    def __init__(self, store: AnnotationStore, address: str) -> None:
        self.store, self.address = store, address

    def link(self, name: str, role: Role = "annotator") -> str:
        token = self.store.invite(name, expires_at=time.time() + 1000, now=time.time(), role=role).token
        return f"{self.address}/join#{token}"


Start = Callable[..., Site]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Serve a store with questions; options are those of `make_store`."""
    running: list[Any] = []

    def begin(questions: list[Question] | None = None, **options: Any) -> Site:
        store = make_store(tmp_path / FILE, **options)
        store.add_questions(questions or [], time.time())
        server = served(store, tmp_path)
        running.extend((store, server))
        return Site(store, server.__enter__())

    yield begin
    store, server = running
    server.__exit__(None, None, None)
    store.close()
    check_file(tmp_path / FILE)


def sign_in(visitor: Visitor, link: str, ready: str = "#question") -> Page:
    page = visitor.page
    page.goto(link)
    page.click("#join")
    page.wait_for_selector(ready)
    return page


def ready(page: Page, done: int) -> None:
    """Wait for the question after so many answers, and past the moment in which a second click is taken for a slip."""
    page.wait_for_selector(f"#bar[data-done='{done}']", state="attached")
    page.wait_for_timeout(350)


def question(text: str, other: str = "other", prompt: Any = "Prompt") -> Question:
    return Question(
        purpose="reward",
        round_index=0,
        prompt_id="p",
        prompt=prompt,
        first=0,
        second=1,
        first_text=text,
        second_text=other,
    )


def test_two_people_answer_by_mouse_and_by_keyboard(start: Start, visit: Visit) -> None:
    site = start(num_questions=6, votes_per_question=2, criteria=("clear",), instructions="Be **kind** & <i>fair</i>.")
    ada, bob = (sign_in(visit(), site.link(name)) for name in ("Ada", "Bob"))
    assert ada.inner_text(".task") == "Be kind & <i>fair</i>."
    ada.click("#extras summary")
    ada.fill("#comment", "1 2 t b s u: no shortcut while somebody types")
    ada.check("[aria-label='Answer 2 is much better']", force=True)
    ada.click("[data-choice=right]")
    ready(ada, 1)
    assert ada.inner_text("#status") == "Saved."
    assert ada.input_value("#comment") == "" and not ada.is_checked("[aria-label='Answer 2 is much better']")
    ready(bob, 0)
    for number, key in enumerate("12tbs"):
        bob.keyboard.press(key)
        ready(bob, number + 1)
    assert bob.inner_text("#status") == "Skipped."
    first, *others = site.store.votes()
    assert first.comment == "1 2 t b s u: no shortcut while somebody types"
    assert first.ratings["clear"] == (-2 if first.outcome == "second" else 2)
    screen = {"first": "right", "second": "left"}, {"first": "left", "second": "right"}
    assert [screen[not v.swapped].get(v.outcome, v.outcome) for v in others] == [
        "left",
        "right",
        "tie",
        "both_bad",
        "skip",
    ]
    bob.keyboard.press("u")
    bob.wait_for_selector("#status:has-text('Taken back')")
    assert bob.get_attribute("[data-choice=skip]", "aria-current") == "true"
    ready(bob, 4)
    bob.keyboard.press("1")
    ready(bob, 5)
    assert [v.status for v in site.store.votes()][-2:] == ["superseded", "counted"]


def test_a_double_click_is_one_answer(start: Start, visit: Visit) -> None:
    site = start(num_questions=5)
    page = sign_in(visit(), site.link("Ada"))
    page.wait_for_timeout(350)
    page.dblclick("[data-choice=left]")
    ready(page, 1)
    press = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat, bubbles: true}))"
    page.evaluate(f"for (const repeat of [true, false, true]) {press}")  # a key that is held down
    ready(page, 2)
    assert len(site.store.votes()) == 2


def test_the_link_leaves_the_address_and_a_preview_does_not_sign_in(start: Start, visit: Visit) -> None:
    site = start(num_questions=1)
    visitor, link = visit(), site.link("Ada")
    page = visitor.page
    page.goto(link)
    page.wait_for_selector("#join")
    assert page.url == f"{site.address}/join" and not visitor.context.cookies()
    page.reload()
    page.click("#join")
    page.wait_for_selector("#question")
    assert page.url == f"{site.address}/"
    assert not page.evaluate("document.cookie"), "scripts cannot read the session"
    page.go_back()
    assert link.split("#")[1] not in page.url + str(page.evaluate("JSON.stringify(history.state)"))


def test_a_closed_tab_gives_its_question_back_but_not_while_another_is_open(start: Start, visit: Visit) -> None:
    site = start(num_questions=1, votes_per_question=1)
    visitor = visit()
    page = sign_in(visitor, site.link("Ada"))
    second = visitor.context.new_page()
    second.goto(site.address)
    second.wait_for_selector("#question")
    leased = lambda: site.store.progress(time.time()).num_leased  # noqa: E731
    assert leased() == 1
    second.close(run_before_unload=True)
    page.wait_for_timeout(300)
    assert leased() == 1, "the first tab still shows it"
    page.close(run_before_unload=True)
    until(lambda: leased() == 0)


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_tabs_of_one_person_answer_once(start: Start, visit: Visit) -> None:
    site = start(num_questions=3, votes_per_question=1)
    visitor = visit()
    page = sign_in(visitor, site.link("Ada"))
    other = visitor.context.new_page()
    other.goto(site.address)
    other.wait_for_selector("#question")
    other.wait_for_timeout(350)
    other.click("#extras summary")
    other.fill("#comment", "typed in the second tab")
    page.click("[data-choice=left]")
    ready(page, 1)
    other.click("[data-choice=right]")
    other.wait_for_selector("#status:has-text('already')")
    assert len(site.store.votes()) == 1


def test_an_answer_waits_for_the_connection_and_is_saved_once(start: Start, visit: Visit) -> None:
    site = start(num_questions=3)
    visitor = visit()
    page = sign_in(visitor, site.link("Ada"))
    page.wait_for_timeout(350)
    visitor.context.set_offline(True)
    page.click("[data-choice=left]")
    page.wait_for_selector("#status:has-text('Not saved yet')")
    assert page.is_disabled("[data-choice=right]") and not site.store.votes()
    visitor.context.set_offline(False)
    ready(page, 1)
    assert page.inner_text("#status") == "Saved." and len(site.store.votes()) == 1
    visitor.faults[:] = [fault for fault in visitor.faults if "ERR_INTERNET_DISCONNECTED" not in fault]


def test_what_is_typed_outlives_a_reload_and_the_loss_of_the_question(start: Start, visit: Visit) -> None:
    site = start(num_questions=1, votes_per_question=1)
    page = sign_in(visit(), site.link("Ada"))
    page.click("#extras summary")
    page.fill("#comment", "half a thought")
    page.reload()
    page.wait_for_selector("#question")
    assert page.input_value("#comment") == "half a thought"
    later = time.time() + 10_000  # the laptop slept, and somebody else was asked
    bob = site.store.invite("Bob", expires_at=later + 100, now=later).annotator.annotator
    held = site.store.next_assignment(bob, later)
    assert held is not None
    site.store.vote(held.assignment_id, bob, "left", now=later + 10)
    page.wait_for_timeout(350)
    page.click("[data-choice=left]")
    page.wait_for_selector("#kept")
    assert page.input_value("#kept-text") == "half a thought"
    assert page.inner_text("#status").startswith("Not saved. Your time for this question had run out")
    assert page.inner_text("#notice-title") == "Everything is answered. Thank you!"


def test_harmful_texts_stay_texts(start: Start, visit: Visit) -> None:
    chat = [{"role": "<i>user</i>", "content": HOSTILE}]
    site = start([question(HOSTILE, "x" * 5000, chat)])
    page = sign_in(visit(viewport=PHONE), site.link("<b>Eve</b>"))
    for form in ("#as-markdown", "#as-text"):
        page.click(form)
        shown = page.inner_text("#left") + page.inner_text("#right")
        assert "<script>window.hit = 1</script>" in shown and "[U+202E]" in shown and "[U+0000]" in shown
        assert page.evaluate("window.hit") is None
        assert page.locator("main :is(script, img, a, iframe, b, i, style)").count() == 0
        assert_fits(page)
    root = sign_in(visit(), site.link("Root", "administrator"), "#people tr")
    assert "<b>Eve</b>" in root.inner_text("#people") and "<script>" in root.inner_text("#stuck")
    assert root.locator("main :is(b, script, img)").count() == 0
    source = page.evaluate("document.documentElement.outerHTML") + page.content()
    for word in ("reward", "swapped", "round", "policy", "annotator-", "first_text"):
        assert word not in source


def test_right_to_left_code_and_tables_fit(start: Start, visit: Visit, tmp_path: Path) -> None:
    code = (
        "```python\n" + "x = 1  # a very long line " * 20 + "\n```\n\n| a | b |\n|---|---|\n| " + "w" * 300 + " | 2 |"
    )
    site = start(
        [
            question(
                "\u0645\u0631\u062d\u0628\u0627 " * 30, code, [{"role": "user", "content": "\u0627\u0643\u062a\u0628"}]
            )
        ]
    )
    page = sign_in(visit(), site.link("Ada"))
    assert page.evaluate("getComputedStyle(document.querySelector('#prompt .text')).direction") == "rtl"
    page.click("summary >> text=Ada")
    assert {file.stat().st_size > 1000 for file in screenshots(page, tmp_path, "question")} == {True}
    page.click("summary >> text=Ada")
    stops = [stop.split()[0] for stop in walk_by_keyboard(page)]
    # Tools, person, prompt, answers with the code that scrolls in one of them, comment, choices.
    assert sorted(stops) == sorted([*["button"] * 8, *["summary"] * 2, *["div"] * 3, "pre"])
    assert stops[:5] == ["button", "button", "button", "summary", "div"] and stops[-6:] == ["summary", *["button"] * 5]


def test_an_administrator_invites_pauses_and_excludes(start: Start, visit: Visit, tmp_path: Path) -> None:
    site = start(num_questions=2, votes_per_question=2)
    root = sign_in(visit(), site.link("Root", "administrator"), "#people tr")
    root.fill("#invite-name", "Grace")
    root.click("text=Make a link")
    root.wait_for_selector("#link-dialog[open]")
    link = root.input_value("#link")
    root.click("#link-dialog >> text=Close")
    until(lambda: root.input_value("#link") == "")
    grace = sign_in(visit(), link)
    root.click("#pause")
    root.wait_for_selector("#state.bad")
    ready(grace, 0)
    grace.click("[data-choice=left]")
    grace.wait_for_selector("#notice")
    assert grace.inner_text("#notice-title") == "A short break"
    assert grace.inner_text("#status") == "Saved."
    root.click("#pause")
    grace.wait_for_selector("#question", timeout=20_000)
    root.click("[aria-label='Exclude: Grace']")
    root.fill("#ask-reason", "only to try it")
    screenshots(root, tmp_path, "administration")
    root.click("#ask-yes")
    root.wait_for_selector("text=Reinstate")
    grace.click("[data-choice=left]")
    grace.wait_for_selector("#notice")
    assert "only to try it" in grace.inner_text("#notice-text")
    root.click("text=Reinstate")
    root.wait_for_selector("[aria-label='Revoke: Grace']")
    root.click("[aria-label='Revoke: Grace']")
    root.click("#ask-yes")
    root.wait_for_selector("text=revoked")
    assert site.store.votes()[0].status == "counted"

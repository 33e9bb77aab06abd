"""Simulated people who answer a run's questions on its real pages, each in a Chromium profile of their own."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from annotation_web_kit import served
from browser_kit import Visit

from online_dpo.annotation.records import Question
from online_dpo.annotation.store import FILE, AnnotationStore
from online_dpo.annotation.web.rendering import visible
from online_dpo.types import derive_seed

if TYPE_CHECKING:
    from playwright.sync_api import Page

SEEN = """() => {
    const at = (id) => document.getElementById(id)
    const isAsked = !at("question").hidden && !document.querySelector("[data-choice=left]").disabled
    const notice = at("notice").hidden ? null : at("notice-title").textContent
    return {isAsked, notice, left: at("left").textContent, right: at("right").textContent}
}"""

EXCLUDED = "Your answers do not count any more"


def wanted(text: str) -> tuple[int, str]:
    """What these people want is many words; of two answers with equally many, one is better all the same."""
    return text.count(" "), hashlib.sha256(text.encode()).hexdigest()


def truth(question: Question) -> str:
    return "first" if wanted(question.first_text) > wanted(question.second_text) else "second"


def write_gold(path: Path, number: int) -> None:
    rows = [{"prompt": f"known {i}", "chosen": f"a b c d {i}", "rejected": f"abcd{i}"} for i in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass
class Person:
    """Somebody who is right in so many of the cases; None = presses any key."""

    name: str
    right: float | None
    link: str
    annotator: str
    page: Page

    def sign_in(self) -> None:
        self.page.goto(self.link)
        self.page.click("#join")
        self.page.wait_for_selector("#question:not([hidden]), #notice:not([hidden])")

    def act(self, store: AnnotationStore) -> str | None:
        """Look at the page, and press a key if it asks something; the notice, if it says one instead."""
        seen = self.page.evaluate(SEEN)
        if not seen["isAsked"]:
            return str(seen["notice"]) if seen["notice"] else None
        held = store.next_assignment(self.annotator, time.time())
        assert held is not None and [seen["left"], seen["right"]] == [visible(text) for text in held.shown]
        outcome = self._outcome(held.question)
        shown_first = (outcome == "first") != held.swapped
        self.page.keyboard.press(outcome if outcome in ("t", "b") else "1" if shown_first else "2")
        return None

    def _outcome(self, question: Question) -> str:
        """The same on every machine, whatever the answers are."""
        key = (str(question.prompt), question.first, question.second)
        draw = derive_seed(32, self.name, *key) / 2**63
        if self.right is None:
            return ("first", "second", "t", "b")[int(4 * draw)]
        right = truth(question)
        return right if draw < self.right else {"first": "second", "second": "first"}[right]


@contextmanager
def people(run_dir: Path, rights: dict[str, float | None], visit: Visit) -> Iterator[list[Person]]:
    """Invite people by link, and serve the run's pages to them."""
    with AnnotationStore.open(run_dir / FILE) as store, served(store, run_dir) as address:
        found = []
        for name, right in rights.items():
            invitation = store.invite(name, expires_at=time.time() + 1e6, now=time.time())
            page = visit().page
            link = f"{address}/join#{invitation.token}"
            found.append(Person(name, right, link, invitation.annotator.annotator, page))
        for person in found:
            person.sign_in()
        yield found
        for person in found:
            person.page.goto("about:blank")  # a page that waits would ask the server after its end


def answer_all(run_dir: Path, everybody: Sequence[Person]) -> dict[str, str]:
    """Let people answer in turns, until every page says that there is nothing to do.

    Returns:
        What the page says to each, by name.
    """
    with AnnotationStore.open(run_dir / FILE) as store:
        for person in everybody:
            person.page.reload()
        while True:
            notices = {person.name: person.act(store) for person in everybody}
            if all(notices.values()):
                return {name: str(notice) for name, notice in notices.items()}

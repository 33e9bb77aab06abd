"""Simulated people who answer a run's questions on its real pages, each in a Chromium profile of their own."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from annotation_web_kit import served
from browser_kit import Visit

from online_dpo.annotation.records import Question
from online_dpo.annotation.store import FILE, AnnotationStore
from online_dpo.annotation.web.rendering import visible
from online_dpo.config.loading import load_config
from online_dpo.config.run import RunConfig
from online_dpo.store.run_store import RunStore
from online_dpo.types import Completion, Verdict, derive_seed
from online_dpo.votes import CastVote

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


def how_often_right(store: RunStore, names: Mapping[str, str]) -> tuple[list[CastVote], Counter[str]]:
    """The committed votes of two rounds, and how often the consensus and each person (by name) are right."""
    votes, right = list[CastVote](), Counter[str]()
    for index in (0, 1):
        texts = {(c.prompt_id, c.sample_index): c.text for c in answers(store, index)}

        def is_right(said: Verdict | CastVote, is_first: bool, texts: Mapping[tuple[str, int], str] = texts) -> bool:
            assert said.second is not None
            first, second = (texts[said.prompt_id, i] for i in (said.first, said.second))
            return is_first == (wanted(first) > wanted(second))

        for name in store.round(index).names("verdicts/"):
            for verdict in store.round(index).get_records(name, Verdict):
                assert verdict.probability is not None
                right["consensus"] += is_right(verdict, verdict.probability > 0.5)
            for vote in store.round(index).get_records(name, CastVote, table="votes"):
                votes.append(vote)
                right[names[vote.annotator]] += vote.counts and is_right(vote, vote.outcome == "first")
    return votes, right


def answers(store: RunStore, index: int, base: str = "") -> list[Completion]:
    """What a round sampled, or one of its evaluations."""
    part = store.round(index)
    return [c for name in part.names(f"{base}completions/") for c in part.get_records(name, Completion)]


def people_config(folder: Path, like: RunConfig) -> RunConfig:
    """Two rounds of thirty prompts with two answers, which five people compare."""
    write_gold(folder / "gold.jsonl", 30)
    for name, number in (("train", 60), ("heldout", 240)):
        rows = [json.dumps({"prompt": f"{name} {i}: a film that"}) for i in range(number)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    values = like.model_dump()
    quality = {"gold": str(folder / "gold.jsonl"), "gold_share": 0.35, "repeat_share": 0.0, "min_seconds": 0.0}
    judge = {"type": "human", "annotators": 5, "consensus": "dawid_skene", "wait": False, "quality": quality}
    return load_config(
        {
            **values,
            "run": {**values["run"], "dir": str(folder), "name": "people", "seed": 7},
            "prompts": {**values["prompts"], "source": str(folder / "train.jsonl"), "per_round": 30},
            "sampling": {**values["sampling"], "num_samples": 2},
            "judge": judge,
            "evaluation": {"sets": {"heldout": {"source": str(folder / "heldout.jsonl"), "count": 240}}, "every": 2},
        }
    )

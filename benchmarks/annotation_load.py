"""The latencies that many annotators see who answer at the same time, over HTTP.

    python benchmarks/annotation_load.py [--people 20] [--seconds 60] [--pause-s 0.5]

Starts the server of `online-dpo annotate` as a process of its own, on a store with questions enough, and lets people
answer: each looks at a question for `--pause-s`, votes, and is given the next one by the reply. Prints the latencies of
each kind of request, and whether every vote that was said to be saved is in the store. Asserts nothing about time.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from online_dpo.annotation.records import GoldQuestion, Question, Rules
from online_dpo.annotation.store import FILE, AnnotationStore

SERVER = """
import sys
from pathlib import Path
from online_dpo.annotation.store import FILE, AnnotationStore
from online_dpo.annotation.web.serving import Address, listen, serve
folder = Path(sys.argv[1])
with AnnotationStore.open(folder / FILE) as store:
    listener, address = listen(Address(host="127.0.0.1", port=0))
    print(address.own, flush=True)
    serve(store, folder, address, listener)
"""
ANSWER = (
    "The film was a pleasure from its first minute to its last, and **nobody** left early.\n\n* a list\n* `code`\n" * 6
)
CSRF = re.compile(r'name="csrf" content="(\w+)"')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pause-s", type=float, default=0.5, help="how long a question is looked at")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(measure(Path(folder), args.people, args.seconds, args.pause_s)))


def measure(folder: Path, num_people: int, seconds: float, pause_s: float) -> list[str]:
    """The lines of the table.

    Args:
        folder: empty.
        num_people: who answer at the same time.
        seconds: for which they do.
        pause_s: how long each looks at a question.
    """
    num_questions = int(num_people * seconds / max(pause_s, 0.02)) + 100
    with AnnotationStore.create(folder / FILE, Rules(min_seconds=0.0, min_checks=10**6), time.time()) as store:
        store.add_questions([_question(number) for number in range(num_questions)], time.time())
        store.add_gold([_gold(number) for number in range(200)], time.time())
        expires_at = time.time() + 3600
        tokens = [
            store.invite(f"Person {number}", expires_at=expires_at, now=time.time()).token
            for number in range(num_people)
        ]
        process = subprocess.Popen([sys.executable, "-c", SERVER, folder], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            base = process.stdout.readline().strip()
            people = [Person(base, pause_s) for _ in tokens]
            asyncio.run(_all(people, tokens, seconds))
        finally:
            process.terminate()
            process.wait()
        kept = {vote.vote_id for vote in store.votes()}
    told = [name for person in people for name in person.told]
    lines = [
        f"{num_people} people, {seconds:g} s, {pause_s:g} s at each question",
        "| request | number | median ms | p95 ms | p99 ms | longest ms |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("vote", "renew", "undo"):
        taken = np.array([ms for person in people for ms in person.taken[name]] or [np.nan])
        figures = [*np.percentile(taken, (50, 95, 99)), taken.max()]
        lines.append(f"| {name} | {len(taken)} | {' | '.join(f'{ms:.1f}' for ms in figures)} |")
    failures = sum(person.num_failures for person in people)
    lost, doubled = len(set(told) - kept), len(told) - len(set(told))
    return [
        *lines,
        f"votes said to be saved: {len(told)}; lost: {lost}; doubled: {doubled}; requests that failed: {failures}",
    ]


class Person:
    """Somebody who answers."""

    def __init__(self, base: str, pause_s: float) -> None:
        self.base, self.pause_s, self.csrf = base, pause_s, ""
        self.taken: defaultdict[str, list[float]] = defaultdict(list)  # ms
        self.told: list[str] = []
        self.num_failures = 0

    async def work(self, token: str, until: float) -> None:
        async with httpx.AsyncClient(base_url=self.base, headers={"Origin": self.base}, timeout=60) as self.http:
            await self.send("join", token=token)
            found = CSRF.search((await self.http.get("/")).text)
            assert found is not None
            self.csrf = found[1]
            asked = await self.send("next")
            while time.monotonic() < until and asked.get("state") == "question":
                await asyncio.sleep(self.pause_s)
                name = asked["question"]["assignment"]
                if len(self.told) % 10 == 3:
                    await self.send("renew", assignment=name)
                asked = await self.send(
                    "vote", assignment=name, choice="left", seconds=self.pause_s, comment="so it is"
                )
                if asked.get("saved"):
                    self.told.append(name)
                if len(self.told) % 20 == 19:
                    asked = await self.send("undo")

    async def send(self, name: str, **values: Any) -> Any:
        began = time.perf_counter()
        reply = await self.http.post(f"/api/{name}", json={"csrf": self.csrf, **values})
        self.taken[name].append(1000 * (time.perf_counter() - began))
        self.num_failures += reply.status_code != 200
        return reply.json()


async def _all(people: list[Person], tokens: list[str], seconds: float) -> None:
    until = time.monotonic() + seconds
    await asyncio.gather(*(person.work(token, until) for person, token in zip(people, tokens, strict=True)))


def _question(number: int) -> Question:
    return Question(
        purpose="reward", round_index=0, prompt_id=str(number), prompt=f"Film {number} was", first=0, second=1,
        first_text=f"{number} {ANSWER}", second_text=f"{ANSWER} {number}",
    )  # fmt: skip


def _gold(number: int) -> GoldQuestion:
    return GoldQuestion(prompt=f"Known {number}", first_text=ANSWER, second_text="no", answer="first")


if __name__ == "__main__":
    main()

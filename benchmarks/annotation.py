"""What the human judge's parts do: how fast the store is, whom the bar excludes, and how often the consensus is right.

    .venv/bin/python benchmarks/annotation.py [--questions 20000] [--annotators 50] [--runs 2000]

Prints three tables. Nothing but the first depends on the machine.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from online_dpo.annotation.dawid_skene import estimate
from online_dpo.annotation.quality import Standing, shortfall
from online_dpo.annotation.records import GoldQuestion, Question, Rules
from online_dpo.annotation.store import AnnotationStore

CHECKS = (15, 25, 50)
PEOPLE = (0.9, 0.85, 0.8, 0.75, 0.5)


def time_store(num_questions: int, num_annotators: int, num_votes: int) -> None:
    """Seconds of a question and a vote, when one person is far ahead and when all come in turn."""
    rules = Rules(min_checks=10**9, min_seconds=0.0)
    with (
        tempfile.TemporaryDirectory() as folder,
        AnnotationStore.create(Path(folder) / "a.sqlite", rules, 0.0) as store,
    ):
        texts = {"prompt": "A prompt. " * 20, "second_text": "An answer. " * 50}
        shared = {"purpose": "reward", "round_index": 0, "first": 0, "second": 1, **texts}
        questions = [Question(prompt_id=str(i), first_text=f"{i} " * 100, **shared) for i in range(num_questions)]  # type: ignore[arg-type]
        store.add_questions(questions, 0.0)
        store.add_gold([GoldQuestion(first_text=str(i), answer="first", **texts) for i in range(200)], 0.0)
        people = [store.invite(f"{i}", expires_at=1e9, now=0.0).annotator.annotator for i in range(num_annotators)]
        print(
            f"{f'ms, median and 99 %: {num_questions} questions, {num_annotators} annotators':59}   question      vote"
        )
        ways: dict[str, Callable[[int], str]] = {
            "one far ahead": lambda i: people[0],
            "all in turn": lambda i: people[i % len(people)],
        }
        for name, who in ways.items():
            given, voted = [], []
            for i in range(num_votes):
                start = time.perf_counter()
                held = store.next_assignment(who(i), float(i))
                given.append(time.perf_counter() - start)
                if held is None:
                    continue
                start = time.perf_counter()
                store.vote(held.assignment_id, who(i), ("left", "right", "tie")[i % 3], now=float(i))  # type: ignore[arg-type]
                voted.append(time.perf_counter() - start)
            print(f"{f'  {name}':59}{_quantiles(given):>12}{_quantiles(voted):>12}")


def tell_bar(runs: int) -> None:
    """How often somebody is excluded within so many gold questions, by how often they are right."""
    rules, draw = Rules(), random.Random(0)
    print(f"{f'excluded at a bar of {rules.min_accuracy:g}, within gold questions':59}", *(f"{n:>7}" for n in CHECKS))
    for right in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9):
        excluded = dict.fromkeys(CHECKS, 0)
        for _ in range(runs):
            num_right = 0
            for number in range(1, CHECKS[-1] + 1):
                num_right += draw.random() < right
                standing = Standing(
                    num_gold=number, num_gold_right=num_right, num_repeats=0, num_repeats_same=0, num_timed=number,
                    num_too_fast=0,
                )  # fmt: skip
                if shortfall(standing, rules):
                    for checks in CHECKS:
                        excluded[checks] += number <= checks
                    break
        print(f"{f'  right {right:.0%}':59}", *(f"{excluded[n] / runs:>7.1%}" for n in CHECKS))


def tell_consensus(runs: int) -> None:
    """How often the consensus of five people is right, who answer all questions."""
    print(f"{f'right, of people with {PEOPLE}':59}   majority   Dawid-Skene")
    for num_questions in (20, 100, 400):
        right = {"majority": 0, "dawid_skene": 0}
        repetitions = max(1, runs // num_questions)
        for seed in range(repetitions):
            draw = random.Random(seed)
            truth = {f"{i}": draw.choice(["first", "second"]) for i in range(num_questions)}
            other = {"first": "second", "second": "first"}
            rows = [
                (question, str(person), true if draw.random() < right_share else other[true])
                for question, true in truth.items()
                for person, right_share in enumerate(PEOPLE)
            ]
            votes = {q: [row[2] for row in rows if row[0] == q] for q in truth}
            right["majority"] += sum(max(set(votes[q]), key=votes[q].count) == t for q, t in truth.items())
            found = estimate(rows).outcomes
            right["dawid_skene"] += sum(max(found[q], key=found[q].__getitem__) == t for q, t in truth.items())
        total = repetitions * num_questions
        shares = [number / total for number in right.values()]
        print(f"{f'  {num_questions} questions':59}" + "".join(f"{share:>12.1%}" for share in shares))


def _quantiles(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2] * 1e3:.2f}, {ordered[int(len(ordered) * 0.99)] * 1e3:.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=20_000)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--votes", type=int, default=4_000)
    parser.add_argument("--runs", type=int, default=2_000)
    given = parser.parse_args()
    time_store(given.questions, given.annotators, given.votes)
    tell_bar(given.runs)
    tell_consensus(10 * given.runs)

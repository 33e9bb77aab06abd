"""A server, or a proxy before it, that gives an answer to another request: no label may be wrong."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from judge_servers import Answer, code_of, completion, longer_wins, material, serve, verdict
from llm_kit import ask, brief, question, section

from judges.llm.building import build_llm

QUESTIONS = [
    question(f"{i}" * (1 + i % 3), f"{i}" * (1 + (i + 1) % 3), name=str(i), prompt=str(i)) for i in range(10, 26)
]
TRUTH = [
    [(0, 1, float(len(a) > len(b))), (1, 0, float(len(b) > len(a)))] for a, b in (q.completions for q in QUESTIONS)
]
OTHER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


def judged(handler: Callable[[dict[str, Any], int], Answer], **fields: Any) -> tuple[int, int, dict[str, int]]:
    """Labels that are right, verdicts that failed, and the counts; a wrong label is an error."""
    with serve(handler) as server:
        judge = build_llm(section(server, **{"concurrency": 1, **fields}), "judge")
        said, counts = ask(judge, *QUESTIONS)
    right = failed = 0
    for verdicts, truth in zip(said, TRUTH, strict=True):
        for found, true in zip(brief(verdicts), truth, strict=True):
            assert found[:2] == true[:2]
            right += found == true
            failed += isinstance(found[2], str)
    assert right + failed == 32, "none is wrong"
    return right, failed, counts


@pytest.mark.parametrize("delay_s", [None, 0.0, 0.003, 0.02])
@pytest.mark.parametrize("surplus", [b"twice", OTHER, b"\r\n", b"garbage"])
def test_what_nobody_asked_for_is_no_answer_to_the_next_request(surplus: bytes, delay_s: float | None) -> None:
    """At once, it is seen before the connection is used again; later, by the code of the request."""

    def handler(body: dict[str, Any], before: int) -> Answer:
        return Answer(completion(longer_wins(body)), delay_s=0.005, surplus=surplus, surplus_delay_s=delay_s)

    right, _, counts = judged(handler, retries=9)
    assert right == 32
    if delay_s is None and surplus != b"\r\n":
        assert counts["num_judge_surplus_answers"] == counts["num_judge_requests"] == 32
    judged(handler, retries=0, concurrency=4)


def test_answers_swapped_between_connections_fail_and_are_counted() -> None:
    """Each request gets the answer to one that is under way or over, half of the time."""
    seen: list[dict[str, Any]] = []
    chance = random.Random(0)

    def handler(body: dict[str, Any], before: int) -> Answer:
        seen.append(body)
        other = chance.choice(seen) if chance.random() < 0.5 else body
        return Answer(completion(longer_wins(other)), delay_s=0.01)

    right, failed, counts = judged(handler, retries=0, concurrency=8)
    assert failed == counts["num_judge_misdirected_answers"] == counts["num_judge_requests_failed"] >= 8
    seen.clear()
    right, failed, counts = judged(handler, retries=9, concurrency=8)
    assert (right, failed) == (32, 0) and counts["num_judge_request_retries"] >= 8


def test_an_answer_that_comes_after_the_time_limit_is_not_the_next_one() -> None:
    """A proxy that keeps the late answer and gives it to whoever asks next."""
    late: list[bytes] = []

    def handler(body: dict[str, Any], before: int) -> Answer:
        own = completion(longer_wins(body))
        if late and completion(longer_wins(body)) != late[0]:
            return Answer(late.pop())
        if before == 0 and int(material(body)["prompt"]) % 4 == 0:
            late.append(own)
            return Answer(own, delay_s=0.6)
        return Answer(own)

    right, _, counts = judged(handler, retries=4, timeout_s=0.3)
    assert right == 32 and counts["num_judge_request_timeouts"] == counts["num_judge_misdirected_answers"] >= 2


def logprobs(letter: str) -> dict[str, Any]:
    top = [{"token": letter, "logprob": math.log(0.9)}]
    return {"logprobs": {"content": [{"token": letter, "top_logprobs": top}]}}


def test_a_letter_is_tied_to_its_request_too() -> None:
    seen: list[dict[str, Any]] = []

    def handler(body: dict[str, Any], before: int) -> Answer:
        seen.append(body)
        other = seen[-2] if len(seen) % 3 == 0 else body
        found = material(other)
        letter = "A" if len(found["answer-A"]) > len(found["answer-B"]) else "B"
        text = letter if len(seen) % 7 == 1 else f"{letter} {code_of(other)}"  # a model that forgets the code
        return Answer(completion(text, **logprobs(letter)))

    right, failed, counts = judged(handler, retries=0, verdict="token")
    assert failed == counts["num_judge_votes_unreadable"] and right == 32 - failed
    assert counts["num_judge_misdirected_answers"] > 5 and failed > counts["num_judge_misdirected_answers"]


def test_a_server_that_names_its_answer_by_the_request_needs_no_code_from_the_model() -> None:
    """vLLM and SGLang do. The model copies the code wrongly; the name of another request is refused all the same."""
    names: list[str] = []

    def handler(body: dict[str, Any], before: int) -> Answer:
        wrong = re.sub(r'"code": "[0-9a-f]{6}"', '"code": "000000"', longer_wins(body))
        found = json.loads(completion(wrong))
        names.append(running[0].headers[-1]["x-request-id"])
        found["id"] = f"chatcmpl-{names[-2] if len(names) % 4 == 0 else names[-1]}"
        return Answer(json.dumps(found).encode())

    running: list[Any] = []
    with serve(handler) as server:
        running.append(server)
        said, counts = ask(build_llm(section(server, concurrency=1, retries=0), "judge"), *QUESTIONS)
    found = [entry for verdicts in said for entry in brief(verdicts)]
    assert sum(entry[2] == "failed: the answer to another request" for entry in found) == 8
    assert sum(entry in truth for truth, verdicts in zip(TRUTH, said, strict=True) for entry in brief(verdicts)) == 24
    assert counts["num_judge_misdirected_answers"] == 8 and len(set(names)) == 32


def test_a_model_that_copies_the_code_wrongly_gives_no_verdict_and_is_asked_once() -> None:
    def handler(body: dict[str, Any], before: int) -> Answer:
        return Answer(completion(re.sub(r'"code": "[0-9a-f]{6}"', '"code": "000000"', verdict(body, "A"))))

    with serve(handler) as server:
        [verdicts], counts = ask(build_llm(section(server), "judge"), question("x", "y"))
    reason = "unreadable: a reply without the code of its request"
    assert brief(verdicts) == [(0, 1, reason), (1, 0, reason)]
    assert counts["num_judge_votes_unreadable"] == counts["num_judge_requests"] == 2

"""The `llm` judge against a server that misbehaves: no wrong label, no lost verdict, no endless wait.

`pytest tests/test_llm_faults.py -s -k table` prints what becomes of each fault.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from judge_servers import Answer, completion, longer_wins, material, serve, verdict
from llm_kit import ask, brief, question, section

from judges.llm.building import build_llm
from judges.llm.client import MAX_REPLY_BYTES, _retry_after
from judges.protocol import StopJudging
from judges.trial import try_judge
from online_dpo.errors import JudgeError

TIMEOUT_S = 1.0
LARGE = completion("A" * 10_000_000)
SLOW = ("hangs", "drips")
HTML = b"<html><body>502 Bad Gateway</body></html>"


def good(body: dict[str, Any]) -> bytes:
    return completion(longer_wins(body))


def wrong(body: dict[str, Any]) -> str:
    """The opposite of the truth, in words that a lenient reader would understand."""
    return "B" if '"A"' in longer_wins(body) else "A"


# Name -> (what the server does, the reason of the abstention, requests for one verdict).
FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Answer], str, int]] = {
    "429 with Retry-After": (
        lambda b: Answer(b'{"error": {"message": "slow down"}}', 429, {"retry-after": "1"}),
        "failed: status 429: slow down",
        3,
    ),
    "429 with a date in Retry-After": (
        lambda b: Answer(b"", 429, {"retry-after": formatdate(time.time() + 3600, usegmt=True)}),
        "failed: status 429",
        3,
    ),
    "500": (lambda b: Answer(good(b), 500), "failed: status 500", 3),
    "503, an HTML page": (lambda b: Answer(HTML, 503), "failed: status 503", 3),
    "400": (
        lambda b: Answer(b'{"error": {"message": "context too long"}}', 400),
        "failed: status 400: context too long",
        1,
    ),
    "hangs": (lambda b: Answer(good(b), delay_s=60.0), f"failed: no answer within {TIMEOUT_S:g} s", 3),
    "drips": (lambda b: Answer(good(b), drip_s=0.1), f"failed: no answer within {TIMEOUT_S:g} s", 3),
    "closes at once": (lambda b: Answer(cut_at_once=True), "failed: the connection broke (RemoteProtocolError)", 3),
    "cuts the answer": (
        lambda b: Answer(good(b), cut_after=90),
        "failed: the connection broke (RemoteProtocolError)",
        3,
    ),
    "half of the JSON": (lambda b: Answer(good(b)[:90]), "failed: a broken answer: it is not JSON", 3),
    "200, an HTML page": (lambda b: Answer(HTML), "failed: a broken answer: it is not JSON", 3),
    "JSON of another kind": (lambda b: Answer(b'["A"]'), "failed: a broken answer: it has no choices", 3),
    "empty choices": (lambda b: Answer(b'{"choices": []}'), "failed: a broken answer: it has no choices", 3),
    "no message": (lambda b: Answer(b'{"choices": [{}]}'), "failed: a broken answer: its choice has no message", 3),
    "10 MB": (
        lambda b: Answer(LARGE),
        f"failed: an answer of more than {MAX_REPLY_BYTES} bytes",
        3,
    ),
    "10 MB without end": (
        lambda b: Answer(b" " * 10_000_000, headers={"content-length": "99999999999"}),
        f"failed: an answer of more than {MAX_REPLY_BYTES} bytes",
        3,
    ),
    "compressed": (
        lambda b: Answer(good(b), headers={"content-encoding": "gzip"}),
        "failed: a broken answer: it is compressed, which nobody asked for",
        3,
    ),
    "an empty reply": (lambda b: Answer(completion("")), "unreadable: an empty reply", 1),
    "the verdict in German": (
        lambda b: Answer(completion(f"Antwort {wrong(b)} ist besser.")),
        "unreadable: a reply that is not JSON",
        1,
    ),
    "the verdict in German JSON": (
        lambda b: Answer(completion(verdict(b, f"Antwort {wrong(b)}"))),
        "unreadable: no known verdict",
        1,
    ),
    "prose around the JSON": (
        lambda b: Answer(completion(f"I think {verdict(b, wrong(b))}")),
        "unreadable: a reply that is not JSON",
        1,
    ),
    "another key": (
        lambda b: Answer(completion(f'{{"verdict": "{wrong(b)}"}}')),
        "unreadable: JSON of another form",
        1,
    ),
    "cut by max_tokens": (
        lambda b: Answer(completion(verdict(b, wrong(b)), finish="length")),
        "unreadable: a reply cut short by max_tokens",
        1,
    ),
    "a refusal": (
        lambda b: Answer(completion(verdict(b, wrong(b)), finish="content_filter")),
        "refused by the model",
        1,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_lasting_fault_costs_its_own_verdict_only(name: str, table: list[str]) -> None:
    """Three completions; whatever is asked about the first and second together goes wrong."""
    misbehave, reason, tries = FAULTS[name]

    def handler(body: dict[str, Any], _: int) -> Answer:
        found = material(body)
        poisoned = {found["answer-A"], found["answer-B"]} == {"one", "three"}
        return misbehave(body) if poisoned else Answer(good(body))

    started = time.monotonic()
    timeout_s = TIMEOUT_S if name in SLOW else 60.0
    with serve(handler) as server:
        judge = build_llm(section(server, timeout_s=timeout_s, retries=2, concurrency=2), "judge")
        [verdicts], counts = ask(judge, question("one", "three", "seventeen"))
    elapsed = time.monotonic() - started
    assert brief(verdicts) == [
        (0, 1, reason), (1, 0, reason), (0, 2, 0.0), (2, 0, 1.0), (1, 2, 0.0), (2, 1, 1.0),
    ]  # fmt: skip
    assert len(server.requests) == 4 + 2 * tries == counts["num_judge_requests"]
    assert counts.get("num_judge_requests_failed", 0) == 2 * reason.startswith("failed: ")
    table.append(f"| {name} | {tries} | {reason} | {elapsed:.1f} |")


@pytest.mark.parametrize("name", [name for name, (_, _, tries) in FAULTS.items() if tries > 1])
def test_a_passing_fault_leaves_no_trace(name: str) -> None:
    misbehave = FAULTS[name][0]
    with serve(lambda body, before: misbehave(body) if before < 2 else Answer(good(body))) as server:
        judge = build_llm(section(server, timeout_s=TIMEOUT_S if name in SLOW else 60.0, retries=2), "judge")
        [verdicts], counts = ask(judge, question("one", "three"))
    assert brief(verdicts) == [(0, 1, 0.0), (1, 0, 1.0)]
    assert (counts["num_judge_requests"], counts["num_judge_request_retries"]) == (6, 4)


def test_the_table_has_every_lasting_fault_once(table: list[str]) -> None:
    """Prints it as well; what it says was asserted above."""
    if not table:
        pytest.skip("the tests that fill the table were not run")
    assert [line.split(" | ")[0] for line in table] == [f"| {name}" for name in FAULTS]
    print("\n| the server | tries | what becomes of the verdict | seconds |\n|---|---|---|---|", *table, sep="\n")


@pytest.fixture(scope="module")
def table() -> list[str]:
    return []


def test_retry_after_is_honoured_by_all_requests_and_bounded() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    def handler(body: dict[str, Any], before: int) -> Answer:
        first = material(body)["answer-A"] == "one"
        return Answer(b"", 429, {"retry-after": "7"}) if before == 0 and first else Answer(good(body))

    for bound, waited in ((60.0, 7.0), (3.0, 3.0)):
        slept.clear()
        with serve(handler) as server:
            config = section(server, endpoint={"max_wait_s": bound}, concurrency=1)
            judge = build_llm(config, "judge", sleep=sleep)
            [verdicts], _ = ask(judge, question("one", "three"))
        assert brief(verdicts) == [(0, 1, 0.0), (1, 0, 1.0)]
        assert slept[0] == waited, "the request that was refused"
        assert len(slept) >= 2 and all(waited - 1 < s <= waited for s in slept[1:]), "and those beside it"
    assert _retry_after("1.5") == 1.5 and _retry_after("-3") is None and _retry_after("soon") is None
    assert _retry_after(formatdate(time.time() - 99)) == 0.0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(b'{"error": "no"}', 401), "refused the key"),
        (Answer(b"", 404), "knows no such model or path"),
        (Answer(b"", 402), "asks for payment"),
        (Answer(b'{"error": {"code": "insufficient_quota"}}', 429), "has no credit left"),
        (Answer(b"", 307, {"location": "http://127.0.0.1:1/v1"}), "redirects elsewhere"),
    ],
)
def test_what_no_retry_mends_stops_the_judge(answer: Answer, message: str) -> None:
    with serve(lambda body, before: answer) as server:
        judge = build_llm(section(server, concurrency=1), "judge")
        with pytest.raises(StopJudging, match=message):
            ask(judge, question("one", "three", "seventeen"))
        assert len(server.requests) == 1, "nothing else is asked"
        with pytest.raises(StopJudging, match=message):
            asyncio.run(judge.judge([question("x", "y")]))
        assert len(server.requests) == 1


def test_the_trial_refuses_an_endpoint_where_every_call_fails() -> None:
    refusal = Answer(b'{"error": {"message": "no response_format here"}}', 400)
    message = r"^judge was tried .* failed: status 400: no response_format here"
    with serve(lambda body, before: refusal) as server, pytest.raises(JudgeError, match=message):
        asyncio.run(try_judge(build_llm(section(server), "judge"), field="judge", chat=False))
    with pytest.raises(JudgeError, match="no connection"):  # nobody listens there any more
        asyncio.run(try_judge(build_llm(section(server), "judge"), field="judge", chat=True))


def test_requests_in_flight_are_bounded() -> None:
    with serve(lambda body, before: Answer(good(body), delay_s=0.02)) as server:
        judge = build_llm(section(server, concurrency=5), "judge")
        ask(judge, question(*[f"{'x' * n}" for n in range(1, 8)]))
    assert len(server.requests) == 42
    assert server.peak == 5

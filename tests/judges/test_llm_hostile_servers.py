"""The `llm` judge against servers that want to leak its key, fill its memory or hold it for ever."""

from __future__ import annotations

import base64
import gzip
import html
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from judge_servers import KEY, Answer, code_of, completion, longer_wins, material, serve, verdict
from llm_kit import ask, brief, question, section

from judges.llm.building import build_llm
from judges.llm.key import ApiKey
from judges.protocol import StopJudging

LONG_KEY = "sk-proj-Zq8vR2mX7tB4nL9wK1cY6hD3fJ5gP0sA"


def disguised(key: str) -> Iterator[str]:
    """The key as servers, proxies and logs write it."""
    yield key
    yield "".join(f"\\u{ord(c):04x}" for c in key)
    yield "".join(f"\\x{ord(c):02x}" for c in key)
    yield "".join(f"\\{ord(c):03o}" for c in key)
    yield "".join(f"%{ord(c):02X}" for c in key)
    yield quote("".join(f"%{ord(c):02x}" for c in key))
    yield "".join(f"&#{ord(c)};" for c in key)
    yield "".join(f"&#x{ord(c):x};" for c in key)
    yield html.escape("".join(f"&#{ord(c)};" for c in key))
    yield "".join(f"\\u{ord(c):04x}" for c in "".join(f"%{ord(c):02x}" for c in key))
    yield key[::-1]
    yield key.upper()
    yield key.lower()
    yield key.encode().hex()
    yield key.encode().hex(" ")
    for before in ("", "a", "ab"):
        yield base64.b64encode(f"{before}Bearer {key}".encode()).decode()
        yield base64.urlsafe_b64encode(f"{before}{key}".encode()).decode().rstrip("=")
    yield " ".join(key)
    yield "-".join(key[i : i + 4] for i in range(0, len(key), 4))
    yield key[:20] + "..." + key[20:]
    yield key[1:]
    yield key[5:16]


def pieces(key: str) -> set[str]:
    plain = "".join(c for c in key.lower() if c.isalnum())
    return {plain[i : i + 8] for i in range(len(plain) - 7)}


@pytest.mark.parametrize("key", [KEY, LONG_KEY])
def test_no_disguise_of_the_key_reaches_a_reason(
    key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each at several distances from where a message is cut."""
    monkeypatch.setenv("MY_KEY", key)
    shown = list(disguised(key))
    bodies = [
        json.dumps({"error": {"message": "x" * before + " " + form}}) for form in shown for before in (0, 130, 145)
    ]
    # JSON's own escapes: gone before anything is searched or cut.
    escaped = "".join(f"\\u{ord(c):04x}" for c in key)
    bodies += [f'{{"error": {{"message": "{"x" * n}{escaped}"}}}}' for n in (0, 111, 130, 149, 3990)]
    texts = []
    with serve(lambda body, _: Answer(bodies[int(material(body)["prompt"])].encode(), 400)) as server:
        judge = build_llm(section(server, endpoint={"api_key_env": "MY_KEY"}, both_orders=False), "judge")
        said, counts = ask(judge, *(question("x", "y", prompt=str(i), name=str(i)) for i in range(len(bodies))))
        texts += [str(verdicts[0].explanation) for verdicts in said]
    assert counts["num_judge_requests_failed"] == len(bodies)
    for body, text in zip(bodies, texts, strict=True):
        assert text.startswith("failed: status 400")
        for form in (text, text[::-1], html.unescape(text)):
            assert not any(piece in "".join(c for c in form.lower() if c.isalnum()) for piece in pieces(key)), body
        for form in shown:
            assert form not in text
    assert key not in caplog.text
    for plain in ("the key is wrong", "maximum context length is 4096 tokens; 5000 were given", "a%20b &amp; c \\n"):
        assert ApiKey(key).hide(plain) == plain


NONSENSE: list[Any] = [
    10**400, -1, True, "300", None, 1.5, float("nan"), float("inf"), [300], {}, 10**18, 0,
]  # fmt: skip


@pytest.mark.parametrize("number", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_in_usage_is_charged_at_the_worst_case_and_costs_no_verdict(number: Any) -> None:
    def handler(body: dict[str, Any], _: int) -> Answer:
        found = json.loads(completion(longer_wins(body)))
        found["usage"] = {"prompt_tokens": number, "completion_tokens": number}
        return Answer(json.dumps(found).encode())

    budget = {"tokens": 10_000_000, "cost": 100.0}
    with serve(handler) as server:
        fields = {"endpoint": {"prices": {"prompt": 1.0, "completion": 1.0}}, "budget": budget}
        [verdicts], counts = ask(build_llm(section(server, **fields), "judge"), question("one", "three"))
    assert brief(verdicts) == [(0, 1, 0.0), (1, 0, 1.0)]
    assert counts["num_judge_usage_unknown"] == 2 and counts["num_judge_completion_tokens"] == 128


@pytest.mark.parametrize("logprob", ["9" * 400, "-" + "9" * 400, "NaN", '"x"', "null", "true", "1e999", "9" * 5000])
def test_nonsense_in_log_probs_costs_its_own_verdict(logprob: str) -> None:
    def handler(body: dict[str, Any], _: int) -> Answer:
        value = logprob if material(body)["answer-A"] == "one" else "-0.1"
        found = f'{{"content": [{{"token": "A", "top_logprobs": [{{"token": "A", "logprob": {value}}}]}}]}}'
        reply = completion(f"A {code_of(body)}", logprobs="HERE").decode().replace('"HERE"', found)
        return Answer(reply.encode())

    with serve(handler) as server:
        config = section(server, verdict="token", retries=0)
        [verdicts], _ = ask(build_llm(config, "judge"), question("one", "three"))
    assert verdicts[0].reason is not None and verdicts[1].probability == 1.0


def bomb(size: int) -> bytes:
    return gzip.compress(b"\0" * size, 9)


def test_a_large_or_endless_answer_has_an_end() -> None:
    """In bytes of memory, and in seconds."""
    small = bomb(1 << 26)
    endless = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"10000\r\n" + b" " * 65536 + b"\r\n"
    answers = {
        "gzip": Answer(small, headers={"content-encoding": "gzip"}),
        "gzip in disguise": Answer(small, headers={"content-encoding": "identity, gzip"}),
        "transfer gzip": Answer(small, headers={"transfer-encoding": "gzip, chunked"}),
        "deflate": Answer(small, headers={"content-encoding": "deflate"}),
        "chunks": Answer((b"10000\r\n" + b" " * 65536 + b"\r\n") * 400, head=endless),
        "headers of 1 MB": Answer(b"{}", headers={"x": "y" * 1_000_000}),
        "many headers": Answer(b"{}", headers={f"x{i}": "y" * 50 for i in range(20_000)}),
        "no end of 100s": Answer(b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000, head=b"HTTP/1.1 100 Continue\r\n\r\n"),
        "101": Answer(b"", 101, {"upgrade": "websocket", "connection": "upgrade"}),
        "204": Answer(b"", 204),
        "a negative length": Answer(b"{}", headers={"content-length": "-1"}),
        "two lengths": Answer(b"{}", head=b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 9\r\n\r\n"),
        "no HTTP": Answer(b"SSH-2.0-x\r\n" * 10, head=b""),
        "no status": Answer(b"{}", head=b"HTTP/1.1 OK\r\n\r\n"),
        "year": Answer(b"", 429, {"retry-after": str(365 * 86400)}),
        "years": Answer(b"", 429, {"retry-after": "9" * 400}),
        "negative": Answer(b"", 503, {"retry-after": "-5"}),
        "no date": Answer(b"", 503, {"retry-after": "Fri, 99 Foo 99999 99:99:99 GMT"}),
    }
    names = list(answers)

    def handler(body: dict[str, Any], _: int) -> Answer:
        return answers[names[int(material(body)["prompt"])]]

    started = time.monotonic()
    with serve(handler) as server:
        config = section(server, retries=1, timeout_s=0.7, both_orders=False, concurrency=1)
        judge = build_llm(config, "judge")
        said, counts = ask(judge, *(question("x", "y", prompt=str(i), name=str(i)) for i in range(len(names))))
    for name, [found] in zip(names, said, strict=True):
        assert found.failed, name
    assert counts["num_judge_requests_failed"] == len(names)
    assert time.monotonic() - started < 60


def test_an_old_server_and_a_hesitating_one_are_understood() -> None:
    heads = [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"]

    def handler(body: dict[str, Any], before: int) -> Answer:
        text = completion(longer_wins(body))
        return Answer(text, head=heads[len(material(body)["answer-A"]) % 2], cut_after=len(text))

    with serve(handler) as server:
        [verdicts], _ = ask(build_llm(section(server, retries=0), "judge"), question("one", "four"))
    assert brief(verdicts) == [(0, 1, 0.0), (1, 0, 1.0)]


def test_a_redirect_takes_the_key_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    for status in (301, 302, 303, 307, 308):
        with (
            serve(lambda body, _: Answer(completion(longer_wins(body)))) as elsewhere,
            serve(lambda body, _, to=elsewhere, s=status: Answer(b"", s, {"location": to.base_url})) as server,
            pytest.raises(StopJudging, match="redirects elsewhere"),
        ):
            ask(build_llm(section(server, endpoint={"api_key_env": "MY_KEY"}), "judge"), question("one", "three"))
        assert not elsewhere.requests and not elsewhere.headers


def test_a_server_that_cuts_the_question_short_is_noticed() -> None:
    """It counts the tokens of what is left. Would catch labels from a model that never saw one of the answers."""
    texts = ("first " * 600, "second " * 600)

    def handler(body: dict[str, Any], _: int) -> Answer:
        words = len(material(body)["answer-A"].split()) + len(material(body)["answer-B"].split())
        return Answer(completion(verdict(body, "A"), usage=(min(words + 250, 512), 5)))

    with serve(handler) as server:
        judge = build_llm(section(server), "judge")
        [verdicts], counts = ask(judge, question(*texts))
        [short], _ = ask(build_llm(section(server, on_conflict="average"), "judge"), question("a b", "b c"))
    assert counts["num_judge_prompts_cut"] == 2 == counts["num_judge_charged_calls"]
    assert all(str(v.explanation).startswith("failed: the server counted 512 tokens in a question") for v in verdicts)
    assert [v.probability for v in short] == [1.0, 1.0]


def test_what_is_too_long_is_not_asked() -> None:
    with serve(lambda body, _: Answer(completion(longer_wins(body)))) as server:
        [verdicts], counts = ask(build_llm(section(server, max_chars=1000), "judge"), question("x" * 990, "y", "z"))
    reason = "too long: the texts have more characters than max_chars 1000"
    assert brief(verdicts)[:4] == [(0, 1, reason), (1, 0, reason), (0, 2, reason), (2, 0, reason)]
    assert [v.probability for v in verdicts[4:]] == [0.5, 0.5]
    assert counts["num_judge_too_long"] == 4 and len(server.requests) == 2

"""Servers on loopback that answer as an OpenAI-compatible endpoint would, or that misbehave as a script says."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

KEY = "sk-do-not-show-me-4711"


def completion(text: str, *, finish: str = "stop", usage: tuple[int, int] | None = (300, 5), **choice: Any) -> bytes:
    """The JSON of a chat completion."""
    body: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, **choice},
        ],
    }
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return json.dumps(body).encode()


@dataclass
class Answer:
    """What a server does with one request."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drip_s: float = 0.0  # between two bytes of the body
    cut_after: int | None = None  # bytes of the body, after which the connection is closed
    cut_at_once: bool = False  # closed without a word
    surplus: bytes = b""  # sent after the answer, b"twice" stands for the answer itself
    surplus_delay_s: float | None = None  # None: in one piece with the answer
    head: bytes | None = None  # in the place of status line and headers


@dataclass
class Server:
    """A server that is running, and what it was asked."""

    base_url: str
    requests: list[dict[str, Any]] = field(default_factory=list)  # bodies
    headers: list[dict[str, str]] = field(default_factory=list)
    peak: int = 0  # requests at once


Handler = Callable[[dict[str, Any], int], Answer]
"""A request's body, and how often this body was asked before -> the answer."""


@contextmanager
def serve(handler: Handler) -> Iterator[Server]:
    """Run a server in a thread of its own until the block ends. Plain sockets: it must be able to break HTTP."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    server = Server("")
    seen: dict[str, int] = {}
    running = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal running
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
                raw = await reader.readexactly(int(headers["content-length"]))
                body = json.loads(raw)
                server.requests.append(body)
                server.headers.append(headers)
                before = seen.get(raw.decode(), 0)
                seen[raw.decode()] = before + 1
                running += 1
                server.peak = max(server.peak, running)
                answer = handler(body, before)
                if answer.delay_s:
                    await asyncio.sleep(answer.delay_s)
                running -= 1
                if answer.cut_at_once:
                    break
                fields = {"content-type": "application/json", "content-length": str(len(answer.body)), **answer.headers}
                head = f"HTTP/1.1 {answer.status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
                start = head.encode() + b"\r\n" if answer.head is None else answer.head
                surplus = start + answer.body if answer.surplus == b"twice" else answer.surplus
                if answer.surplus and answer.surplus_delay_s is None:
                    writer.write(start + answer.body + surplus)
                    await writer.drain()
                    continue
                writer.write(start)
                if answer.drip_s:
                    for byte in answer.body:
                        writer.write(bytes([byte]))
                        await asyncio.sleep(answer.drip_s)
                else:
                    writer.write(answer.body[: answer.cut_after])
                await writer.drain()
                if answer.cut_after is not None:
                    break
                if answer.surplus_delay_s is not None:
                    asyncio.get_running_loop().call_later(answer.surplus_delay_s, writer.write, surplus)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def main() -> None:
        listening = await asyncio.start_server(talk, "127.0.0.1", 0, limit=1 << 26)
        server.base_url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        ready.set()

    async def end() -> None:
        talks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)

    loop.create_task(main())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def material(body: dict[str, Any]) -> dict[str, str]:
    """The quoted texts of a request, by the name of their tag: prompt, answer, answer-A, answer-B."""
    text = body["messages"][-1]["content"]
    return dict(re.findall(r"<([\w-]+)-[0-9a-f]{12}>\n(.*?)\n</\1-[0-9a-f]{12}>", text, re.S))


def verdict(body: dict[str, Any], value: Any) -> str:
    """A reply of the form that the request asks for."""
    asked = body["messages"][0]["content"]
    key, code = re.search(r"verdict_[0-9a-f]{6}", asked), code_of(body)
    assert key is not None
    return json.dumps({"code": code, key.group(): value})


def code_of(body: dict[str, Any]) -> str:
    """The code that the reply to a request is to repeat."""
    code = re.search(r'"code": "([0-9a-f]{6})"|and the code ([0-9a-f]{6})', body["messages"][0]["content"])
    assert code is not None
    return code.group(1) or code.group(2)


def longer_wins(body: dict[str, Any]) -> str:
    found = material(body)
    a, b = len(found["answer-A"]), len(found["answer-B"])
    return verdict(body, "A" if a > b else "B" if b > a else "tie")

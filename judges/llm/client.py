"""A chat model behind an OpenAI-compatible endpoint.

Every wait has an end: a request may take `timeout_s` from its first byte to its last, it is made at most `1 + retries`
times, and the wait between two tries is at most `max_wait_s`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from judges.calling import Sleep
from judges.chat import CallFailed, ChatReply, ChatRequest
from judges.llm.budget import BudgetAccount, Spend
from judges.llm.http_replies import Malformed, read_reply
from judges.llm.key import ApiKey
from judges.protocol import StopJudging, count
from online_dpo.config.judges.llm import Endpoint

MAX_REPLY_BYTES = 1 << 20
"""The largest HTTP answer that is read; a verdict with 20 log-probs has a few thousand bytes."""

TEMPLATE_TOKENS = 64
"""At most so many tokens are added to a request by a chat template; each byte of its messages is at most one more."""

RETRIED = {408, 409, 425, 429}
"""HTTP statuses under 500 after which the request is made again; those from 500 on always are."""

FATAL = {401: "refused the key", 402: "asks for payment", 403: "refused the key", 404: "knows no such model or path"}


class _Transient(Exception):
    """A request failed in a way that another try may not."""

    def __init__(self, reason: str, *, wait_s: float | None = None, charged: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s  # what the server asks for
        self.charged = charged  # whether the server may have done, and bill, the work


class _Permanent(Exception):
    """A request failed in a way that another try would repeat; other requests may go through."""


class EndpointChat:
    """`Chat` over HTTP. One event loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        field: str,
        key: ApiKey,
        account: BudgetAccount,
        concurrency: int,
        timeout_s: float,
        retries: int,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Nothing is connected yet.

        Args:
            endpoint: where, and which model.
            field: its section, for messages.
            key: read already.
            account: of the budget.
            concurrency: requests in flight.
            timeout_s: of one try.
            retries: after a try that failed.
            sleep: waits between tries, in seconds.
        """
        self._endpoint, self._field, self._key, self._account = endpoint, field, key, account
        self._slots = asyncio.Semaphore(concurrency)
        self._timeout_s, self._sleep = timeout_s, sleep
        self._resume_at = 0.0  # on time.monotonic(): a server that said Retry-After is left alone by all requests
        self._fatal: str | None = None
        # Each has one connection. One client of many looks at all of its connections several times for each request,
        # which at 64 of them took four fifths of this process's time.
        self._idle: list[httpx.AsyncClient] = []
        self._tls = httpx.create_ssl_context()
        backoff = wait_random_exponential(multiplier=0.5, max=endpoint.max_wait_s)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            asked = error.wait_s if isinstance(error, _Transient) and error.wait_s is not None else 0.0
            return min(max(asked, backoff(state)), endpoint.max_wait_s)

        self._wait, self._stop = wait, stop_after_attempt(1 + retries)
        # A line for each request, and at DEBUG the headers of answers, in which a server may send the key back.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)

    async def ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply | CallFailed]:
        """One reply for each request, in order.

        Raises:
            StopJudging: the budget is not enough for all of them, or the endpoint cannot be used at all.
        """
        if self._fatal is not None:
            raise StopJudging(self._fatal)
        worst = [_worst(request) for request in requests]
        await self._account.reserve(worst)
        replies = await asyncio.gather(*(self._ask_one(r, w) for r, w in zip(requests, worst, strict=True)))
        if self._fatal is not None:
            raise StopJudging(self._fatal)
        return list(replies)

    async def _ask_one(self, request: ChatRequest, worst: Spend) -> ChatReply | CallFailed:
        """Make one request, and settle what was reserved for it, whatever happens."""
        spent = Spend()
        is_reserved = True

        async def attempt() -> ChatReply:
            nonlocal spent, is_reserved
            if not is_reserved:
                is_reserved = await self._account.reserve_again(worst)
                if not is_reserved:
                    raise _Permanent("the budget leaves nothing for another try")
            try:
                reply, spent = await self._try(request, worst)
            except _Transient as error:
                if error.charged:
                    await self._account.settle(worst, worst)
                    is_reserved = False
                raise
            return reply

        retrying = AsyncRetrying(
            sleep=self._sleep,
            stop=self._stop,
            wait=self._wait,
            retry=retry_if_exception_type(_Transient),
            before_sleep=lambda _: count("num_judge_request_retries"),
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except (_Transient, _Permanent) as error:
            count("num_judge_requests_failed")
            return CallFailed(self._clean(str(error)))
        finally:
            if is_reserved:
                await self._account.settle(worst, spent)

    async def _try(self, request: ChatRequest, worst: Spend) -> tuple[ChatReply, Spend]:
        async with self._slots:
            if (pause := self._resume_at - time.monotonic()) > 0.0:
                await self._sleep(min(pause, self._endpoint.max_wait_s))
            if self._fatal is not None:
                raise _Permanent(self._fatal)
            count("num_judge_requests")
            limit = asyncio.timeout(self._timeout_s)
            try:
                async with limit:
                    status, headers, body = await self._post(self._body(request))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                raise _Transient(f"no connection ({type(error).__name__})") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise _Transient(f"the connection broke ({type(error).__name__})", charged=True) from None
            except TimeoutError:
                if not limit.expired():
                    raise
                count("num_judge_request_timeouts")
                raise _Transient(f"no answer within {self._timeout_s:g} s", charged=True) from None
        if status != 200:
            self._refuse(status, headers, body)
        try:
            reply, usage = read_reply(body)
        except Malformed as error:
            raise _Transient(f"a broken answer: {error}", charged=True) from None
        prompt, completion = usage if usage is not None else (worst.prompt, worst.completion)
        return reply, Spend(1, prompt, completion)

    async def _post(self, body: bytes) -> tuple[int, httpx.Headers, str]:
        """Status, headers, and at most MAX_REPLY_BYTES of the body, without the key should it be in there."""
        client = self._idle.pop() if self._idle else self._connect()
        try:
            return await self._exchange(client, body)
        finally:
            self._idle.append(client)

    def _connect(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            timeout=None,  # ours is of the whole request; httpx's starts anew with every byte
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            follow_redirects=False,  # to a place that the config does not name
            verify=self._tls,
        )

    async def _exchange(self, client: httpx.AsyncClient, body: bytes) -> tuple[int, httpx.Headers, str]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **self._key.headers}
        url = f"{self._endpoint.base_url}/chat/completions"
        chunks, size = [], 0
        async with client.stream("POST", url, content=body, headers=headers) as response:
            if response.headers.get("content-encoding", "identity") != "identity":  # a small bomb may be in it
                raise _Transient("a broken answer: it is compressed, which nobody asked for", charged=True)
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > MAX_REPLY_BYTES:
                    raise _Transient(f"an answer of more than {MAX_REPLY_BYTES} bytes", charged=True)
                chunks.append(chunk)
        return response.status_code, response.headers, self._key.hide(b"".join(chunks).decode(errors="replace"))

    def _body(self, request: ChatRequest) -> bytes:
        endpoint = self._endpoint
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": list(request.messages),
            "temperature": request.temperature,
            **endpoint.extra_body,
        }
        if "max_completion_tokens" not in body:  # newer models of some providers know only this name
            body.setdefault("max_tokens", request.max_tokens)
        if request.seed is not None:
            body["seed"] = request.seed
        if request.num_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.num_logprobs}
        if request.schema is not None and endpoint.response_format == "json_schema":
            schema = {"name": "verdict", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.schema is not None and endpoint.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return json.dumps(body).encode()

    def _refuse(self, status: int, headers: httpx.Headers, body: str) -> NoReturn:
        """Raise what a status other than 200 means."""
        said = _message(body)
        reason = f"status {status}{f': {said}' if said else ''}"
        if status == 429 and "insufficient_quota" in body:
            self._close("has no credit left", reason)
        if status in FATAL:
            self._close(FATAL[status], reason)
        if 300 <= status < 400:
            self._close("redirects elsewhere, which is not followed", reason)
        if status in RETRIED or status >= 500:
            wait_s = _retry_after(headers.get("retry-after"))
            if wait_s is not None:
                until = time.monotonic() + min(wait_s, self._endpoint.max_wait_s)
                self._resume_at = max(self._resume_at, until)
            raise _Transient(reason, wait_s=wait_s)
        raise _Permanent(reason)

    def _close(self, what: str, reason: str) -> NoReturn:
        message = f"{self._field}.base_url {self._endpoint.base_url}: model {self._endpoint.model}: {what} ({reason})"
        self._fatal = self._clean(f"{message}; what was paid for is kept: fix this and resume")
        raise _Permanent(self._fatal)

    def _clean(self, text: str) -> str:
        return self._key.hide(" ".join(text.split()))[:400]


def _worst(request: ChatRequest) -> Spend:
    """No tokenizer makes more tokens than there are bytes; the template adds a few."""
    num_bytes = sum(len(part.encode(errors="replace")) for m in request.messages for part in m.values())
    return Spend(1, num_bytes + TEMPLATE_TOKENS, request.max_tokens)


def _message(body: str) -> str:
    """What a server says about an error, shortened."""
    try:
        found = json.loads(body)
        error = found.get("error", found)
        text = error.get("message", "") if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        text = ""
    return " ".join(str(text).split())[:150]


def _retry_after(value: str | None) -> float | None:
    """Seconds, from seconds or a date; None where there is none or it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().replace(".", "", 1).isdigit() else None
        if seconds is None:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, seconds)

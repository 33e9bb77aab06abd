"""A chat model behind an OpenAI-compatible endpoint.

Every wait has an end: a request may take `timeout_s` from its first byte to its last, it is made at most `1 + retries`
times, and the wait between two tries is at most `max_wait_s`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from judges.calling import Sleep
from judges.chat import CallFailed, ChatReply, ChatRequest
from judges.llm.budget import BudgetAccount, Spend
from judges.llm.connections import Connections
from judges.llm.http_replies import Malformed, Usage, read_reply
from judges.llm.key import ApiKey
from judges.protocol import StopJudging, count
from online_dpo.config.judges.llm import Endpoint

MAX_REPLY_BYTES = 1 << 20
"""The largest HTTP answer that is read; a verdict with 20 log-probs has a few thousand bytes."""

TEMPLATE_TOKENS = 64
"""At most so many tokens are added to a request by a chat template; each byte of its messages is at most one more."""

IMPLAUSIBLE = 100
"""A server that counts so many times the tokens that a request can have at most is not believed."""

MAX_MESSAGE = 4000
"""So many characters of an error's text are searched for the key; parts of a key are hidden too."""

MAX_CODES = 10_000
"""So many requests are remembered, to tell an answer to one of them from a code that a model has copied wrongly."""

CODES = re.compile(r"(?<![0-9a-f])[0-9a-f]{6}(?![0-9a-f])")
OUR_IDS = re.compile(r"judge-[0-9a-f]{32}")
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]{1,8}|[^\W\d_]+")

RETRIED = {408, 409, 425, 429}
"""HTTP statuses under 500 after which the request is made again; those from 500 on always are."""

FATAL = {401: "refused the key", 402: "asks for payment", 403: "refused the key", 404: "knows no such model or path"}


NOTHING = Spend()


class _Transient(Exception):
    """A request failed in a way that another try may not."""

    def __init__(self, reason: str, *, wait_s: float | None = None, charged: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s  # what the server asks for
        self.charged = charged  # whether the server may have done, and bill, the work


class _Permanent(Exception):
    """A request failed in a way that another try would repeat; other requests may go through."""

    def __init__(self, reason: str, *, spent: Spend = NOTHING) -> None:
        super().__init__(reason)
        self.spent = spent


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
        self._connections = Connections()
        self._codes: dict[str, None] = {}  # of the latest requests, oldest first
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
        worst = [_worst(request, self._endpoint.extra_body) for request in requests]
        await self._account.reserve(worst)
        replies = await asyncio.gather(*(self._ask_one(r, w) for r, w in zip(requests, worst, strict=True)))
        if self._fatal is not None:
            raise StopJudging(self._fatal)
        return list(replies)

    async def _ask_one(self, request: ChatRequest, worst: Spend) -> ChatReply | CallFailed:
        """Make one request, and settle what was reserved for it, whatever happens."""
        spent = NOTHING
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
            except _Permanent as error:
                spent = error.spent
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
                    return await self._exchange(request, worst)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                raise _Transient(f"no connection ({type(error).__name__})") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise _Transient(f"the connection broke ({type(error).__name__})", charged=True) from None
            except TimeoutError:
                if not limit.expired():
                    raise
                count("num_judge_request_timeouts")
                raise _Transient(f"no answer within {self._timeout_s:g} s", charged=True) from None

    async def _exchange(self, request: ChatRequest, worst: Spend) -> tuple[ChatReply, Spend]:
        """Make one request on one connection, and read the answer to it."""
        url = f"{self._endpoint.base_url}/chat/completions"
        request_id = f"judge-{uuid.uuid4().hex}"  # vLLM and SGLang name their answer by it
        headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "X-Request-Id": request_id,
            **self._key.headers,
        }
        if request.code is not None:
            self._codes[request.code] = None
            if len(self._codes) > MAX_CODES:
                del self._codes[next(iter(self._codes))]
        async with self._connections.lend(url) as client:
            async with client.stream("POST", url, content=self._body(request), headers=headers) as response:
                body = await _read_body(response)
            if response.status_code != 200:
                self._refuse(response.status_code, response.headers, body)
            reply, usage = self._read(request, request_id, body)
        if usage is None or any(said > IMPLAUSIBLE * most for said, most in zip(usage, worst.tokens, strict=True)):
            count("num_judge_usage_unknown")
            usage = worst.tokens
        elif usage[0] < (fewest := fewest_tokens(request)):
            count("num_judge_prompts_cut")
            raise _Permanent(
                f"the server counted {usage[0]} tokens in a question of at least {fewest}: it has cut the question "
                f"short; give it a longer context or lower max_chars",
                spent=Spend(1, *usage),
            )
        return reply, Spend(1, *usage)

    def _read(self, request: ChatRequest, request_id: str, body: str) -> tuple[ChatReply, Usage | None]:
        """The reply, if it is no reply to another request of ours."""
        try:
            answer = read_reply(body)
        except Malformed as error:
            raise _Transient(f"a broken answer: {error}", charged=True) from None
        reply = replace(answer.reply, is_tied=request_id in answer.name)
        if reply.is_tied:
            return reply, answer.usage
        others = bool(OUR_IDS.search(answer.name))
        if request.code is not None:
            others = others or any(code in self._codes for code in CODES.findall(reply.text))
            others = others and request.code not in reply.text
        if others:
            count("num_judge_misdirected_answers")
            raise _Transient("the answer to another request", charged=True)
        return reply, answer.usage

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
        said = self._key.hide(_message(body)[:MAX_MESSAGE])[:150]
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


def _worst(request: ChatRequest, extra_body: Mapping[str, Any]) -> Spend:
    """No tokenizer makes more tokens than there are bytes; the template adds a few."""
    num_bytes = sum(len(part.encode(errors="replace")) for m in request.messages for part in m.values())
    return Spend(1, num_bytes + TEMPLATE_TOKENS, most_reply_tokens(request, extra_body))


def most_reply_tokens(request: ChatRequest, extra_body: Mapping[str, Any]) -> int:
    """The longest reply that a server may give, in tokens; fields of the endpoint's own may allow more than ours."""
    limits = [extra_body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    return max([request.max_tokens, *(limit for limit in limits if isinstance(limit, int))])


def fewest_tokens(request: ChatRequest) -> int:
    """A number of tokens that no tokenizer stays below: half the number of words, or of eight Chinese characters.

    Tokenizers split a text at its spaces; half, for those few whose tokens span several words.
    """
    return sum(len(WORDS.findall(message["content"])) for message in request.messages) // 2


async def _read_body(response: httpx.Response) -> str:
    """At most MAX_REPLY_BYTES of it."""
    if response.headers.get("content-encoding", "identity") != "identity":  # a small bomb may be in it
        raise _Transient("a broken answer: it is compressed, which nobody asked for", charged=True)
    chunks, size = [], 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > MAX_REPLY_BYTES:
            raise _Transient(f"an answer of more than {MAX_REPLY_BYTES} bytes", charged=True)
        chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace")


def _message(body: str) -> str:
    """What a server says about an error. Not shortened: a key that is cut in two could not be found any more."""
    try:
        found = json.loads(body)
        error = found.get("error", found)
        text = error.get("message", "") if isinstance(error, dict) else error
        return " ".join(str(text).split())
    except (ValueError, AttributeError, RecursionError):
        return ""


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

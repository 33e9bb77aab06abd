"""Writers that ask a chat model: what they ask, and what they make of the replies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from judge_servers import Answer, completion, serve
from pydantic import TypeAdapter

from actors.writer_host import WriterHost
from judges.chat import CallFailed, ChatReply, ChatRequest
from judges.writers.writer import CONTINUE, TextWriter, WriterSpec
from online_dpo.config.candidates.section import CandidateSection
from online_dpo.errors import JudgeError
from online_dpo.types import Completion, Prompt, Shard
from online_dpo.written import Written

PLAIN = [Prompt(prompt_id=name, token_ids=(1,), text=f"text {name}") for name in "abc"]
CHATS = [
    Prompt(prompt_id=name, token_ids=(1,), messages=({"role": "user", "content": f"ask {name}"},)) for name in "abc"
]
ENGINE = {"engine": {"path": "m"}}


class Echo:
    """Says what it was asked last; remembers every call."""

    def __init__(self, *odd: tuple[str, Any]) -> None:
        self.calls: list[list[ChatRequest]] = []
        self.odd = dict(odd)  # last message -> reply, or an error that is raised

    async def ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply | CallFailed]:
        self.calls.append(list(requests))
        replies: list[Any] = [self.odd.get(r.messages[-1]["content"], self.echo(r)) for r in requests]
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def echo(self, request: ChatRequest) -> ChatReply:
        return ChatReply(text=f"<{request.messages[-1]['content']}>")


def spec_of(**fields: Any) -> WriterSpec:
    section: Any = TypeAdapter(CandidateSection).validate_python({"type": "teacher", **fields})
    return WriterSpec(section=section, field="candidates.0", max_tokens=7, seed=1)


def write(chat: Echo, prompts: Sequence[Prompt], samples: Sequence[Completion] = (), **fields: Any) -> Written:
    return asyncio.run(TextWriter(spec_of(**fields), chat).write(prompts, samples, 0))


def sample(name: str, index: int, text: str) -> Completion:
    return Completion(
        prompt_id=name, sample_index=index, token_ids=(5,), text=text,
        finish_reason="stop", sampler_logps=(-1.0,), policy_version=0, seed=0,
    )  # fmt: skip


def test_a_teacher_is_asked_in_one_call_of_an_engine_and_told_to_continue_plain_text() -> None:
    chat = Echo()
    written = write(chat, PLAIN, **ENGINE)
    [requests] = chat.calls
    assert [r.messages for r in requests] == [
        ({"role": "system", "content": CONTINUE}, {"role": "user", "content": f"text {name}"}) for name in "abc"
    ]
    assert {(r.max_tokens, r.temperature, r.seed) for r in requests} == {(7, 0.0, None)}
    assert [(t.prompt_id, t.number, t.text, t.outcome) for t in written.texts] == [
        (name, 0, f"<text {name}>", "kept") for name in "abc"
    ]
    write(chat, CHATS[:1], system="Be brief.", **ENGINE)
    assert chat.calls[-1][0].messages[0] == {"role": "system", "content": "Be brief."}
    own = Prompt(
        prompt_id="a", token_ids=(1,), messages=({"role": "system", "content": "s"}, *(CHATS[0].messages or ()))
    )
    write(chat, [own], system="Be brief.", **ENGINE)
    assert chat.calls[-1][0].messages == own.messages, "a prompt's own system message stays"


def test_seeds_tell_answers_apart_and_depend_on_nothing_else_of_the_shard() -> None:
    chat = Echo()
    fields = {"num_samples": 2, "temperature": 0.5, **ENGINE}
    write(chat, PLAIN, **fields)
    write(chat, PLAIN[1:2], **fields)
    seeds = [request.seed for request in chat.calls[0]]
    assert len(set(seeds)) == 6 and all(0 <= (seed or 0) < 2**31 for seed in seeds)
    assert [request.seed for request in chat.calls[1]] == seeds[2:4]


def test_a_revision_follows_its_critique_and_a_silence_is_no_answer() -> None:
    """Of four prompts one has no text to revise, one gets no critique, one no revision."""
    prompts = [*CHATS, Prompt(prompt_id="d", token_ids=(1,), text="text d")]
    said = [("a", 0, "one"), ("a", 1, "two"), ("b", 0, " "), ("c", 0, "three"), ("d", 0, "four")]
    samples = [sample(*each) for each in said]
    asked = {"principles": ["Is it true?"], "revision": "Again."}
    chat = Echo()
    written = write(chat, prompts, samples, type="revise", **asked, **ENGINE)
    critiques, revisions = chat.calls
    assert [[m["content"] for m in r.messages] for r in critiques] == [
        ["ask a", "one", "Is it true?"], ["ask c", "three", "Is it true?"], ["text d", "four", "Is it true?"],
    ]  # fmt: skip
    assert [m["content"] for m in revisions[0].messages] == ["ask a", "one", "Is it true?", "<Is it true?>", "Again."]
    assert [m["role"] for m in revisions[0].messages] == ["user", "assistant"] * 2 + ["user"]
    found = {t.prompt_id: (t.outcome, t.text) for t in written.texts}
    assert found == {**dict.fromkeys("acd", ("kept", "<Again.>")), "b": ("no_sample", "")}
    deaf = Echo(("Is it true?", CallFailed("no connection")))
    failed = write(deaf, CHATS[:1], samples, type="revise", **asked, **ENGINE)
    assert [(t.outcome, t.detail) for t in failed.texts] == [("failed", "no connection")]


def test_an_engine_that_raises_fails_and_ends_nothing() -> None:
    written = write(Echo(("text a", RuntimeError("out of\nmemory"))), PLAIN, **ENGINE)
    assert {(t.outcome, t.detail) for t in written.texts} == {("failed", "RuntimeError: out of")}


def test_each_answer_gets_one_principle_of_those_that_are_written() -> None:
    chat = Echo()
    prompts = [Prompt(prompt_id=f"p{i}", token_ids=(1,), text=f"t{i}") for i in range(40)]
    samples = [sample(prompt.prompt_id, 0, "x") for prompt in prompts]
    write(chat, prompts, samples, type="revise", principles=["P", "Q"], **ENGINE)
    drawn = [request.messages[-1]["content"] for request in chat.calls[0]]
    assert 10 < drawn.count("P") < 30 and set(drawn) == {"P", "Q"}
    write(chat, prompts[5:6], samples[5:6], type="revise", principles=["P", "Q"], **ENGINE)
    assert chat.calls[2][0].messages[-1]["content"] == drawn[5], "the same in any shard, and after a resume"


def test_the_answer_to_another_request_is_not_taken() -> None:
    """A proxy that mixes up answers, of a server that names them by their request."""
    ids: list[str] = []

    def handler(body: dict[str, Any], before: int) -> Answer:
        ids.append(server.headers[-1]["x-request-id"])
        name = ids[0] if len(ids) == 2 else ids[-1]
        return Answer(completion("mine", usage=(30, 4)).replace(b'"id": "x"', f'"id": "chatcmpl-{name}"'.encode()))

    with serve(handler) as server:
        endpoint = {"base_url": server.base_url, "model": "m", "max_wait_s": 0.01}
        host = WriterHost(spec_of(endpoint=endpoint, concurrency=1, retries=0))
        written = asyncio.run(host.write_shard(Shard(index=0, prompts=tuple(PLAIN)), ["a", "b", "c"], [], 0))
    assert sorted(t.outcome for t in written.texts) == ["failed", "kept", "kept"]
    assert written.counters["num_misdirected_answers"] == 1 and written.counters["num_requests"] == 3


@pytest.mark.parametrize(("status", "why"), [(401, "refused the key"), (500, "status 500")])
def test_a_writer_that_cannot_be_asked_says_so_before_a_run_begins(status: int, why: str) -> None:
    with serve(lambda *_: Answer(status=status)) as server:
        endpoint = {"base_url": server.base_url, "model": "m", "max_wait_s": 0.01}
        host = WriterHost(spec_of(endpoint=endpoint, retries=0))
        with pytest.raises(JudgeError, match=rf"candidates\.0\.endpoint {server.base_url}, model m was tried .*{why}"):
            asyncio.run(host.try_it(chat=True))

"""Prompts -> requests -> texts, for whatever `Chat` answers the requests: a teacher's answers, and revisions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from judges.chat import CallFailed, Chat, ChatReply, ChatRequest
from judges.llm.budget import BudgetSpent
from judges.protocol import StopJudging
from online_dpo.config.candidates.section import ReviseWriter, TeacherWriter
from online_dpo.data.revising import critique_messages, principle_for, revision_messages
from online_dpo.errors import first_line
from online_dpo.types import Completion, Message, Prompt, derive_seed, group_by_prompt
from online_dpo.written import Written, WrittenText

CONTINUE = "Continue the user's text. Reply with nothing but the continuation."
"""What a teacher is told about a prompt of plain text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterSpec:
    """A writer before it is built, as it travels from the driver to the place where it will live."""

    section: TeacherWriter | ReviseWriter  # with an endpoint or an engine
    field: str  # where the section is in the config, such as `candidates.0`
    max_tokens: int  # of a reply
    seed: int  # of the run

    @property
    def label(self) -> str:
        """The writer in messages."""
        section = self.section
        if section.endpoint is not None:
            return f"{self.field}.endpoint {section.endpoint.base_url}, model {section.endpoint.model}"
        return self.field if section.engine is None else f"{self.field}.engine.path {section.engine.path}"


@dataclass(frozen=True, slots=True)
class _OverBudget:
    """In the place of a reply: the budget is used up."""


@dataclass(frozen=True, slots=True)
class _NotAsked:
    """In the place of a reply: the endpoint cannot be used at all."""

    reason: str


@dataclass(frozen=True, slots=True)
class _NoSample:
    """In the place of a reply: there is no text of the policy to revise."""


_Reply = ChatReply | CallFailed | _OverBudget | _NotAsked | _NoSample
_Key = tuple[str, int]
"""Prompt id, and the number of the answer."""


class TextWriter:
    """Writes answers to the prompts of a shard. What it asks depends on the run's seed and the texts alone."""

    def __init__(self, spec: WriterSpec, chat: Chat) -> None:
        self._spec, self._section, self._chat = spec, spec.section, chat

    async def write(self, prompts: Sequence[Prompt], samples: Sequence[Completion], round_index: int) -> Written:
        """Ask for every answer; what fails is told and raises nothing.

        Args:
            prompts: to be answered.
            samples: of the policy, to these prompts.
            round_index: goes into seeds.

        Returns:
            The texts, and why it stopped where the endpoint cannot be used; the counters are left to the host.
        """
        if isinstance(self._section, TeacherWriter):
            numbers = range(self._section.num_samples)
            asked = {(p.prompt_id, n): teacher_messages(p, self._section.system) for p in prompts for n in numbers}
            replies = await self._ask(asked, "answer", round_index, self._spec.max_tokens)
        else:
            replies = await self._revise(self._section, prompts, samples, round_index)
        texts = [_text(*key, reply) for key, reply in replies.items() if not isinstance(reply, _NotAsked)]
        stopped = [reply.reason for reply in replies.values() if isinstance(reply, _NotAsked)]
        # A prompt is a whole: its continuation asks for all of its answers.
        left = {name for (name, _), reply in replies.items() if isinstance(reply, _NotAsked)}
        return Written(
            texts=tuple(text for text in texts if text.prompt_id not in left),
            counters={},
            stopped=stopped[0] if stopped else None,
        )

    async def _revise(
        self, section: ReviseWriter, prompts: Sequence[Prompt], samples: Sequence[Completion], round_index: int
    ) -> dict[_Key, _Reply]:
        groups = group_by_prompt(samples)
        critiques: dict[_Key, tuple[Message, ...]] = {}
        wanted: list[_Key] = []
        for prompt in prompts:
            for number, sample in enumerate(groups.get(prompt.prompt_id, [])[: section.num_samples]):
                name = prompt.prompt_id
                wanted.append((name, number))
                if sample.text.strip():
                    principle = principle_for(section.principles, self._spec.seed, name, sample.sample_index)
                    critiques[name, number] = critique_messages(prompt, sample.text, principle)
        limit = self._spec.max_tokens if section.critique_tokens == "auto" else section.critique_tokens
        said = await self._ask(critiques, "critique", round_index, limit)
        revisions = {
            key: revision_messages(critiques[key], reply.text, section.revision)
            for key, reply in said.items()
            if isinstance(reply, ChatReply) and not reply.refused and reply.text.strip()
        }
        found = await self._ask(revisions, "revision", round_index, self._spec.max_tokens)
        return {key: found.get(key, said.get(key, _NoSample())) for key in wanted}

    async def _ask(
        self, asked: Mapping[_Key, Sequence[Message]], purpose: str, round_index: int, max_tokens: int
    ) -> dict[_Key, _Reply]:
        """One reply for each conversation."""
        section = self._section
        requests = {
            key: ChatRequest(
                messages=tuple(messages),
                max_tokens=max_tokens,
                temperature=section.temperature,
                seed=self._seed(purpose, round_index, key) if section.temperature > 0.0 else None,
            )
            for key, messages in asked.items()
        }
        if section.endpoint is None:
            # All in one call: what shares a batch of the engine must be the same however the run was resumed.
            groups = [list(requests)] if requests else []
        else:  # a prompt at a time, so that the budget ends between two prompts
            groups = [[key for key in requests if key[0] == name] for name in dict.fromkeys(key[0] for key in requests)]
        replies = await asyncio.gather(*(self._ask_together([requests[key] for key in keys]) for keys in groups))
        found: dict[_Key, _Reply] = {}
        for keys, part in zip(groups, replies, strict=True):
            found |= zip(keys, part, strict=True)
        return {key: found[key] for key in requests}

    async def _ask_together(self, requests: Sequence[ChatRequest]) -> Sequence[_Reply]:
        try:
            return await self._chat.ask(requests)
        except BudgetSpent:
            return [_OverBudget()] * len(requests)
        except StopJudging as error:
            return [_NotAsked(str(error))] * len(requests)
        except Exception as error:  # an engine raises what its authors chose
            return [CallFailed(f"{type(error).__name__}: {first_line(error)}"[:200])] * len(requests)

    def _seed(self, purpose: str, round_index: int, key: _Key) -> int:
        # Servers want 31 bits.
        return derive_seed(self._spec.seed, "candidate", self._section.source, purpose, round_index, *key) >> 32


def teacher_messages(prompt: Prompt, system: str | None) -> tuple[Message, ...]:
    """What a teacher is asked about a prompt."""
    if prompt.messages is None:
        return (
            {"role": "system", "content": CONTINUE if system is None else system},
            {"role": "user", "content": prompt.text or ""},
        )
    if system is None or any(message["role"] == "system" for message in prompt.messages):
        return prompt.messages
    return ({"role": "system", "content": system}, *prompt.messages)


def _text(prompt_id: str, number: int, reply: _Reply) -> WrittenText:
    if isinstance(reply, _OverBudget):
        return WrittenText(prompt_id=prompt_id, number=number, outcome="over_budget")
    if isinstance(reply, _NoSample):
        return WrittenText(prompt_id=prompt_id, number=number, outcome="no_sample")
    if isinstance(reply, CallFailed):
        return WrittenText(prompt_id=prompt_id, number=number, outcome="failed", detail=_storable(reply.reason))
    assert isinstance(reply, ChatReply)
    if reply.refused:
        return WrittenText(prompt_id=prompt_id, number=number, outcome="refused")
    return WrittenText(prompt_id=prompt_id, number=number, text=reply.text, is_cut=reply.cut_short)


def _storable(text: str) -> str:
    """Without halves of characters, which an error's text may hold and no file can."""
    return text.encode(errors="replace").decode()

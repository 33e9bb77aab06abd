"""The policy criticises its own answers and writes them again: two samplings more, with seeds like all others.

The revision is sampled after the conversation with the critique and trained on after the prompt alone; its tokens are
those that were sampled, and are never tokenised again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from online_dpo.config.candidates.section import ReviseWriter
from online_dpo.config.run import RunConfig
from online_dpo.data.revising import (
    critique_messages,
    critique_text,
    principle_for,
    revision_messages,
    revision_text,
)
from online_dpo.loop.candidates.writers import Writers, candidate
from online_dpo.loop.stages import Event
from online_dpo.types import Completion, Message, Prompt, SamplingPlan, Shard, group_by_prompt

Take: TypeAlias = Callable[[Sequence[Completion]], Iterator[Event]]
"""Goes on with samples."""

SampleFrom: TypeAlias = Callable[[Shard, SamplingPlan, Take], None]
"""Begins to have prompts sampled by a policy; the last argument takes the samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revised:
    """What came of a shard."""

    completions: tuple[Completion, ...]
    outcomes: Mapping[str, int]  # word of `online_dpo.written.Outcome` -> answers
    counters: Mapping[str, int]


Done: TypeAlias = Callable[[Revised], Iterator[Event]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A conversation about one sample, as far as it has come."""

    prompt: Prompt  # of the run
    number: int  # of the sample among those that are revised
    conversation: Prompt  # whose id is the prompt's and the sample's


class OwnRevisions:
    """Of one shard."""

    def __init__(
        self, config: RunConfig, section: ReviseWriter, writers: Writers, round_index: int, sample: SampleFrom
    ) -> None:
        """Nothing is sampled yet; arguments are those of `Writing`."""
        self._config, self._section, self._writers = config, section, writers
        self._round_index, self._sample = round_index, sample
        self._outcomes: Counter[str] = Counter()
        self._counters: Counter[str] = Counter()

    def begin(self, shard: Shard, samples: Sequence[Completion], done: Done) -> Iterator[Event]:
        """Have the first samples of every prompt criticised and revised; `done` takes what comes of it."""
        groups, asked = group_by_prompt(samples), []
        for prompt in shard.prompts:
            for number, sample in enumerate(groups[prompt.prompt_id][: self._section.num_samples]):
                found = self._critique(prompt, sample) if sample.text.strip() else "no_sample"
                if isinstance(found, Prompt):
                    asked.append(_Asked(prompt=prompt, number=number, conversation=found))
                else:
                    self._outcomes[found] += 1
        yield from self._go_on("critique", shard.index, asked, partial(self._on_critiques, shard.index, done), done)

    def _go_on(
        self,
        purpose: str,
        index: int,
        asked: Sequence[_Asked],
        then: Callable[[Mapping[str, _Asked], Sequence[Completion]], Iterator[Event]],
        done: Done,
    ) -> Iterator[Event]:
        """Sample the conversations, where there are any."""
        by_id = {one.conversation.prompt_id: one for one in asked}
        if not by_id:
            yield from done(self._revised([]))
            return
        plan = SamplingPlan(
            purpose=f"{purpose} {self._section.source}",
            round_index=self._round_index,
            num_samples=1,
            temperature=self._section.temperature,
            top_p=self._config.sampling.top_p if self._section.temperature > 0.0 else 1.0,
            max_tokens=self._limit(purpose),
            stop=tuple(self._config.sampling.stop),
            run_seed=self._config.run.seed,
        )
        prompts = tuple(one.conversation for one in asked)
        self._sample(Shard(index=index, prompts=prompts), plan, partial(then, by_id))

    def _on_critiques(
        self, index: int, done: Done, asked: Mapping[str, _Asked], critiques: Sequence[Completion]
    ) -> Iterator[Event]:
        self._count("critique", critiques)
        left = []
        for critique in critiques:
            one = asked[critique.prompt_id]
            found = self._revision(one, critique.text) if critique.text.strip() else "empty"
            if isinstance(found, Prompt):
                left.append(_Asked(prompt=one.prompt, number=one.number, conversation=found))
            else:
                self._outcomes[found] += 1
        yield from self._go_on("revision", index, left, partial(self._on_revisions, done), done)

    def _on_revisions(
        self, done: Done, asked: Mapping[str, _Asked], revisions: Sequence[Completion]
    ) -> Iterator[Event]:
        self._count("revision", revisions)
        source = self._section.source
        first, found = self._writers.first_index(source, self._config.sampling.num_samples), []
        for revision in revisions:
            one = asked[revision.prompt_id]
            assert revision.finish_reason is not None
            outcome = "kept" if revision.text.strip() else "empty"
            self._outcomes[outcome] += 1
            if outcome == "kept":
                index, ids = first + one.number, revision.token_ids
                found.append(candidate(one.prompt, index, ids, revision.text, revision.finish_reason, source))
        yield from done(self._revised(found))

    def _critique(self, prompt: Prompt, sample: Completion) -> Prompt | str:
        section, name = self._section, f"{prompt.prompt_id}/{sample.sample_index}"
        seed = self._config.run.seed
        principle = principle_for(section.principles, seed, prompt.prompt_id, sample.sample_index)
        if prompt.messages is None:
            return self._conversation(name, "critique", text=critique_text(prompt, sample.text, principle))
        return self._conversation(name, "critique", messages=critique_messages(prompt, sample.text, principle))

    def _revision(self, one: _Asked, said: str) -> Prompt | str:
        before, request, name = one.conversation, self._section.revision, one.conversation.prompt_id
        if before.messages is None:
            return self._conversation(
                name, "revision", text=revision_text(before.text or "", said, request, one.prompt)
            )
        return self._conversation(name, "revision", messages=revision_messages(before.messages, said, request))

    def _conversation(
        self, name: str, purpose: str, *, text: str | None = None, messages: tuple[Message, ...] | None = None
    ) -> Prompt | str:
        """What the policy is asked with, or why it cannot be."""
        encoder = self._writers.encoder.prompts
        try:
            ids = encoder.encode_text(text or "") if messages is None else encoder.encode_chat(messages)
        except Exception:  # a template raises what its author chose
            return "template"
        if len(ids) + self._limit(purpose) > self._writers.max_model_len:
            return "no_sample"
        return Prompt(prompt_id=name, token_ids=ids, text=text, messages=messages)

    def _limit(self, purpose: str) -> int:
        """Tokens that may be sampled."""
        section, longest = self._section, self._config.sampling.max_tokens
        limit = longest if section.max_tokens == "auto" else min(section.max_tokens, longest)
        if purpose == "revision" or section.critique_tokens == "auto":
            return limit
        return section.critique_tokens

    def _count(self, purpose: str, completions: Sequence[Completion]) -> None:
        self._counters[f"num_{purpose}s"] += len(completions)
        self._counters[f"num_{purpose}_tokens"] += sum(len(c.token_ids) for c in completions)

    def _revised(self, completions: Sequence[Completion]) -> Revised:
        return Revised(completions=tuple(completions), outcomes=dict(self._outcomes), counters=dict(self._counters))

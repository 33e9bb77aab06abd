"""Having candidates written for shards that are sampled: every writer is asked once, and what comes is committed.

A shard goes to the judges when all of its writers are done with it. Whatever is committed is never asked for again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from online_dpo.config.candidates.section import CandidateSection, ColumnWriter, ReviseWriter
from online_dpo.config.run import RunConfig
from online_dpo.data.candidates import EncodedCandidate
from online_dpo.loop.calls import Call, Calls
from online_dpo.loop.candidates.own_revisions import OwnRevisions, Revised, SampleFrom
from online_dpo.loop.candidates.writers import Writers, candidate
from online_dpo.loop.stages import Event
from online_dpo.loop.verdicts import Asking
from online_dpo.statistics.judges import kind_of
from online_dpo.store.candidates import CandidateCommits, Given
from online_dpo.store.round_store import RoundStore
from online_dpo.types import Completion, FinishReason, Prompt, Shard
from online_dpo.written import Outcome, Written, WrittenText

Then = Callable[[], Iterator[Event]]


class Writing:
    """The candidates of one sampling."""

    def __init__(
        self, config: RunConfig, writers: Writers, calls: Calls, store: RoundStore, asking: Asking, sample: SampleFrom
    ) -> None:
        """Nothing is asked yet.

        Args:
            config: of the run.
            writers: of the run.
            calls: where each question is entered while it is under way.
            store: of the round.
            asking: of the sampling; its calls are waited for, and it stops where a writer does.
            sample: has prompts sampled by the policy of the sampling.
        """
        self._config, self._writers, self._calls = config, writers, calls
        self._commits, self._round_index = CandidateCommits(store), store.index
        self._asking, self._sample = asking, sample
        self._pending: dict[int, set[str]] = {}  # shard -> writers that are not done

    def complete(self, shard: Shard, samples: Sequence[Completion], then: Then) -> Iterator[Event]:
        """Have written what is not committed yet of a shard; `then` follows once nothing is missing."""
        missing = []
        for section in self._writers.sections:
            if self._commits.has(section.source, shard.index):
                self._commits.remove_parts(section.source, shard.index)  # which a kill left beside the whole
            else:
                missing.append(section)
        self._pending[shard.index] = {section.source for section in missing}
        if not missing:
            yield from then()
        for section in missing:
            yield from self._begin(section, shard, samples, then)

    def _begin(
        self, section: CandidateSection, shard: Shard, samples: Sequence[Completion], then: Then
    ) -> Iterator[Event]:
        if isinstance(section, ColumnWriter):
            texts = [_of_column(prompt, section.column) for prompt in shard.prompts]
            written = Written(texts=tuple(texts), counters={})
            yield from self._on_written(section, shard, then, written)
        elif isinstance(section, ReviseWriter) and not section.is_hosted:
            done = partial(self._on_revised, section, shard, then)
            revisions = OwnRevisions(self._config, section, self._writers, self._round_index, self._sample)
            yield from revisions.begin(shard, samples, done)
        else:
            known = set(self._commits.parts(section.source, shard.index).prompt_ids)
            wanted = [prompt.prompt_id for prompt in shard.prompts if prompt.prompt_id not in known]
            task = self._calls.stages.start_writing(section.source, shard, wanted, samples, self._round_index)
            on_written = partial(self._on_written, section, shard, then)
            # As judges: where one has stopped, what others were asked before is still waited for and committed.
            self._calls.add(task, Call(then=on_written, owner=self._asking, asks_judge=True))

    def _on_written(self, section: CandidateSection, shard: Shard, then: Then, written: Written) -> Iterator[Event]:
        """Tokenise and commit what a writer wrote."""
        prompts = {prompt.prompt_id: prompt for prompt in shard.prompts}
        first = self._writers.first_index(section.source, self._config.sampling.num_samples)
        outcomes: Counter[str] = Counter()
        details: Counter[str] = Counter()
        completions, num_split = [], 0
        for text in written.texts:
            prompt = prompts[text.prompt_id]
            content = text.text if prompt.messages is not None else f"{section.separator}{text.text}"
            found = self._encode(prompt, content, text)
            outcomes[found if isinstance(found, str) else "kept"] += 1
            if isinstance(found, EncodedCandidate):
                num_split += found.is_split
                reason: FinishReason = "length" if text.is_cut else "stop"
                index = first + text.number
                completions.append(candidate(prompt, index, found.token_ids, found.text, reason, section.source))
            if text.detail is not None:
                details[kind_of(text.detail)] += 1
        given = Given(
            completions=tuple(map(self._calls.measured, completions)),
            prompt_ids=tuple(dict.fromkeys(text.prompt_id for text in written.texts)),
            outcomes=dict(outcomes),
            details=dict(details),
            counters={**written.counters, "num_split_boundaries": num_split},
        )
        if written.stopped is not None:
            self._commits.put(section.source, shard.index, given, is_part=True)
            self._asking.stop(written.stopped)
            return
        yield from self._commit(section, shard, given, then)

    def _on_revised(self, section: ReviseWriter, shard: Shard, then: Then, revised: Revised) -> Iterator[Event]:
        given = Given(
            completions=tuple(map(self._calls.measured, revised.completions)),
            prompt_ids=tuple(prompt.prompt_id for prompt in shard.prompts),
            outcomes=revised.outcomes,
            details={},
            counters=revised.counters,
        )
        yield from self._commit(section, shard, given, then)

    def _commit(self, section: CandidateSection, shard: Shard, given: Given, then: Then) -> Iterator[Event]:
        self._commits.put(section.source, shard.index, given)
        data: dict[str, Any] = {"source": section.source, "num_kept": len(given.completions)}
        yield self._asking.event("candidates_written", shard, **data)
        pending = self._pending[shard.index]
        pending.discard(section.source)
        if not pending:
            yield from then()

    def _encode(self, prompt: Prompt, content: str, text: WrittenText) -> EncodedCandidate | Outcome:
        if text.outcome != "kept":
            return text.outcome
        return self._writers.encoder.encode(prompt, content, is_cut=text.is_cut)


def _of_column(prompt: Prompt, column: str) -> WrittenText:
    value = prompt.metadata.get(column)
    if not isinstance(value, str):
        return WrittenText(prompt_id=prompt.prompt_id, number=0, outcome="missing")
    return WrittenText(prompt_id=prompt.prompt_id, number=0, text=value)

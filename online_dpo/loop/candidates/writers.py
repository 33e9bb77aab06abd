"""The writers of a run, and the records of what they write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from online_dpo.config.candidates.section import CandidateSection, ChatWriter
from online_dpo.data.candidates import CandidateEncoder
from online_dpo.store.candidates import CandidateCommits
from online_dpo.store.round_store import RoundStore
from online_dpo.types import Completion, FinishReason, Prompt, Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Writers:
    """The writers of a run, and what tokenises their texts."""

    sections: tuple[CandidateSection, ...]
    encoder: CandidateEncoder
    max_model_len: int  # of the policy's engines, tokens

    def first_index(self, source: str, num_samples: int) -> int:
        """The sample index of a writer's first answer to a prompt: writers follow the policy, in their order."""
        before: list[int] = []
        for section in self.sections:
            if section.source == source:
                return num_samples + sum(before)
            before.append(section.num_answers)
        raise KeyError(source)

    @property
    def own(self) -> list[str]:
        """Writers that are the policy itself."""
        return [section.source for section in self.sections if _is_own(section)]


def candidate(
    prompt: Prompt, index: int, token_ids: tuple[int, ...], text: str, finish_reason: FinishReason, source: str
) -> Completion:
    """An answer of a writer; nothing else of a sample is known of it."""
    return Completion(
        prompt_id=prompt.prompt_id,
        sample_index=index,
        token_ids=token_ids,
        text=text,
        finish_reason=finish_reason,
        sampler_logps=None,
        policy_version=None,
        seed=None,
        source=source,
    )


def needs_policy(store: RoundStore, writers: Writers | None, shards: Sequence[Shard]) -> bool:
    """Whether the policy is still to write candidates of its own for a shard."""
    commits = CandidateCommits(store)
    own = [] if writers is None else writers.own
    return any(not commits.has(source, shard.index) for source in own for shard in shards)


def _is_own(section: CandidateSection) -> bool:
    return isinstance(section, ChatWriter) and not section.is_hosted

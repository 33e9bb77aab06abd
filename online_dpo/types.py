"""Every record that crosses a stage boundary. Imports nothing heavy, and little of ours.

Shapes in docstrings: `T` tokens of one sequence, `K` completions per prompt, `P` pairs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from online_dpo.member_agreement import MemberAgreement
from online_dpo.votes import CastVote

FinishReason: TypeAlias = Literal["stop", "length"]
Message: TypeAlias = dict[str, str]
PromptContent: TypeAlias = str | list[Message]
"""What a judge sees of a prompt: text for plain prompts, chat messages for chat prompts."""

Abstention: TypeAlias = Literal["abstained", "failed", "unasked", "first_place", "second_place", "unclosed"]
"""Why there is no opinion: the judge cannot tell; its call failed; it stopped before it was asked; what was shown first
(or second) won in both orders; or nobody was asked, since the completion's thought has no end (`judge.view`)."""

REWARD = "reward"
"""The training judge's name, beside the names of the evaluation's judges."""

DOMAIN = "domain"
"""The key of a prompt's metadata that holds its domain, where prompts have one."""

NUM_RANKINGS = "num_judge_rankings"
"""The counter of questions whose completions a judge saw side by side, although it then scores each of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt, tokenised once, in the driver."""

    prompt_id: str  # unique in its source and stable across runs
    token_ids: tuple[int, ...]  # [T], special tokens of tokenizer or chat template included
    text: str | None = None  # exactly one of `text` and `messages` is set
    messages: tuple[Message, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)  # further columns of the source, JSON values

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise ValueError(f"prompt {self.prompt_id}: exactly one of text and messages must be set")

    @property
    def content(self) -> PromptContent:
        """The prompt as judges see it."""
        return self.text if self.messages is None else [dict(m) for m in self.messages]  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer. `token_ids` is what training uses; `text` is for judges and people.

    The fields from `finish_reason` to `seed` tell how it was sampled. An answer from a data set, which no policy of the
    run made, has none of them, and nothing may take their place. A candidate, which a writer gave, has the first alone.
    """

    prompt_id: str
    sample_index: int  # 0 .. K-1 within the prompt
    token_ids: tuple[int, ...]  # [T], the terminating EOS included when it was sampled, nothing appended when not
    text: str
    finish_reason: FinishReason | None
    sampler_logps: tuple[float, ...] | None  # [T] nats, at temperature 1, as the engine computed them when it sampled
    policy_version: int | None  # number of learner pushes before it was sampled; 0 = the initial policy
    seed: int | None
    answer_tokens: int | None = None  # those that belong to no thought, where `judge.view` is set; else None
    source: str | None = None  # the writer under `candidates`; None = the policy's sample, or of a data set

    def __post_init__(self) -> None:
        name = f"completion {self.prompt_id}/{self.sample_index}"
        provenance = (self.finish_reason, self.sampler_logps, self.policy_version, self.seed)
        if self.source is not None:
            if self.finish_reason is None or provenance[1:] != (None, None, None):
                raise ValueError(f"{name}: a candidate has a finish reason, and nothing else of a sample")
            return
        if any(value is None for value in provenance) != all(value is None for value in provenance):
            raise ValueError(f"{name}: only a part of what tells how it was sampled is set")
        if self.sampler_logps is not None and len(self.sampler_logps) != len(self.token_ids):
            raise ValueError(f"{name}: {len(self.sampler_logps)} log-probs for {len(self.token_ids)} tokens")

    @property
    def is_sampled(self) -> bool:
        """Whether it is a sample of a policy of this run; otherwise it is a candidate, or from a data set."""
        return self.policy_version is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The unit of batching, commit and retry: prompts that one engine call answers, alone in the engine."""

    index: int
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge says about completion `first`, or about the pair (`first`, `second`) of one prompt.

    Exactly one of `score` (about one completion, finite), `probability` (that `first` beats `second`, in [0, 1],
    one half is a tie) and `reason` (an abstention) is set. Indices are sample indices. The kind of an abstention is in
    `abstention`, "abstained" unless it is given; nothing is read out of the text of a reason.

    `uncertainty` is how far several judges disagree: the standard deviation of their scores or probabilities, in the
    same unit. None = one opinion only. `rationale` is what the judge wrote for its opinion, for people; nothing is read
    out of it.
    """

    prompt_id: str
    first: int
    second: int | None = None
    score: float | None = None
    probability: float | None = None
    reason: str | None = None
    abstention: Abstention | None = None
    uncertainty: float | None = None
    rationale: str | None = None

    def __post_init__(self) -> None:
        if self.reason is not None and self.abstention is None:
            object.__setattr__(self, "abstention", "abstained")
        if [self.score, self.probability, self.reason].count(None) != 2:
            raise ValueError(f"verdict on {self.prompt_id}: exactly one of score, probability and reason must be set")
        if self.abstention not in ((None,) if self.reason is None else get_args(Abstention)):
            raise ValueError(f"verdict on {self.prompt_id}: {self.abstention!r} is no kind of abstention here")
        if self.score is not None and (self.second is not None or not math.isfinite(self.score)):
            raise ValueError(f"verdict on {self.prompt_id}/{self.first}: a score is finite and about one completion")
        if self.probability is not None and (self.second is None or not 0.0 <= self.probability <= 1.0):
            raise ValueError(f"verdict on {self.prompt_id}: a probability is in [0, 1] and about two completions")
        if self.uncertainty is not None and (
            self.reason is not None or not (math.isfinite(self.uncertainty) and self.uncertainty >= 0.0)
        ):
            raise ValueError(f"verdict on {self.prompt_id}: an uncertainty is finite, not negative, and of an opinion")

    @property
    def failed(self) -> bool:
        """Whether this abstention stands for a judge call that went wrong."""
        return self.abstention == "failed"

    @property
    def unasked(self) -> bool:
        """Whether the judge stopped before it was asked this; such an abstention is never committed."""
        return self.abstention == "unasked"

    @property
    def explanation(self) -> str | None:
        """The reason as people read it: that of a failed call begins with `failed: `."""
        return f"failed: {self.reason}" if self.failed else self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two answers to one prompt, of which the judge strictly prefers `chosen` (DESIGN invariant 1).

    A data set says which answer is preferred and not by how much: its pairs have neither margin nor probability.
    """

    prompt: Prompt
    chosen: Completion
    rejected: Completion
    margin: float | None  # score difference, or the logit of the probability; > 0; None = not judged in this run
    probability: float | None  # that chosen beats rejected; > 0.5; None with the margin
    weight: float = 1.0
    # Under the reference, nats, summed over the completion's tokens; None = not computed. The tail is the part of the
    # sum that lies beyond the length of the pair's shorter answer: 0 for the shorter one itself.
    chosen_ref_logps: float | None = None
    rejected_ref_logps: float | None = None
    chosen_ref_tail_logps: float | None = None
    rejected_ref_tail_logps: float | None = None

    def __post_init__(self) -> None:
        name = f"pair {self.prompt.prompt_id}/{self.chosen.sample_index}>{self.rejected.sample_index}"
        if not self.prompt.prompt_id == self.chosen.prompt_id == self.rejected.prompt_id:
            raise ValueError(f"{name}: the answers belong to other prompts")
        if self.chosen.token_ids == self.rejected.token_ids:
            raise ValueError(f"{name}: chosen and rejected are the same tokens")
        if not (self.chosen.token_ids and self.rejected.token_ids):
            raise ValueError(f"{name}: an answer has no tokens")
        if self.margin is None or self.probability is None:
            if self.margin is not None or self.probability is not None:
                raise ValueError(f"{name}: margin and probability come together")
        elif not (self.margin > 0.0 and self.probability > 0.5):
            raise ValueError(f"{name}: margin {self.margin} and probability {self.probability} name no winner")

    @property
    def shared_length(self) -> int:
        """Tokens of the shorter answer."""
        return min(len(self.chosen.token_ids), len(self.rejected.token_ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """One answer with a verdict of its own, as KTO takes it.

    `kl_completion_ids` answers another prompt of the same round: together with `prompt` it is one sample for the KL
    estimate. It is settled with the item, so that nothing about batches can change it; empty = the item has none.
    """

    prompt: Prompt
    completion: Completion
    desirable: bool
    weight: float = 1.0
    kl_completion_ids: tuple[int, ...] = ()
    ref_logps: float | None = None  # under the reference, nats, summed over tokens; None = not computed
    kl_ref_logps: float | None = None  # of `kl_completion_ids` after `prompt`; None also where there are none

    def __post_init__(self) -> None:
        name = f"labelled answer {self.prompt.prompt_id}/{self.completion.sample_index}"
        if self.prompt.prompt_id != self.completion.prompt_id:
            raise ValueError(f"{name}: the answer belongs to another prompt")
        if not self.completion.token_ids:
            raise ValueError(f"{name}: the answer has no tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """What follows a prompt, to be imitated (SFT): an answer, or the rest of a conversation with several of them."""

    prompt: Prompt
    completion: Completion  # of a conversation: from its first answer to the end of its last one
    trained: tuple[bool, ...]  # [T] which of the completion's tokens the loss is of; not those that the user wrote
    turns: tuple[Message, ...] = ()  # of a chat: the messages that the completion consists of

    def __post_init__(self) -> None:
        name = f"demonstration {self.prompt.prompt_id}"
        if self.prompt.prompt_id != self.completion.prompt_id:
            raise ValueError(f"{name}: the answer belongs to another prompt")
        if len(self.trained) != len(self.completion.token_ids) or not any(self.trained):
            raise ValueError(f"{name}: {len(self.trained)} flags for {len(self.completion.token_ids)} tokens, or none")
        if bool(self.turns) != (self.prompt.messages is not None):
            raise ValueError(f"{name}: a chat has messages, and plain text has none")

    @property
    def num_trained(self) -> int:
        """Tokens that the loss is of."""
        return sum(self.trained)


AnyItem: TypeAlias = Pair | Labelled | Demonstration
Item = TypeVar("Item", Pair, Labelled, Demonstration)
Items: TypeAlias = Sequence[Pair] | Sequence[Labelled] | Sequence[Demonstration]
"""What a round trains on, by its objective: pairs, labelled answers, or demonstrations."""


def text_of_turns(turns: Sequence[Message]) -> str:
    """The text of a completion that is several messages: what each says, with a blank line between two."""
    return "\n\n".join(turn["content"] for turn in turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A prompt and one completion as the learner scores them; log-probs are of the completion's tokens only."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @classmethod
    def of(cls, prompt: Prompt, completion: Completion) -> Row:
        return cls(prompt_ids=prompt.token_ids, completion_ids=completion.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter as it travels: the two files of a PEFT folder, as bytes. Its digest is derived, never stored."""

    version: int  # number of learner pushes it stands for
    weights: bytes  # adapter_model.safetensors
    config: bytes  # adapter_config.json

    @property
    def digest(self) -> str:
        """sha256 over both files, hexadecimal."""
        return hashlib.sha256(hashlib.sha256(self.weights).digest() + hashlib.sha256(self.config).digest()).hexdigest()

    def files(self) -> dict[str, bytes]:
        """File name -> content of the PEFT folder."""
        return {"adapter_config.json": self.config, "adapter_model.safetensors": self.weights}

    @classmethod
    def from_files(cls, version: int, files: Mapping[str, bytes]) -> Adapter:
        return cls(version=version, weights=files["adapter_model.safetensors"], config=files["adapter_config.json"])


WeightsRef: TypeAlias = Adapter | Literal["policy", "reference_model"] | None
"""Which weights score: the learner's current policy, what `reference.path` names, an adapter, or the base model (None).
"""

TokenLogpRows: TypeAlias = Sequence[Sequence[float]]
"""Log-probs of rows: for each row `[T]` numbers, one per completion token, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan:
    """How one kind of sample is drawn. `purpose` and `round_index` only go into the seeds."""

    purpose: str
    round_index: int
    num_samples: int  # K
    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...]
    run_seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What a generator gives back for a shard."""

    first_since_push: bool  # nothing else was sampled by this engine since it took its weights
    completions: tuple[Completion, ...]  # in prompt and sample order


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a judge's host gives back for a shard."""

    verdicts: tuple[Verdict, ...]  # in prompt order
    counters: Mapping[str, int | float]  # calls, retries, failures, ... of this shard
    agreement: Mapping[str, MemberAgreement] = field(default_factory=dict)  # by the config field of each ensemble
    stopped: str | None = None  # why nothing is said about some of the prompts; None = something is about all
    # Judge -> seconds of each answered call. Never committed: seconds do not repeat.
    latencies_s: Mapping[str, Sequence[float]] = field(default_factory=dict)
    votes: tuple[CastVote, ...] = ()  # where people judge: all votes on the questions behind the verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Log-probs of given completions under one policy, at temperature 1."""

    token_logps: tuple[tuple[float, ...], ...]  # per row [T], nats
    entropies: tuple[tuple[float, ...], ...] | None = None  # per row [T], nats; only where it was asked for


def derive_seed(run_seed: int, *parts: str | int) -> int:
    """A 63-bit seed that is a hash of the run's seed and what it is for: neighbours never share a random stream."""
    text = "\x1f".join(str(part) for part in (run_seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def group_by_prompt(completions: Sequence[Completion]) -> dict[str, list[Completion]]:
    """Completions of each prompt, in sample order, prompts in order of first appearance."""
    groups: dict[str, list[Completion]] = {}
    for completion in completions:
        groups.setdefault(completion.prompt_id, []).append(completion)
    for group in groups.values():
        group.sort(key=lambda c: c.sample_index)
    return groups

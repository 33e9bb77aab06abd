"""What the loop needs from the world. `actors.cluster` provides it with Ray and vLLM, tests with fakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from online_dpo.models.merging import Received
from online_dpo.types import (
    Adapter,
    Completion,
    Item,
    Items,
    Row,
    SamplingPlan,
    Scores,
    Shard,
    TokenLogpRows,
    WeightsRef,
)

INCIDENT = "incident"
"""Kind of the metrics' records about actors that were lost or silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a person or a log may want to know. The loop never looks at a clock: whoever listens does."""

    kind: str
    """What happened, such as `step`."""
    round_index: int
    """The round that it is about, from 0; of shards that are sampled ahead the one that they are for."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Its figures, by name."""


class Task(Protocol):
    """A call under way. Only its identity matters to the loop."""

    def __hash__(self) -> int: ...


class LearnerStage(Protocol):
    """`online_dpo.learner.learner.Learner`, called where it lives."""

    def notices(self) -> list[str]: ...
    def initial_adapter(self) -> Adapter | None: ...
    def policy(self, version: int) -> Adapter: ...
    def score(self, rows: Sequence[Row], under: Sequence[WeightsRef]) -> list[Scores]: ...
    def check_logps(self, rows: Sequence[Row], under: Sequence[WeightsRef]) -> list[TokenLogpRows]: ...
    def reference_logps(self, items: Sequence[Item], references: Sequence[WeightsRef]) -> list[Item]: ...
    def begin_round(self, round_index: int, items: Items, beta_factor: float = 1.0) -> int: ...
    def step(self, step: int) -> dict[str, Any]: ...
    def checkpoint(self) -> dict[str, bytes]: ...
    def restore(self, files: Mapping[str, bytes]) -> None: ...


class Stages(Protocol):
    """Everything outside the driver. Methods named `start_*` return at once; `first_done` waits."""

    @property
    def learner(self) -> LearnerStage: ...

    def sleep(self) -> None:
        """The generators, and judges on a GPU, give its memory to the learner."""
        ...

    def wake(self) -> None:
        """The learner gives spare memory back and the generators take theirs; the policy must be pushed again."""
        ...

    def push(self, adapter: Adapter | None, version: int) -> list[Received]:
        """Hand the policy to every generator; what each received."""
        ...

    def probe(self, rows: Sequence[Row]) -> list[TokenLogpRows]:
        """Log-probs of the rows' completions by each generator."""
        ...

    def start_sampling(self, shard: Shard, plan: SamplingPlan, version: int) -> Task:
        """Result: `Sampled`."""
        ...

    def start_writing(
        self, source: str, shard: Shard, prompt_ids: Sequence[str], samples: Sequence[Completion], round_index: int
    ) -> Task:
        """Result: `Written`, of those of the shard's prompts that are named."""
        ...

    def start_judging(
        self, judge: str, shard: Shard, completions: Sequence[Completion], *, again: bool = False
    ) -> Task:
        """Result: `Judged`. With `again` what is wanted is another answer to what was answered before."""
        ...

    def start_rescoring(self, rows: Sequence[Row], under: Sequence[WeightsRef]) -> Task:
        """Result: that of the learner's `check_logps`."""
        ...

    def start_learner(self, method: str, *args: Any) -> Task:
        """Result: what that method of `LearnerStage` returns. Its calls are made one after the other, as begun."""
        ...

    def first_done(self, tasks: Sequence[Task]) -> tuple[Task, Any]:
        """Wait for one of the tasks; it and its result. Raises what the task raised."""
        ...

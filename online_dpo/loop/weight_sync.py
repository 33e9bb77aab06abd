"""Pushes the policy to the generators, and checks that they hold the learner's weights (DESIGN invariant 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from online_dpo.errors import WeightMismatchError
from online_dpo.loop.stages import Event, Stages
from online_dpo.models.merging import Received
from online_dpo.statistics.samples import sampler_logps
from online_dpo.types import (
    Adapter,
    Completion,
    Row,
    TokenLogpRows,
    WeightsRef,
    derive_seed,
)

CHECKS = ("pushed", "rescored")
"""Kinds of the events that tell of a check."""

MIN_APPLIED = 0.5
"""The smallest share of an update in the generators' weights that goes without a warning."""

NUM_PROBE_ROWS = 8
NUM_PROBE_TOKENS = 16
MAX_PROBE_PROMPT = 48
"""Tokens of a probe's prompt: weights are seen in short rows as well, and both sides score them after every push."""

ROW_FACTOR = 10.0
"""How many times the tolerance a single row's mean may be: a tenth of the rows or fewer being stale would hide in the
mean over all tokens. Rounding must not reach it: in bfloat16 the worst single token is some tenths of a nat off, and a
row may be one token long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far two scorings of the same tokens are apart, in nats per token."""

    mean: float  # mean absolute difference
    max: float
    row_max: float  # the largest mean over one row's tokens
    num_tokens: int

    @classmethod
    def between(cls, left: TokenLogpRows, right: TokenLogpRows) -> Gap:
        rows = [[abs(a - b) for a, b in zip(x, y, strict=True)] for x, y in zip(left, right, strict=True)]
        rows = [row for row in rows if row]
        if not rows:
            return cls(mean=0.0, max=0.0, row_max=0.0, num_tokens=0)
        num_tokens = sum(map(len, rows))
        # `exceeds` treats a NaN as a mismatch; the mean lets it through to there.
        return cls(
            mean=sum(map(sum, rows)) / num_tokens,
            max=max(map(max, rows)),
            row_max=max(sum(row) / len(row) for row in rows),
            num_tokens=num_tokens,
        )

    def exceeds(self, tolerance: float) -> bool:
        """Whether the mean is above the tolerance, or a row's above `ROW_FACTOR` times it, or either is no number."""
        return not (self.mean <= tolerance and self.row_max <= ROW_FACTOR * tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A version of the policy, and another that generators would hold if its push was skipped; None = the base model.

    The other is the version before; of a policy that is sampled late it is the version after. Version 0 needs none.
    """

    version: int
    adapter: Adapter | None
    previous: (
        Adapter | None
    )  # the version before, or where that is sampled late the one after; meaningless at version 0
    is_learners: bool = True  # whether the learner's weights are of this version for as long as it is sampled

    @property
    def scored_under(self) -> list[WeightsRef]:
        """What checks score with: this policy as the learner has it, and the other version, which must differ."""
        policy: WeightsRef = "policy" if self.is_learners else self.adapter
        return [policy] if self.version == 0 else [policy, self.previous]


class Pusher:
    """Pushes a policy before something is sampled from it, and checks that it arrived."""

    def __init__(
        self,
        stages: Stages,
        probe: Sequence[Row],
        tolerance: float,
        rescored: int | Literal["all"] = "all",
        *,
        in_turns: bool = False,
    ) -> None:
        """Nothing is pushed yet.

        Args:
            stages: whose generators take the policy.
            probe: rows that both sides score after each push.
            tolerance: largest accepted mean gap, nats per token.
            rescored: how many samples of an engine's first shard the learner re-scores.
            in_turns: generators and learner share a GPU, so that the generators sleep while the learner works.
        """
        self._stages, self._probe, self._tolerance, self._num_rescored = stages, probe, tolerance, rescored
        self._in_turns = in_turns
        self._version: int | None = None

    def rest(self) -> None:
        """Let the generators sleep, where they take turns with the learner. What they hold counts no more."""
        if self._in_turns:
            self._version = None
            self._stages.sleep()

    def push(self, policy: Policy, round_index: int) -> Iterator[Event]:
        """Push, unless the generators hold this version already.

        Raises:
            WeightMismatchError: other bytes arrived, or the probe set is scored differently.
        """
        if self._version == policy.version:
            return
        if self._in_turns:
            self._stages.wake()
        received = self._stages.push(policy.adapter, policy.version)
        check_digests(policy.adapter, received)
        learner = self._stages.learner.check_logps(self._probe, policy.scored_under)
        replicas = self._stages.probe(self._probe)
        probed = [check_gap("probe", *_gaps(found, learner), self._tolerance) for found in replicas]
        figures = max(probed, key=lambda replica: replica["probe_gap"])  # the log gets the one that is furthest off
        applied = [found.applied for found in received if found.applied is not None]
        figures |= {"applied": min(applied)} if applied else {}
        self._version = policy.version
        yield Event(kind="pushed", round_index=round_index, data={"policy_version": policy.version, **figures})

    def chosen_for_rescoring(self, completions: Sequence[Completion]) -> Sequence[Completion]:
        """The samples of a shard that the learner re-scores, evenly spread over it."""
        wanted = self._num_rescored
        if wanted == "all" or wanted >= len(completions):
            return completions
        return [completions[i * len(completions) // wanted] for i in range(wanted)]

    def check_samples(self, completions: Sequence[Completion], logps: Sequence[TokenLogpRows]) -> dict[str, Any]:
        """Compare the sampler's log-probs with the learner's on the samples that it re-scored.

        Args:
            completions: of an engine's first shard since a push.
            logps: the learner's, of `chosen_for_rescoring(completions)`, under `Policy.scored_under`.

        Raises:
            WeightMismatchError: they differ by more than the tolerance.
        """
        found = sampler_logps(self.chosen_for_rescoring(completions))
        return check_gap("sampled", *_gaps(found, logps), self._tolerance)


def _gaps(found: TokenLogpRows, learner: Sequence[TokenLogpRows]) -> tuple[Gap, Gap | None]:
    """Between what an engine says and the learner under its policy, and under the version before it."""
    current, *before = [Gap.between(found, logps) for logps in learner]
    return current, before[0] if before else None


def check_digests(expected: Adapter | None, received: Sequence[Received]) -> None:
    """Raises WeightMismatchError unless every generator received exactly the learner's bytes."""
    digest = None if expected is None else expected.digest
    for replica, found in enumerate(received):
        if found.digest != digest:
            raise WeightMismatchError(
                f"generator {replica} received adapter {str(found.digest)[:12]} and the learner sent "
                f"{str(digest)[:12]}; the weights were changed on the way"
            )


def check_versions(
    expected: int, completions: Sequence[Completion], remark: str = "nothing of its shard was kept"
) -> None:
    """Raises WeightMismatchError unless every completion was sampled from the expected version (DESIGN invariant 3)."""
    for completion in completions:
        if completion.policy_version != expected:
            raise WeightMismatchError(
                f"completion {completion.prompt_id}/{completion.sample_index} was sampled from policy version "
                f"{completion.policy_version} and version {expected} was asked for; {remark}"
            )


def check_gap(what: str, gap: Gap, previous: Gap | None, tolerance: float) -> dict[str, float | int | bool]:
    """Stop the run when generator and learner disagree on the same tokens.

    Args:
        what: names the comparison in the error and in the returned keys.
        gap: generator against the learner's current policy.
        previous: generator against the learner's policy one version earlier; None at version 0.
        tolerance: largest accepted mean gap, nats per token; of a single row `ROW_FACTOR` times as much.

    Returns:
        Figures for the log. `<what>_has_power` is False where the previous version lies within the tolerance too: then
        this check could not have told a skipped push from a done one.

    Raises:
        WeightMismatchError: the mean gap, of all tokens or of a row, is above the tolerance or is not a number.
    """
    if gap.exceeds(tolerance):
        raise WeightMismatchError(
            f"generator and learner disagree on the {what}: {gap.mean:.3g} nats per token on average "
            f"({gap.row_max:.3g} in the worst row, max {gap.max:.3g}, {gap.num_tokens} tokens), tolerance "
            f"{tolerance:.3g} ({ROW_FACTOR * tolerance:.3g} for a row); the generator holds stale or wrong weights, so "
            f"nothing sampled from it was kept. If policy 0 is as far off, the weights are right and the model itself "
            f"rounds by so much: then raise generator.tolerance"
        )
    figures: dict[str, float | int | bool] = {
        f"{what}_gap": gap.mean,
        f"{what}_gap_row_max": gap.row_max,
        f"{what}_gap_max": gap.max,
    }
    if previous is not None:
        figures[f"{what}_gap_previous"] = previous.mean
        figures[f"{what}_has_power"] = previous.mean > tolerance
    return figures


def probe_rows(prompts: Sequence[Sequence[int]], vocab_size: int, run_seed: int, *, max_tokens: int) -> list[Row]:
    """The fixed probe set: real prompts, each followed by tokens drawn uniformly, the same for the whole run.

    Args:
        prompts: token ids of each; the first `NUM_PROBE_ROWS` are taken, each cut to `MAX_PROBE_PROMPT`.
        vocab_size: tokens are drawn below it.
        run_seed: of the run.
        max_tokens: of a row. Prompts are cut to it: where completions are short, the longest prompt and a probe's
            tokens do not fit into the engine's context, which also wants room for one sampled token.
    """
    rows = []
    for index, prompt_ids in enumerate(prompts[:NUM_PROBE_ROWS]):
        tokens = tuple(derive_seed(run_seed, "probe", index, i) % vocab_size for i in range(NUM_PROBE_TOKENS))
        tokens = tokens[: max(1, max_tokens - 1)]
        prompt_ids = prompt_ids[: max(1, min(MAX_PROBE_PROMPT, max_tokens - len(tokens)))]
        rows.append(Row(prompt_ids=tuple(prompt_ids), completion_ids=tokens))
    return rows

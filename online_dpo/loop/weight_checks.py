"""Does the generator hold the learner's weights? (DESIGN invariant 2.) Pure comparisons; the loop says when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from online_dpo.errors import WeightMismatchError
from online_dpo.types import Adapter, Completion, Row, TokenLogpRows, derive_seed

CHECKS = ("pushed", "rescored")
"""Kinds of the events that tell of a check."""

NUM_PROBE_ROWS = 8
NUM_PROBE_TOKENS = 16

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


def check_digests(expected: Adapter | None, received: Sequence[str | None]) -> None:
    """Raises WeightMismatchError unless every generator received exactly the learner's bytes."""
    digest = None if expected is None else expected.digest
    for replica, found in enumerate(received):
        if found != digest:
            raise WeightMismatchError(
                f"generator {replica} received adapter {str(found)[:12]} and the learner sent {str(digest)[:12]}; "
                f"the weights were changed on the way"
            )


def check_versions(expected: int, completions: Sequence[Completion]) -> None:
    """Raises WeightMismatchError unless every completion was sampled from the expected version (DESIGN invariant 3)."""
    for completion in completions:
        if completion.policy_version != expected:
            raise WeightMismatchError(
                f"completion {completion.prompt_id}/{completion.sample_index} was sampled from policy version "
                f"{completion.policy_version} and version {expected} was asked for; nothing of its shard was kept"
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
            f"nothing sampled from it was kept"
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
        prompts: token ids of each; the first `NUM_PROBE_ROWS` are taken.
        vocab_size: tokens are drawn below it.
        run_seed: of the run.
        max_tokens: of a row. Prompts are cut to it: where completions are short, the longest prompt and a probe's
            tokens do not fit into the engine's context, which also wants room for one sampled token.
    """
    rows = []
    for index, prompt_ids in enumerate(prompts[:NUM_PROBE_ROWS]):
        tokens = tuple(derive_seed(run_seed, "probe", index, i) % vocab_size for i in range(NUM_PROBE_TOKENS))
        tokens = tokens[: max(1, max_tokens - 1)]
        prompt_ids = prompt_ids[: max(1, max_tokens - len(tokens))]
        rows.append(Row(prompt_ids=tuple(prompt_ids), completion_ids=tokens))
    return rows

"""Whether a round's update moved the policy at all, or far too much: figures of its steps, and what to try instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from online_dpo.config.learner import LearnerSection

MIN_STEP_NATS, MIN_ROUND_NATS = 0.0015, 0.05
"""A round moved too little if its log-ratios stay within so many nats per completion for each step, and in all.

A sum of log-ratios over a completion has a variance of about twice its KL, so 0.05 nats are a KL near 0.001: no judge
tells such samples from those before. Rates that learn move the log-ratios by ten times as much and more in each step.
"""

MAX_TOKEN_NATS = 0.3
"""A round moved too far if the mean log-ratio of a token changed by more than this many nats in it."""

GOOD_STEP_NATS, GOOD_TOKEN_NATS = 0.02, 0.05
"""Per completion and step, and per token and round: about what the rates in docs/results.md that learn do."""

MAX_RAISE, MIN_RAISE, MIN_CUT, MAX_CUT = 100.0, 3.0, 0.5, 0.1
"""What one proposal multiplies the rate by, at most and at least: movement is proportional to it only nearby."""

_SIDES = ("chosen", "rejected")


def update_warnings(summary: Mapping[str, Any], section: LearnerSection) -> Iterator[str]:
    """At most one sentence about the size of a round's update, with a learning rate to try.

    It needs log-ratios to an earlier policy of the run, measured in at least two steps: what a step reports is what the
    steps before it did.

    Args:
        summary: of the round; `Tally.summary` is part of it.
        section: with the peak rate. Where a schedule or the warm-up holds a round below it, less movement is expected.
    """
    num_updates = summary.get("num_steps", 0) - summary.get("num_skipped_steps", 0) - 1
    means = {side: summary.get(f"{side}_log_ratio") for side in _SIDES}
    ends = {side: summary.get(f"{side}_log_ratio_end") for side in _SIDES}
    seen = [abs(value) for value in (*means.values(), *ends.values()) if value is not None]
    if num_updates < 1 or not seen:
        return
    peak_lr = section.peak_lr
    share = summary["lr"] / peak_lr  # of the full rate, mean over the round
    expected = share * min(MIN_STEP_NATS * num_updates, MIN_ROUND_NATS)
    if max(seen) < expected:
        moved = max(max(seen), 1e-9)
        factor = min(max(share * GOOD_STEP_NATS * num_updates / moved, MIN_RAISE), MAX_RAISE)
        yield (
            f"the update moved the policy by less than can be noticed: log-ratios stayed within {max(seen):.1g} nats "
            f"per completion; learner.lr is {peak_lr:g}, try {_round(peak_lr * factor)}"
        )
        return
    # Where the movement is even, the mean over the round is half of the way to its end.
    sides = [(ends[side], means[side]) for side in _SIDES]
    moves = [2.0 * abs(end - mean) for end, mean in sides if end is not None and mean is not None]
    tokens = tokens_of_a_completion(summary)
    if tokens is not None and moves and max(moves) > MAX_TOKEN_NATS * tokens:
        factor = min(max(GOOD_TOKEN_NATS * tokens / max(moves), MAX_CUT), MIN_CUT)
        yield (
            f"the update moved the policy very far: log-ratios changed by about {max(moves):.0f} nats per completion "
            f"of {tokens:.0f} tokens, and the samples may degenerate; learner.lr is {peak_lr:g}, try "
            f"{_round(peak_lr * factor)}"
        )


def tokens_of_a_completion(summary: Mapping[str, Any]) -> float | None:
    """Mean length of what the steps trained on."""
    num_completions = 2.0 * summary.get("num_trained_pairs", 0.0) or summary.get("num_trained_items", 0.0)
    return summary["num_trained_tokens"] / num_completions if num_completions else None


def _round(rate: float) -> str:
    """To one significant digit, as a person would write it."""
    return f"{float(f'{rate:.0e}'):g}"

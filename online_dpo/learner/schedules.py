"""Learning rate and beta over the whole run: pure functions of where the run stands."""

from __future__ import annotations

import math
from collections.abc import Callable

from online_dpo.config.learner import LearnerSection
from online_dpo.config.objective.beta import AdaptiveBeta, BetaSection, CosineBeta, LinearBeta

_FACTORS: dict[str, Callable[[float], float]] = {
    "constant": lambda position: 1.0,
    "linear": lambda position: 1.0 - position,
    "cosine": lambda position: 0.5 * (1.0 + math.cos(math.pi * position)),
}


def run_position(round_index: int, step: int, *, num_steps: int, rounds: int) -> float:
    """How much of the run lies before this optimizer step, in [0, 1).

    Rounds may have different numbers of steps, which are unknown in advance, so each round counts the same:
    `(round + fraction of the round) / rounds`.

    Args:
        round_index: 0-based.
        step: 0-based within the round.
        num_steps: optimizer steps of this round.
        rounds: of the run.
    """
    return (round_index + step / num_steps) / rounds


def learning_rate(section: LearnerSection, *, position: float, global_step: int) -> float:
    """The learning rate of one optimizer step: `lr * schedule(position) * warm-up(global_step)`.

    Args:
        section: `lr`, `schedule` and `warmup_steps`.
        position: of the run, from `run_position`.
        global_step: optimizer steps of the run before this one. The first warm-up step has `1 / warmup_steps` of
            the rate, not zero: a step at zero would waste its pairs.
    """
    warmup = min(1.0, (global_step + 1) / section.warmup_steps) if section.warmup_steps else 1.0
    return section.peak_lr * _FACTORS[section.schedule](position) * warmup


def beta_at(section: BetaSection, position: float) -> float:
    """Beta of one optimizer step, before the round's factor.

    Args:
        section: a number, a schedule, or the start of an adaptive beta, whose changes are in the factor.
        position: of the run, from `run_position`.
    """
    match section:
        case LinearBeta() | CosineBeta():
            return section.end + (section.start - section.end) * _FACTORS[section.type](position)
        case AdaptiveBeta():
            return section.start
    return float(section)

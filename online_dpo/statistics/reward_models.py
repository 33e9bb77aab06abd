"""How well a reward model tells held-out preferences: accuracy, calibration, and what length alone explains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from online_dpo.statistics.comparisons import calibration_error, reliability
from online_dpo.statistics.samples import mean, paired_bootstrap


def describe_preferences(
    scores: Sequence[tuple[float, float]], lengths: Sequence[tuple[int, int]], prompts: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """The figures of `P` held-out pairs, whose chosen answer should have the higher score.

    Args:
        scores: `[P]` of the chosen and the rejected answer.
        lengths: `[P]` of the same answers, in tokens.
        prompts: `[P]` what tells the prompts apart; all pairs of a prompt are resampled together.
        seed: of the bootstrap.

    Returns:
        `accuracy`: share of pairs whose chosen answer scores higher, equal scores (`num_tied`) being half a pair;
        `log_loss`: mean of -log sigmoid(score of the chosen - score of the rejected), nats, which is the loss that is
        trained on and log 2 for a model that knows nothing; both with `_low` and `_high` of a 95 % bootstrap over
        prompts. `ece`, `calibration`: expected calibration error, and its bins: sigmoid(|difference|) is the confidence
        that the higher score is right. `longer_accuracy`: what preferring the longer answer alone scores, equal lengths
        being half a pair. `accuracy_where_shorter`: the accuracy on the `num_where_shorter` pairs whose chosen answer
        is the shorter. `length_correlation`: of the score's difference with the length's, from -1 to 1, both ways round
        of every pair, so that it does not depend on which is the chosen one. None = there is nothing to take it of.
    """
    margins = [chosen - rejected for chosen, rejected in scores]
    longer = [chosen - rejected for chosen, rejected in lengths]
    right = [_half_at_zero(margin) for margin in margins]
    forecasts = [(1.0 / (1.0 + math.exp(-abs(margin))), margin > 0.0) for margin in margins if margin]
    shorter = [value for value, difference in zip(right, longer, strict=True) if difference < 0]
    flat = [score for pair in scores for score in pair]
    center = math.fsum(flat) / len(flat)
    return {
        "num_pairs": len(margins),
        "num_prompts": len(set(prompts)),
        "num_tied": margins.count(0.0),
        **_with_interval("accuracy", right, prompts, seed),
        **_with_interval("log_loss", [_softplus(-margin) for margin in margins], prompts, seed),
        "ece": calibration_error(forecasts),
        "calibration": reliability(forecasts),
        "longer_accuracy": mean([_half_at_zero(difference) for difference in longer]),
        "num_where_shorter": len(shorter),
        "accuracy_where_shorter": mean(shorter),
        "length_correlation": _correlation(margins, longer),
        "score_mean": center,
        "score_deviation": math.sqrt(math.fsum((score - center) ** 2 for score in flat) / len(flat)),
    }


def _with_interval(name: str, values: Sequence[float], prompts: Sequence[str], seed: int) -> dict[str, float]:
    """The mean over pairs, with the interval of a bootstrap over prompts."""
    totals: dict[str, float] = {}
    for prompt, value in zip(prompts, values, strict=True):
        totals[prompt] = totals.get(prompt, 0.0) + value
    scale = len(totals) / len(values)  # the mean over prompts is then the mean over pairs
    scaled = {prompt: scale * total for prompt, total in totals.items()}
    found = paired_bootstrap(dict.fromkeys(scaled, 0.0), scaled, seed=seed)
    assert found is not None  # there is at least one pair
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def _half_at_zero(value: float) -> float:
    return 0.5 if value == 0 else float(value > 0)


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Pearson's r of differences, every pair taken both ways round, so that both means are 0."""
    squares = math.fsum(x * x for x in left) * math.fsum(y * y for y in right)
    return math.fsum(x * y for x, y in zip(left, right, strict=True)) / math.sqrt(squares) if squares else None

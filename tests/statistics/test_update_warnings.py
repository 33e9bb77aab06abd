"""A round that moved too little or too far says so and names learner.lr, on figures that runs have recorded."""

from __future__ import annotations

from typing import Any

import pytest

from online_dpo.config.learner import LearnerSection
from online_dpo.statistics.update_warnings import update_warnings


def figures(chosen: float, rejected: float, chosen_end: float, rejected_end: float, **changes: Any) -> dict[str, Any]:
    """Of a round of 8 steps with 128 pairs of 40 tokens; means of the log-ratios, and their values at the last step."""
    found = {"chosen_log_ratio": chosen, "rejected_log_ratio": rejected}
    ends = {"chosen_log_ratio_end": chosen_end, "rejected_log_ratio_end": rejected_end}
    counts = {"num_steps": 8, "num_skipped_steps": 0, "num_trained_pairs": 128.0, "num_trained_tokens": 2 * 128 * 40.0}
    return {**counts, **found, **ends, "lr": 7e-4, **changes}


def said(summary: dict[str, Any], peak_lr: float = 7e-4) -> list[str]:
    return list(update_warnings(summary, LearnerSection(lr=peak_lr)))


QUICKSTART = [  # as its five rounds recorded them
    (-0.00703, -0.0413, -0.00496, -0.12642),
    (0.16676, -0.06441, 0.25162, -0.18629),
    (0.02541, -0.14137, -0.13718, -0.33891),
    (0.32107, -0.30072, 0.19493, -0.49992),
    (-0.26348, -0.73815, -0.91285, -1.6865),
]


@pytest.mark.parametrize("ratios", QUICKSTART)
def test_the_rounds_of_the_quickstart_are_left_alone(ratios: tuple[float, float, float, float]) -> None:
    assert said(figures(*ratios)) == []


def test_a_round_that_moved_by_less_than_can_be_noticed_names_the_rate_and_one_to_try() -> None:
    """The first round of the quickstart, shrunk as if its rate had been the old default of 5e-6."""
    tiny = [value * 5e-6 / 7e-4 for value in QUICKSTART[0]]
    [warning] = said(figures(*tiny, lr=5e-6), peak_lr=5e-6)
    assert "less than can be noticed" in warning and "within 0.0009 nats" in warning
    assert warning.endswith("learner.lr is 5e-06, try 0.0005")  # at most a hundred times as much


def test_a_round_that_moved_too_far_names_a_smaller_rate() -> None:
    """Recorded with 57 steps at 7e-4, on completions of 45 tokens; six rounds later the KL was 45 nats."""
    counts = {"num_steps": 57, "num_trained_pairs": 900.0, "num_trained_tokens": 2 * 900 * 45.0}
    [warning] = said(figures(-7.53947, -10.12368, -21.53395, -26.06703, **counts))
    assert "very far" in warning and "about 32 nats per completion of 45 tokens" in warning
    assert warning.endswith("learner.lr is 0.0007, try 7e-05")


@pytest.mark.parametrize(
    "summary",
    [
        pytest.param({"num_steps": 8, "num_skipped_steps": 0, "lr": 5e-6, "loss": 0.69}, id="without a reference"),
        pytest.param(figures(0.0, 0.0, 0.0, 0.0, num_steps=1), id="its only step was measured before it was taken"),
        pytest.param({"num_steps": 3, "num_skipped_steps": 3}, id="every step was skipped"),
        # One step at a healthy rate, then the measurement; and the last round of a schedule that falls to zero.
        pytest.param(figures(0.0104, 0.0068, 0.02086, 0.01366, num_steps=2), id="a round of two steps"),
        pytest.param(figures(0.004, 0.0, 0.006, 0.0, lr=0.06 * 7e-4), id="the end of a schedule"),
        # KTO's last step without a desirable answer reports only the others.
        pytest.param(
            {"num_steps": 8, "num_skipped_steps": 0, "lr": 7e-4, "rejected_log_ratio": -0.1, "num_trained_items": 9.0,
             "num_trained_tokens": 360.0},
            id="one side only",
        ),
    ],
)  # fmt: skip
def test_what_says_nothing_about_the_rate_is_left_alone(summary: dict[str, Any]) -> None:
    assert said(summary) == []

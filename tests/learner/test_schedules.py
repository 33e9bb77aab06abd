from __future__ import annotations

import math
from collections import Counter

import pytest

from online_dpo.config.learner import LearnerSection
from online_dpo.learner.grouping import pack_by_tokens, round_batches
from online_dpo.learner.schedules import learning_rate, run_position


def test_position_counts_every_round_alike():
    found = [run_position(r, s, num_steps=n, rounds=4) for r, n in ((0, 2), (1, 5), (3, 1)) for s in range(n)]
    assert found == pytest.approx([0, 1 / 8, 5 / 20, 6 / 20, 7 / 20, 8 / 20, 9 / 20, 3 / 4])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2.0, 2.0, 2.0, 2.0]),
        ("linear", [2.0, 1.5, 1.0, 0.5]),
        ("cosine", [2.0, 1.0 + math.sqrt(0.5), 1.0, 1.0 - math.sqrt(0.5)]),
    ],
)
def test_schedules_by_hand(schedule, expected):
    section = LearnerSection(lr=2.0, schedule=schedule)
    found = [learning_rate(section, position=p, global_step=100) for p in (0.0, 0.25, 0.5, 0.75)]
    assert found == pytest.approx(expected)


def test_warm_up_multiplies_the_first_steps_of_the_run_and_none_is_zero():
    section = LearnerSection(lr=1.0, schedule="linear", warmup_steps=4)
    found = [learning_rate(section, position=0.1 * s, global_step=s) for s in range(6)]
    assert found == pytest.approx([0.25, 0.9 * 0.5, 0.8 * 0.75, 0.7, 0.6, 0.5])


@pytest.mark.parametrize(("num_pairs", "sizes"), [(33, [11, 11, 11]), (32, [16, 16]), (5, [5]), (17, [9, 8]), (0, [])])
def test_batches_of_an_epoch_are_nearly_equal_and_hold_every_pair_once(num_pairs, sizes):
    batches = round_batches(num_pairs, 16, epochs=2, seed=3, round_index=1)
    assert [len(batch) for batch in batches] == sizes * 2
    first, second = batches[: len(sizes)], batches[len(sizes) :]
    for epoch in (first, second):
        assert sorted(i for batch in epoch for i in batch) == list(range(num_pairs))
    if num_pairs:
        assert first != second


def test_batches_derive_from_seed_and_round():
    base = round_batches(40, 16, epochs=1, seed=3, round_index=1)
    assert round_batches(40, 16, epochs=1, seed=3, round_index=1) == base
    assert round_batches(40, 16, epochs=1, seed=3, round_index=2) != base
    assert round_batches(40, 16, epochs=1, seed=4, round_index=1) != base


def test_packing_groups_by_length_within_the_budget():
    lengths = [3, 10, 4, 9, 30, 3]
    tokens = [2 * length for length in lengths]
    groups = pack_by_tokens(lengths, tokens, budget=40, padded=True)
    assert groups == [[4], [1, 3], [2, 0, 5]]  # 30 exceeds the budget alone; 2 * 2 * 10 = 40; 3 * 2 * 4 = 24
    assert Counter(i for group in groups for i in group) == Counter(range(6))
    # Without padding a short item costs its own tokens only: 20 + 18 and then 8 + 6 + 6.
    assert pack_by_tokens(lengths, tokens, budget=38) == [[4], [1, 3], [2, 0, 5]]
    assert pack_by_tokens(lengths, tokens, budget=38, padded=True) == [[4], [1], [3, 2], [0, 5]]

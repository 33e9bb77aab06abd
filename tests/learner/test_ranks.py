"""A learner of two ranks in real processes: what it computes is what one process computes, and both always agree."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ranks_kit
from learner_kit import make_pairs, make_spec, with_dropout
from objective_kit import OBJECTIVES, items_for
from ranks_kit import TwoRanks

from online_dpo.learner.grouping import deal, deal_rows
from online_dpo.types import Row


@pytest.fixture(scope="module")
def two() -> Iterator[TwoRanks]:
    found = TwoRanks()
    yield found
    found.close()


def close_to(values: dict[str, Any], expected: dict[str, Any], rel: float) -> bool:
    return values.keys() == expected.keys() and all(
        values[name] == pytest.approx(expected[name], rel=rel, abs=rel) for name in values
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [*((name, 7) for name in OBJECTIVES), *((name, 1) for name in ("sigmoid", "aot", "bco_pair", "kto"))],
)
def test_gradients_are_those_of_one_process(two, tiny, given, other, name, count):
    """DESIGN invariant 7: also where losses are coupled, and where a rank gets no item."""
    objective = OBJECTIVES[name]
    spec = make_spec(tiny, given, batch_pairs=14, micro_batch_tokens=60, objective=objective)
    items = items_for(objective, count)[: 2 * count - 1]
    expected, ready, figures = ranks_kit.first_gradients(None, spec, items, other)
    found, also_ready, also_figures = two.do(ranks_kit.first_gradients, spec, items, other)
    assert found.keys() == expected.keys() and any(max(map(abs, g)) > 0 for g in expected.values())
    for key, gradient in found.items():
        assert gradient == pytest.approx(expected[key], rel=1e-10, abs=1e-11)
    assert close_to(also_figures, figures, 1e-9)
    for one, another in zip(ready, also_ready, strict=True):
        assert replace(one, **{n: getattr(another, n) for n in reference_fields(one)}) == another
        assert [getattr(one, n) for n in reference_fields(one)] == pytest.approx(
            [getattr(another, n) for n in reference_fields(one)], rel=1e-9, nan_ok=True
        )


def reference_fields(item: Any) -> list[str]:
    return [name for name in item.__dataclass_fields__ if "ref_" in name and getattr(item, name) is not None]


STEPS = [(index, step) for index in range(2) for step in range(4)]


@pytest.mark.parametrize("name", ["sigmoid", "bco_pair", "kto"])
def test_a_run_goes_on_with_another_number_of_ranks(two, tiny, given, other, name):
    """Checkpoints do not know how many ranks there are; the same number gives the same bytes, interrupted or not."""
    objective = OBJECTIVES[name]
    spec = make_spec(tiny, given, batch_pairs=2, objective=objective)
    items = items_for(objective, 7)[:7]  # 2, 2, 2 and 1 a step
    expected, last = ranks_kit.rounds(None, spec, items, other, STEPS)
    found, files = two.do(ranks_kit.rounds, spec, items, other, STEPS)
    for one, another in zip(expected, found, strict=True):
        assert close_to(one, another, 2e-3)
    assert json.loads(files["state.json"]).keys() == json.loads(last["state.json"]).keys()
    # Two, interrupted, are two.
    head, middle = two.do(ranks_kit.rounds, spec, items, other, STEPS[:5])
    tail, end = two.do(ranks_kit.rounds, spec, items, other, STEPS[5:], middle)
    assert head + tail == found and end == files
    # One and then two, two and then one, are about what either is all along.
    _, alone = ranks_kit.rounds(None, spec, items, other, STEPS[:5])
    for rest, _ in (
        two.do(ranks_kit.rounds, spec, items, other, STEPS[5:], alone),
        ranks_kit.rounds(None, spec, items, other, STEPS[5:], middle),
    ):
        assert all(close_to(one, another, 2e-3) for one, another in zip(rest, expected[5:], strict=True))


def test_dropout_has_masks_of_its_own_on_each_rank_and_the_same_every_time(two, tiny, given):
    spec = make_spec(tiny, with_dropout(given, 0.5), batch_pairs=2, objective=OBJECTIVES["aot"])
    twins = make_pairs(1) * 2
    found, files = two.do(ranks_kit.rounds, spec, twins, given, [(0, 0), (1, 0)])
    assert two.do(ranks_kit.rounds, spec, twins, given, [(0, 0), (1, 0)]) == (found, files)
    # With one mask for both ranks, a batch of twins would have exactly the values of one of them.
    single, _ = ranks_kit.rounds(None, spec, twins[:1], given, [(0, 0)])
    assert found[0]["chosen_logps"] != single[0]["chosen_logps"]


POISON = {
    "loss": {"chosen_ref_logps": math.nan},
    "gradient": {"weight": 1e38},  # a finite loss, whose gradient's norm overflows float32
    "KL estimate": {"kl_ref_logps": -math.inf},
}


@pytest.mark.parametrize("culprits", [[0], [1], [0, 1]], ids=["first rank", "second rank", "both ranks"])
@pytest.mark.parametrize(
    ("what", "name"), [("loss", "sigmoid"), ("gradient", "sigmoid"), ("loss", "aot"), ("KL estimate", "kto")]
)
def test_what_is_not_finite_on_one_rank_skips_the_step_on_all(two, tiny, given, what, name, culprits):
    spec = make_spec(tiny, given, batch_pairs=4, objective=OBJECTIVES[name])
    items = items_for(OBJECTIVES[name], 8)[:8]
    skipped, bad_ids, is_unchanged, after = two.do(ranks_kit.skip, spec, items, given, POISON[what], culprits)
    assert (skipped["skipped"], skipped["bad_value"]) == (1.0, what)
    assert set(skipped["bad_ids"]) == set(bad_ids) and len(bad_ids) == len(culprits)
    assert is_unchanged and math.isfinite(after["grad_norm"])


def test_scores_come_in_the_order_asked_for(two, tiny, given, other):
    spec, pairs = make_spec(tiny, given, micro_batch_tokens=40), make_pairs(6)
    under = ["policy", None, other]
    expected = ranks_kit.scores(None, spec, pairs, under)
    found = two.do(ranks_kit.scores, spec, pairs, under)
    for one, another in zip(expected, found, strict=True):
        assert (one.entropies is None) == (another.entropies is None)
        for rows in ("token_logps", "entropies"):
            for a, b in zip(getattr(one, rows) or (), getattr(another, rows) or (), strict=True):
                assert a == pytest.approx(b, abs=1e-5)
    assert two.do(ranks_kit.scores, spec, pairs[:1], [None])[0].token_logps  # one prompt: nothing for the second rank


def test_all_ranks_have_the_first_one_s_weights(two, tiny, given):
    """Would catch processors that round differently, and drift apart."""
    (first, drifted), (second, _) = two.do_both(ranks_kit.drifting, make_spec(tiny, given), make_pairs(4))
    assert drifted and first == second


def test_sums_are_taken_piece_by_piece(two):
    values = [[float(i) for i in range(10)], [0.5 * i for i in range(10)]]
    assert two.do(ranks_kit.add, values, 3) == [1.5 * i for i in range(10)]


def test_items_are_dealt_by_tokens():
    assert deal([5, 9, 4, 3, 1], 2) == [[1, 3], [0, 2, 4]]  # 9 and then 3; 5 with 4, and then 1
    assert deal([7, 7, 7], 2) == [[0, 2], [1]]
    assert deal([7], 3) == [[0], [], []] and deal([], 2) == [[], []]
    assert deal([3, 1, 2], 1) == [[0, 1, 2]]
    rows = [Row(prompt_ids=(p,) * 3, completion_ids=(1,) * n) for p, n in ((1, 9), (2, 2), (1, 1), (3, 2), (2, 1))]
    assert deal_rows(rows, 2) == [[0, 2], [1, 3, 4]]  # 16 tokens of the first prompt; 9 and 5
    assert deal_rows(rows, 1) == [[0, 1, 2, 3, 4]]

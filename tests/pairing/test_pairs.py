"""Pairing: tables of hand-made cases; the properties are in `test_pair_properties`."""

from __future__ import annotations

import math
import sys
from typing import Any, get_args

import pytest
from pairing_kit import FAILED, FOUR, comparisons, completion, only_outcome, pair_up, prompt, scores, winners

from online_dpo.config.pairing import Strategy
from online_dpo.pairing.opinions import PROBABILITY_EPS
from online_dpo.pairing.pairs import OUTCOMES
from online_dpo.pairing.strategies import DROPS
from online_dpo.types import Completion, Verdict

STRATEGIES = [
    # verdicts, pairs of best_vs_worst, pairs of all_pairs
    (scores(0.5, 2.0, -1.0, 0.5), [(1, 2)], [(1, 0), (0, 2), (1, 2), (1, 3), (3, 2)]),
    (scores(1.0, 3.0, 3.0, 1.0), [(1, 0)], [(1, 0), (2, 0), (1, 3), (2, 3)]),  # equals: the lowest index
    (scores(1.0, "?", 2.0, FAILED), [(2, 0)], [(2, 0)]),
    (scores(1e308, -1e308, "?", "?"), [(0, 1)], [(0, 1)]),
    # A whole tournament: 2 beats all, 1 loses to all.
    (
        comparisons({(0, 1): 0.9, (0, 2): 0.2, (0, 3): 0.6, (1, 2): 0.1, (1, 3): 0.3, (2, 3): 1.0}),
        [(2, 1)],
        [(0, 1), (2, 0), (0, 3), (2, 1), (3, 1), (2, 3)],
    ),
    # Both orders: the mean of 0.8 and 1 - 0.6 is 0.6 for the one, of 0.9 and 1 - 0.1 is 0.9 for the other.
    (comparisons({(0, 1): 0.8, (1, 0): 0.6, (2, 3): 0.9, (3, 2): 0.1}), [(2, 3)], [(0, 1), (2, 3)]),
    # The weakest is 3, but the strongest never met it: the weakest opponent of the strongest loses.
    (comparisons({(0, 1): 0.9, (2, 3): 0.9, (1, 2): 0.4, (0, 2): "?"}), [(0, 1)], [(0, 1), (2, 1), (2, 3)]),
    # A silent completion takes its comparisons with it.
    ([*comparisons({(0, 1): 0.9, (0, 2): 0.7, (0, 3): 0.6}), scores("?", "?")[1]], [(0, 2)], [(0, 2), (0, 3)]),
    # Round the circle: equal strengths, so no best; but each comparison is a preference.
    (comparisons({(0, 1): 0.9, (1, 2): 0.9, (0, 2): 0.1, (0, 3): "?"}), [], [(0, 1), (2, 0), (1, 2)]),
]


@pytest.mark.parametrize(("verdicts", "best_vs_worst", "all_pairs"), STRATEGIES)
def test_strategies(verdicts: list[Verdict], best_vs_worst: list[Any], all_pairs: list[Any]) -> None:
    assert winners(pair_up(FOUR, verdicts)) == best_vs_worst
    assert winners(pair_up(FOUR, verdicts, strategy="all_pairs")) == all_pairs
    drawn = {tuple(winners(pair_up(FOUR, verdicts, strategy="random", seed=seed))) for seed in range(60)}
    assert drawn == {(pair,) for pair in all_pairs}, "random draws every pair that may be drawn, and no other"


OUTCOME_CASES = [
    ("paired", FOUR[:2], scores(1.0, 0.0), {}),
    ("too_few_completions", [], [], {}),
    ("too_few_completions", FOUR[:1], scores(1.0), {}),
    ("truncated", [completion(0), completion(1, cut=True)], scores(1.0, 0.0), {"truncated": "drop"}),
    ("empty_completions", [completion(0), completion(1, tokens=())], scores(1.0, 0.0), {}),
    ("empty_completions", [completion(i, tokens=()) for i in range(2)], scores(1.0, 0.0), {}),
    ("paired", [completion(0), completion(1, tokens=()), completion(2)], scores(1.0, 9.0, 0.0), {}),
    ("duplicates", [completion(0), completion(1, tokens=(10,))], scores(1.0, 0.0), {}),
    (
        "duplicates",
        [completion(0), completion(1, tokens=(10,)), completion(2, cut=True)],
        scores(1.0, 0.0, 5.0),
        {"truncated": "drop"},
    ),
    ("judge_failed", FOUR[:3], scores(FAILED, "?", 1.0), {}),
    ("abstained", FOUR[:3], scores("?", "?", 1.0), {}),
    ("abstained", FOUR[:2], comparisons({(0, 1): "?"}), {}),
    ("abstained", FOUR[:2], comparisons({(0, 1): 0.9, (1, 0): "?"}), {}),
    ("tie", FOUR[:3], scores(2.0, 2.0, 2.0), {}),
    ("tie", FOUR[:2], comparisons({(0, 1): 0.5}), {}),
    ("tie", FOUR[:2], comparisons({(0, 1): 0.7, (1, 0): 0.7}), {}),
    ("tie", FOUR[:2], scores(1e-20, 0.0), {}),  # its probability is one half in floating point
    (
        "tie",
        [completion(0, cut=True), completion(1)],
        scores(3.0, 1.0),
        {"truncated": "penalise", "truncated_penalty": 2.0},
    ),
    ("below_min_margin", FOUR[:2], scores(1.0, 0.5), {"min_margin": 0.51}),
    ("paired", FOUR[:2], scores(1.0, 0.5), {"min_margin": 0.5}),
    ("below_min_margin", FOUR[:2], comparisons({(0, 1): 0.7}), {"min_margin": 0.9}),  # logit(0.7) = 0.847
    ("paired", FOUR[:2], comparisons({(0, 1): 0.7}), {"min_margin": 0.84}),
]


@pytest.mark.parametrize("strategy", get_args(Strategy))
@pytest.mark.parametrize(("outcome", "completions", "verdicts", "options"), OUTCOME_CASES)
def test_outcomes(
    strategy: str, outcome: str, completions: list[Completion], verdicts: list[Verdict], options: dict[str, Any]
) -> None:
    result = pair_up(completions, verdicts, strategy=strategy, **options)
    assert only_outcome(result) == outcome
    assert len(result.pairs) == (outcome == "paired")


@pytest.mark.parametrize(
    ("verdicts", "options", "margin", "probability"),
    [
        (scores(3.0, 1.0), {}, 2.0, 1 / (1 + math.exp(-2.0))),
        (scores(1.0, 3.0), {}, 2.0, 1 / (1 + math.exp(-2.0))),
        (scores(1e308, -1e308), {}, sys.float_info.max, 1.0),
        (comparisons({(0, 1): 0.75}), {}, math.log(3.0), 0.75),
        (comparisons({(1, 0): 0.75}), {}, math.log(3.0), 0.75),
        (comparisons({(0, 1): 1.0}), {}, math.log((1 - PROBABILITY_EPS) / PROBABILITY_EPS), 1 - PROBABILITY_EPS),
        # Completion 1 was cut: 1 is taken off its side by default, from scores and logits alike.
        (scores(1.0, 3.0), {"truncated": "penalise"}, 1.0, 1 / (1 + math.exp(-1.0))),
        (scores(1.0, 3.0), {"truncated": "penalise", "truncated_penalty": 5.0}, 3.0, 1 / (1 + math.exp(-3.0))),
        (comparisons({(0, 1): 0.75}), {"truncated": "penalise"}, math.log(3.0) + 1, 3 * math.e / (1 + 3 * math.e)),
    ],
)
def test_margin_and_probability(
    verdicts: list[Verdict], options: dict[str, Any], margin: float, probability: float
) -> None:
    (pair,) = pair_up([completion(0), completion(1, cut=True)], verdicts, **options).pairs
    assert pair.margin == pytest.approx(margin, rel=1e-9)
    assert pair.probability == pytest.approx(probability, rel=1e-12)


def test_counts_and_order_over_several_prompts() -> None:
    prompts = [prompt("b"), prompt("a"), prompt("c")]
    completions = [
        *(completion(i, name="a") for i in range(3)),
        completion(3, name="a", tokens=(12,)),  # a copy of sample 2
        completion(0, name="b", cut=True),
        completion(1, name="b"),
        completion(2, name="b", tokens=()),
        *(completion(i, name="c") for i in range(2)),
    ]
    verdicts = [
        *scores(1.0, 2.0, 2.0, 9.0, name="a"),
        *scores(0.0, 1.0, 9.0, name="b"),
        *scores(FAILED, "cannot tell", name="c"),
    ]
    result = pair_up(completions, verdicts, prompts=prompts, strategy="all_pairs", min_margin=1.0)
    assert [(p.prompt.prompt_id, p.chosen.sample_index, p.rejected.sample_index) for p in result.pairs] == [
        ("b", 1, 0),
        ("a", 1, 0),
        ("a", 2, 0),
    ]
    assert result.outcomes == {**dict.fromkeys(OUTCOMES, 0), "paired": 2, "judge_failed": 1}
    assert result.counts == {
        "num_completions": 9,
        "num_truncated_completions": 1,
        "num_empty_completions": 1,
        "num_duplicate_completions": 1,
        "num_failed_completions": 1,
        "num_abstained_completions": 1,
        "num_comparisons": 5,
        **dict.fromkeys(DROPS, 0),
        "num_unjudged_comparisons": 1,
        "num_tied_comparisons": 1,
        "num_pairs": 3,
    }


def test_random_depends_on_round_and_prompt_only() -> None:
    """The draw of a prompt must not move when other prompts come or go: a resumed round pairs the same."""
    names = [f"p{i}" for i in range(20)]
    completions = [completion(i, name=name) for name in names for i in range(4)]
    verdicts = [v for name in names for v in scores(1.0, 2.0, 3.0, 4.0, name=name)]

    def draws(some: list[str], round_index: int = 0) -> dict[str, tuple[int, int]]:
        result = pair_up(
            [c for c in completions if c.prompt_id in some],
            [v for v in verdicts if v.prompt_id in some],
            prompts=[prompt(name) for name in some],
            strategy="random",
            round_index=round_index,
        )
        return {p.prompt.prompt_id: (p.chosen.sample_index, p.rejected.sample_index) for p in result.pairs}

    everything = draws(names)
    assert draws(names[7:9]) == {name: everything[name] for name in names[7:9]}
    assert draws(names, round_index=1) != everything


@pytest.mark.parametrize(
    ("completions", "verdicts", "message"),
    [
        (FOUR[:2], scores(1.0), "completion ('p', 1) has no verdict"),
        (FOUR[:2], scores(1.0, 2.0, 3.0), "a verdict is about completion ('p', 2), which was not sampled"),
        ([*FOUR[:2], completion(0)], scores(1.0, 2.0), "completion ('p', 0) is there twice"),
        (FOUR[:2], [*scores(1.0, 2.0), *scores(3.0)], "there are two verdicts on ('p', 0, None)"),
        ([completion(0, name="q")], scores(1.0, name="q"), "a completion answers prompt q, which was not drawn"),
    ],
)
def test_inconsistent_input_is_refused(completions: list[Completion], verdicts: list[Verdict], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        pair_up(completions, verdicts)
    assert str(caught.value) == message

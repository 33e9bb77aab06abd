"""Every strategy and filter on cases calculated by hand."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from pairing_kit import FAILED, FOUR, comparisons, completion, only_outcome, pair_up, prompt, scores, winners

from online_dpo.pairing.similarity import shingles, similarity
from online_dpo.pairing.strategies import DROPS
from online_dpo.types import Completion, Verdict

# 1 is the best with 4.0, then 3 with 3.0, 0 with 1.0, 2 with 0.5. Margins: 1>3 1.0, 1>0 3.0, 1>2 3.5, 3>0 2.0, 3>2 2.5,
# 0>2 0.5.
PLAIN = scores(1.0, 4.0, 0.5, 3.0)
INTRANSITIVE = comparisons({(0, 1): 0.95, (0, 2): 0.45, (1, 2): 0.7})
LENGTHS = [completion(i, tokens=tuple(range(n))) for i, n in enumerate((8, 10, 3, 11))]

CASES = [
    ("best_vs_second", FOUR, PLAIN, {}, (1, 3)),
    ("best_vs_second", FOUR, PLAIN, {"min_margin": 2.0}, (1, 0)),  # of those that the filters let pass
    ("best_vs_second", FOUR, scores(3.0, 3.0, 1.0, 2.0), {}, (0, 3)),  # an equal is no runner-up
    ("best_vs_second", FOUR, scores("?", 2.0, 1.0, FAILED), {}, (1, 2)),
    # 2 wins 0.9 and 0.8 of its two, 0 wins 0.9 and 0.1, 1 wins 0.1 and 0.2: the runner-up is 0.
    ("best_vs_second", FOUR[:3], comparisons({(0, 1): 0.9, (0, 2): 0.1, (1, 2): 0.2}), {}, (2, 0)),
    # 0 wins 0.95 and 0.45, 1 wins 0.05 and 0.7, 2 wins 0.55 and 0.3: 2 is next, but beats the best.
    ("best_vs_second", FOUR[:3], INTRANSITIVE, {}, (0, 1)),
    ("max_margin", FOUR, PLAIN, {}, (1, 2)),
    # The widest margin need not be the best's: 0 is the strongest (0.9 and 0.7).
    ("max_margin", FOUR[:3], comparisons({(0, 1): 0.9, (0, 2): 0.7, (1, 2): 0.05}), {}, (2, 1)),
    ("max_margin", FOUR, scores(0.0, 1.0, 1.0, 0.0), {}, (1, 0)),  # equals: the lowest indices
    ("min_margin", FOUR, PLAIN, {}, (0, 2)),
    ("min_margin", FOUR, PLAIN, {"min_margin": 0.6}, (1, 3)),  # the field is the least that the strategy may take
    ("min_margin", FOUR, PLAIN, {"min_margin": 2.0}, (3, 0)),
    ("min_margin", FOUR, scores(1.0, 1.0, 3.0, 8.0), {}, (2, 0)),  # a tie is no small margin
    # 1.25: 8 and 10 tokens go together, and 10 and 11, but not 8 and 11, nor 3 with any.
    ("length_controlled", LENGTHS, PLAIN, {}, (1, 0)),
    ("length_controlled", LENGTHS, PLAIN, {"max_length_ratio": 1.1}, (1, 3)),
    ("length_controlled", LENGTHS, PLAIN, {"max_length_ratio": 4.0}, (1, 2)),
    ("length_controlled", LENGTHS, PLAIN, {"max_length_ratio": 1.0}, "length_ratio"),
    ("length_controlled", LENGTHS, PLAIN, {"min_margin": 3.1}, "below_min_margin"),
    ("uncertain", FOUR, PLAIN, {}, (0, 2)),  # one judge: the probability that is closest to one half
    ("uncertain", FOUR[:3], comparisons({(0, 1): 0.9, (0, 2): 0.45, (1, 2): 0.5}), {}, (2, 0)),  # a tie is no label
]


@pytest.mark.parametrize(("strategy", "completions", "verdicts", "options", "expected"), CASES)
def test_a_strategy_s_choice(
    strategy: str, completions: list[Completion], verdicts: list[Verdict], options: dict[str, Any], expected: Any
) -> None:
    result = pair_up(completions, verdicts, strategy=strategy, **options)
    assert (winners(result) or only_outcome(result)) == ([expected] if isinstance(expected, tuple) else expected)


def test_best_vs_random_draws_whom_the_best_beats_and_nobody_else() -> None:
    def drawn(verdicts: list[Verdict], number: int = 4, **options: Any) -> set[tuple[int, int]]:
        some = FOUR[:number]
        found = [pair_up(some, verdicts, strategy="best_vs_random", seed=seed, **options) for seed in range(60)]
        return {winner for result in found for winner in winners(result)}

    assert drawn(PLAIN) == {(1, 0), (1, 2), (1, 3)}
    assert drawn(PLAIN, min_margin=3.0) == {(1, 0), (1, 2)}
    assert drawn(INTRANSITIVE, 3) == {(0, 1)}


def with_spread(verdicts: list[Verdict], *spreads: float) -> list[Verdict]:
    return [
        Verdict(
            prompt_id=v.prompt_id,
            first=v.first,
            second=v.second,
            score=v.score,
            probability=v.probability,
            uncertainty=spread,
        )
        for v, spread in zip(verdicts, spreads, strict=True)
    ]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        # Of scores the spread of the difference: 0 and 1 hypot(3, 1), 0 and 2 hypot(3, 2), 1 and 2 hypot(1, 2).
        (with_spread(scores(5.0, 1.0, 0.0), 3.0, 1.0, 2.0), (0, 2)),
        # Disagreement comes before closeness; among equals the closer one.
        (with_spread(comparisons({(0, 1): 0.9, (0, 2): 0.55, (1, 2): 0.3}), 0.3, 0.1, 0.3), (2, 1)),
        # Both orders: the mean of 0.1 and 0.5 is more than 0.2.
        (with_spread(comparisons({(0, 1): 0.9, (1, 0): 0.2, (0, 2): 0.6}), 0.1, 0.5, 0.2), (0, 1)),
        # Any finite uncertainty is allowed, and two of them may overflow when they are added.
        (with_spread(comparisons({(0, 1): 0.9, (1, 0): 0.2, (0, 2): 0.6}), 1.7e308, 1.7e308, 0.2), (0, 1)),
    ],
)
def test_uncertain_takes_what_the_judges_disagree_about(verdicts: list[Verdict], expected: tuple[int, int]) -> None:
    assert winners(pair_up(FOUR[:3], verdicts, strategy="uncertain")) == [expected]


def test_a_budget_goes_to_the_prompts_that_tell_most() -> None:
    names = ["a", "b", "c", "d", "e"]
    completions = [completion(i, name=name) for name in names for i in range(2)]
    margins = {"a": 0.5, "b": 3.0, "c": -0.1, "d": 0.5, "e": 0.0}
    verdicts = [v for name, margin in margins.items() for v in scores(margin, 0.0, name=name)]

    def labelled(budget: int) -> tuple[list[str], dict[str, int]]:
        prompts = [prompt(name) for name in reversed(names)]
        result = pair_up(completions, verdicts, prompts=prompts, strategy="uncertain", budget=budget)
        assert result.counts["num_comparisons_over_budget"] == result.outcomes["over_budget"]
        return [p.prompt.prompt_id for p in result.pairs], {k: v for k, v in result.outcomes.items() if v}

    assert labelled(1) == (["c"], {"paired": 1, "tie": 1, "over_budget": 3})
    assert labelled(2) == (["d", "c"], {"paired": 2, "tie": 1, "over_budget": 2}), "equals in the order of prompts"
    assert labelled(3) == (["d", "c", "a"], {"paired": 3, "tie": 1, "over_budget": 1})
    assert labelled(9) == (["d", "c", "b", "a"], {"paired": 4, "tie": 1})


@pytest.mark.parametrize(
    ("cap", "expected"),
    [
        (1, [(1, 2)]),
        (3, [(1, 0), (1, 2), (3, 2)]),  # 3.0, 3.5 and 2.5, in the order of indices
        (6, [(1, 0), (0, 2), (3, 0), (1, 2), (1, 3), (3, 2)]),
    ],
)
def test_a_cap_keeps_the_widest_margins(cap: int, expected: list[tuple[int, int]]) -> None:
    result = pair_up(FOUR, PLAIN, strategy="all_pairs", max_pairs_per_prompt=cap)
    assert winners(result) == expected
    assert result.counts["num_comparisons_over_cap"] == 6 - len(expected)


def test_the_least_score_of_a_chosen_answer() -> None:
    """Would catch the rejected one's score being looked at, and a bound that equality does not pass."""
    good = [(1, 0), (3, 0), (1, 2), (1, 3), (3, 2)]
    assert winners(pair_up(FOUR, PLAIN, strategy="all_pairs", min_chosen_score=3.0)) == good
    assert only_outcome(pair_up(FOUR, PLAIN, min_chosen_score=4.5)) == "below_min_chosen_score"
    cut = [completion(0), completion(1, cut=True)]
    penalised = {"truncated": "penalise", "truncated_penalty": 1.0, "min_chosen_score": 2.5}
    assert only_outcome(pair_up(cut, scores(0.0, 3.0), **penalised)) == "below_min_chosen_score"
    assert winners(pair_up(cut, scores(0.0, 3.5), **penalised)) == [(1, 0)]


def test_a_chosen_answer_without_a_score_never_passes_a_bound_on_scores() -> None:
    compared = comparisons({(0, 1): 0.9, (0, 2): 0.8, (1, 2): 0.3})
    result = pair_up(FOUR[:3], compared, strategy="all_pairs", min_chosen_score=-1e9)
    assert only_outcome(result) == "no_score" and result.counts["num_comparisons_without_score"] == 3
    half = [*compared, Verdict(prompt_id="p", first=2, score=1.0)]  # 2 > 1 has a score on its chosen side
    assert winners(pair_up(FOUR[:3], half, strategy="all_pairs", min_chosen_score=0.0)) == [(2, 1)]


def test_similarity_is_the_share_of_runs_of_three_words() -> None:
    a = shingles("the film was a quiet joy")  # 4 runs
    assert similarity(a, shingles("The film  was a\nquiet bore")) == 3 / 5
    assert similarity(a, shingles("joy quiet a was film the")) == 0.0, "order counts"
    assert similarity(shingles("so good"), shingles("so  GOOD")) == 1.0
    assert similarity(shingles("so good"), shingles("so good indeed")) == 0.0
    assert similarity(shingles(""), shingles(" ")) == 1.0


# 0 and 1 share 3 of 5 runs, 0 and 2 none, 1 and 2 none.
TEXTS = ["the film was a quiet joy", "the film was a quiet bore", "nothing here is new to me"]


def test_near_duplicates_never_meet() -> None:
    completions = [completion(i, text=text) for i, text in enumerate(TEXTS)]
    verdicts = scores(2.0, 0.0, 1.0)

    def found(threshold: float | None, strategy: str = "best_vs_worst", some: int = 3) -> Any:
        result = pair_up(
            completions[:some], verdicts[:some], near_duplicate=threshold, strategy=strategy, min_margin=0.5
        )
        return winners(result) or only_outcome(result)

    assert found(None) == found(0.61) == [(0, 1)]
    assert found(0.6) == [(0, 2)], "the worst of those that are different enough"
    assert found(0.6, "all_pairs") == [(0, 2), (2, 1)], "both stay, and neither is preferred to the other"
    assert found(0.6, some=2) == "near_duplicates"


def test_answers_of_one_text_count_once_where_the_config_says_so() -> None:
    """The judge saw one text: that two token sequences make it tells nothing. The one that was not cut stays."""
    completions = [
        completion(0, tokens=(7, 8), text="so good", cut=True),
        completion(1, tokens=(9, 3), text="so good"),
        completion(2, tokens=(9, 2), text="so good"),
        completion(3, text="so bad"),
    ]
    verdicts = scores(1.0, 2.0, 3.0, 0.0)
    assert winners(pair_up(completions, verdicts)) == [(2, 3)]
    result = pair_up(completions, verdicts, duplicates="text", strategy="all_pairs")
    assert winners(result) == [(2, 3)] and result.counts["num_duplicate_completions"] == 2
    assert only_outcome(pair_up(completions[:3], verdicts[:3], duplicates="text")) == "duplicates"


def test_the_first_filter_that_leaves_nothing_names_the_outcome_and_every_comparison_is_in_one_count() -> None:
    # 1 > 2 and 3 > 2 are beyond the ratio, as is 0 > 2; 3 > 0 likewise (11 to 8). 1 > 3 has a margin of 1, 1 > 0 of 3.
    options = {"strategy": "length_controlled", "min_margin": 2.0, "min_chosen_score": 5.0}
    result = pair_up(LENGTHS, PLAIN, **options)
    assert only_outcome(result) == "below_min_chosen_score"
    assert Counter({name: result.counts[name] for name in DROPS}) == Counter(
        num_comparisons_beyond_length_ratio=4,
        num_comparisons_below_min_margin=1,
        num_comparisons_below_min_chosen_score=1,
    )
    assert result.counts["num_comparisons"] == math.comb(4, 2)

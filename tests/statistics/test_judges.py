"""What a round's report says of verdicts, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from verdict_kit import answers

from online_dpo.statistics.judge_warnings import warnings
from online_dpo.statistics.judges import Bias, group_reasons, kind_of, report
from online_dpo.types import MemberAgreement, Verdict


def duel(name: str, first: int, second: int, said: float | str) -> Verdict:
    value: dict[str, Any] = {"reason": "x", "abstention": said} if isinstance(said, str) else {"probability": said}
    return Verdict(prompt_id=name, first=first, second=second, **value)


def test_the_test_of_a_bias_is_over_prompts() -> None:
    """Would catch comparisons of one prompt that are counted as if each were evidence of its own."""
    spread = Bias.of({str(i): [True] for i in range(30)} | {str(i): [False] for i in range(30, 40)})
    assert (spread.share, spread.z) == (0.75, pytest.approx((30 - 10) / math.sqrt(40)))
    lumped = Bias.of({"a": [True] * 30, "b": [False] * 10})
    assert (lumped.share, lumped.z) == (0.75, pytest.approx(20 / math.sqrt(900 + 100)))
    assert (spread.num_comparisons, spread.num_prompts, lumped.num_prompts) == (40, 40, 2)
    assert Bias.of({"a": [True, False]}).z == 0.0 and Bias.of({}).share is None


def test_orders_places_and_lengths_by_hand() -> None:
    """Would catch a conflict of orders that counts as consistent or as nothing, and a place read off sample indices."""
    completions = [*answers("p", "a", "bb", "ccc"), *answers("q", "dddd", "e")]
    verdicts = [
        duel("p", 0, 1, 0.9), duel("p", 1, 0, 0.2),  # the same answer both times: first place, then second
        duel("p", 0, 2, "first_place"), duel("p", 2, 0, "first_place"),
        duel("p", 1, 2, 0.5), duel("p", 2, 1, 0.7),  # a tie and a winner
        duel("q", 0, 1, "second_place"), duel("q", 1, 0, "second_place"),
    ]  # fmt: skip
    agreement = {"judge": MemberAgreement(votes={(2, 0, 0): 3})}
    found = report(completions, verdicts, {"num_judge_calls": 8}, agreement=agreement)
    assert (found["order_consistency"], found["num_asked_both_ways"]) == (1 / 4, 4)
    # First places: 0 over 1 won, 1 over 0 lost, both of (0, 2) won, (1, 2) a tie, 2 over 1 won; q lost twice.
    assert (found["first_wins"], found["num_presented"]) == (4 / 7, 7)
    assert found["first_wins_z"] == pytest.approx((3 - 2) / math.sqrt(3**2 + 2**2))
    # Decided are (0, 1), where the shorter wins, and (1, 2), where the longer one does by 0.6.
    assert (found["num_comparisons"], found["num_decided"], found["num_unequal"]) == (4, 2, 2)
    assert (found["longer_wins"], found["num_covered"], found["num_prompts"]) == (0.5, 1, 2)
    assert (found["num_abstained"], found["abstention_rate"]) == (4, 0.5)
    assert found["reasons"] == {"orders disagree": 4}
    assert found["counters"] == {"num_judge_calls": 8} and found["ensembles"] == {"judge": {"alpha": None}}
    assert list(warnings("x", found)) == []


def test_reasons_are_few() -> None:
    def silent(reason: str) -> Verdict:
        return Verdict(prompt_id="p", first=0, reason=reason)

    assert kind_of("failed: TimeoutError: no answer within 2.5 s") == "failed: TimeoutError: no answer within N s"
    assert kind_of("no answer in prompt abc-12: 7") == kind_of("no answer in prompt\n xyz: 912")
    assert len(kind_of("x" * 500)) == 80
    reasons = [silent(f"reason {chr(97 + i)}") for i in range(12) for _ in range(12 - i)]
    found = group_reasons(reasons)
    assert list(found.items())[:2] == [("reason a", 12), ("reason b", 11)] and len(found) == 8
    assert found["other reasons"] == 5 + 4 + 3 + 2 + 1 and sum(found.values()) == len(reasons)
    assert group_reasons([silent(f"reason {chr(97 + i)}") for i in range(8)]).keys() == {
        f"reason {chr(97 + i)}" for i in range(8)
    }


def test_single_completions_have_scores_that_repeat_or_not() -> None:
    completions = [*answers("p", "a"), *answers("q", "b"), *answers("r", "c")]

    def said(*scores: float | None) -> list[Verdict]:
        return [
            Verdict(prompt_id=name, first=0, **({"reason": "hm"} if score is None else {"score": score}))
            for name, score in zip("pqr", scores, strict=True)
        ]

    found = report(completions, said(1.0, 2.0, None), {}, said(1.0 + 1e-9, 2.1, 3.0))
    assert (found["repeat_agreement"], found["num_repeated"]) == (0.5, 2)
    assert not {"num_comparisons", "first_wins", "num_covered"} & found.keys()

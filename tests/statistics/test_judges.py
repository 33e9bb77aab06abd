"""What a round's report says of verdicts, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from verdict_kit import answers

from online_dpo.member_agreement import MemberAgreement
from online_dpo.statistics.judge_warnings import warnings
from online_dpo.statistics.judges import Bias, group_reasons, kind_of, report
from online_dpo.types import Verdict


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


def found_in(verdicts: list[Verdict], num_prompts: int, num_samples: int = 2) -> list[str]:
    texts = [f"answer {i}" for i in range(num_samples)]  # of one length
    return list(warnings("x", report([c for i in range(num_prompts) for c in answers(f"p{i}", *texts)], verdicts, {})))


def scored(num_prompts: int, score: Callable[[int, int], float]) -> list[Verdict]:
    return [Verdict(prompt_id=f"p{n}", first=i, score=score(n, i)) for n in range(num_prompts) for i in range(2)]


def test_a_judge_that_tells_nothing_apart_is_named() -> None:
    constant = found_in(scored(24, lambda n, i: 3.0), 24)
    assert constant == ["judge x gives the same score to all 48 completions, so nothing can be learned from it"]
    ties = found_in(scored(24, lambda n, i: float(n) + (i if n < 2 else 0)), 24)
    assert ties == ["judge x calls 92 % of 24 comparisons ties, which make no pairs"]
    assert found_in([duel(f"p{n}", 0, 1, 0.5) for n in range(20)], 20) == [
        "judge x calls 100 % of 20 comparisons ties, which make no pairs"
    ]
    # A tenth that differs is something, and few comparisons are no evidence.
    assert found_in(scored(20, lambda n, i: float(n) + (i if n % 20 < 2 else 0)), 20) == []
    assert found_in(scored(9, lambda n, i: 3.0), 9) == []
    # One answer to a prompt is no comparison, but the scores are seen.
    alone = [Verdict(prompt_id=f"p{n}", first=0, score=0.0) for n in range(30)]
    assert "the same score to all 30" in found_in(alone, 30, num_samples=1)[0]


def test_an_order_agreement_of_0_is_told_also_of_few_comparisons() -> None:
    def always_first(number: int, share: float = 0.0) -> list[str]:
        return found_in(
            [duel(f"p{n}", i, 1 - i, 0.9 if n >= share * number or i == 0 else 0.1)
             for n in range(number) for i in (0, 1)],
            number,
        )  # fmt: skip

    # Of 5 comparisons a judge of consistency 0.8 gets none alike once in 3125 times, of 4 once in 625.
    assert always_first(5) == [
        "judge x is inconsistent: asked in both orders, it gives the same answer to 0 % of 5 comparisons"
    ]
    assert always_first(4) == []
    assert len(always_first(19, share=0.5)) == 1 and always_first(19, share=0.7) == []
    place, ties, both = sorted(always_first(5000), key=lambda text: "prefers" not in text)
    assert "prefers the first place: what is shown first wins 100 % of 10000 comparisons" in place
    assert "0 % of 5000" in both and "100 % of 5000 comparisons ties" in ties
    alternating = found_in(
        [duel(f"p{n}", i, 1 - i, 0.9 if n % 2 else 0.1) for n in range(40) for i in (0, 1)], 40
    )  # now the first place, now the second: no place is preferred
    assert [text.split(":")[0] for text in alternating] == [
        "judge x calls 100 % of 40 comparisons ties, which make no pairs",
        "judge x is inconsistent",
    ]


def test_calls_that_fail_are_told_before_they_are_half() -> None:
    def failing(number: int, of: int = 100) -> list[str]:
        nan = "JudgeError: returned nan for completion 0 of prompt p; return a finite number"
        return found_in(
            [Verdict(prompt_id=f"p{n}", first=0, reason=nan, abstention="failed") for n in range(number)]
            + [Verdict(prompt_id=f"p{n}", first=0, score=float(n)) for n in range(number, of)],
            of,
            num_samples=1,
        )

    [told] = failing(12)
    assert told.startswith(
        "judge x fails on 12 % of its verdicts: 12 x failed: JudgeError: returned nan for completion"
    )
    assert failing(5) == []
    assert failing(98)[0].startswith(
        "judge x abstains from 98 % of its verdicts: 98 x failed: JudgeError: returned nan"
    )

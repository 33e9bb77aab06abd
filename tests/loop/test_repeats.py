"""Which prompts a judge is asked about a second time."""

from __future__ import annotations

from online_dpo.loop.verdicts import asked_again


def test_prompts_are_drawn_for_a_repeat_by_share() -> None:
    names = [f"prompt {i}" for i in range(2000)]
    few, many = (asked_again(share, names, 1, 3, "reward") for share in (0.1, 0.3))
    assert few < many and 150 < len(few) < 250 and 520 < len(many) < 680
    assert few != asked_again(0.1, names, 1, 4, "reward") and few != asked_again(0.1, names, 2, 3, "reward")
    assert asked_again(0.0, names, 1, 3, "reward") == frozenset() and len(asked_again(1.0, names, 1, 3, "x")) == 2000

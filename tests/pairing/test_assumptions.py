"""`assume: better`: what is paired without a judge's opinion, and what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from config_kit import BASE
from pairing_kit import completion, prompt, scores

from online_dpo.config.loading import load_config
from online_dpo.pairing.selection import Selected, select
from online_dpo.types import Completion, Pair, Verdict


def written(index: int, text: str, tokens: tuple[int, ...] | None = None, *, source: str = "column") -> Completion:
    sample = completion(index, text=text, tokens=tokens)
    return replace(sample, sampler_logps=None, policy_version=None, seed=None, source=source)


def selected(answers: list[Completion], said: list[Verdict], *more: dict[str, Any], **sections: Any) -> Selected:
    column = {"type": "column", "column": "answer", "assume": "better"}
    config = load_config({**BASE, "candidates": [column, *more], **sections})
    return select(config, [prompt()], answers, said, 0)


def sides(found: Selected) -> list[tuple[int, int, bool]]:
    """Chosen, rejected, and whether a judge said so."""
    pairs = [item for item in found.items if isinstance(item, Pair)]
    return sorted((pair.chosen.sample_index, pair.rejected.sample_index, pair.margin is not None) for pair in pairs)


SAMPLES = [completion(0, text="a"), completion(1, text="b"), completion(2, text="c")]


def test_a_strategy_takes_assumed_answers_like_others() -> None:
    answers, said = [*SAMPLES, written(3, "right")], scores(2.0, 0.0, 1.0)
    assert sides(selected(answers, said)) == [(3, 1, False)]
    every = selected(answers, said, pairing={"strategy": "all_pairs"})
    assert sides(every) == [(0, 1, True), (0, 2, True), (2, 1, True), (3, 0, False), (3, 1, False), (3, 2, False)]
    assert every.counts["num_assumed_pairs"] == 3 and every.counts["num_pairs"] == 6
    assert every.counts["num_comparisons"] == 6, "nothing is counted twice"


def test_what_says_the_same_as_a_sample_makes_no_pair_with_it() -> None:
    """The same tokens, or other tokens of the same text: a pair of them would teach nothing that can be read."""
    for same in (written(3, "b", SAMPLES[1].token_ids), written(3, " b\n", (7, 8))):
        found = selected([*SAMPLES, same], scores(2.0, 0.0, 1.0), pairing={"strategy": "all_pairs"})
        assert (3, 1, False) not in sides(found) and found.counts["num_candidates_like_a_sample"] == 1
    alone = selected([SAMPLES[1], written(3, "b", (7, 8))], [], judge=None, sampling={"num_samples": 1})
    assert not alone.items and alone.outcomes["abstained"] == 1


def test_nobody_is_compared_with_nobody() -> None:
    """Two assumed answers have no order between them, and a sample that the judge abstained on makes no pair."""
    teacher = {"type": "column", "column": "other", "name": "other", "assume": "better"}
    answers = [*SAMPLES, written(3, "right"), written(4, "also right", source="other")]
    found = selected(answers, scores(2.0, "cannot tell", 1.0), teacher, pairing={"strategy": "all_pairs"})
    assert sides(found) == [(0, 2, True), (3, 0, False), (3, 2, False), (4, 0, False), (4, 2, False)]
    unjudged = selected(answers, [], teacher, judge=None)
    assert sides(unjudged) == [(3, 0, False)] and unjudged.outcomes["paired"] == 1

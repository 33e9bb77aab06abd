"""The section of a human judge: what goes with what, and why the rest is refused before anybody is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from online_dpo.commands.preparing.inputs import peek_sources
from online_dpo.config.loading import load_config
from online_dpo.errors import ConfigError, DataError
from online_dpo.loop.people.opening import gold_questions, rules_of

BASE: dict[str, Any] = {
    "model": {"path": "m"},
    "prompts": {"source": "prompts.jsonl"},
    "judge": {"type": "human"},
}
MODEL = "judge={type: python, target: a:b}"
SETS = "evaluation.sets={heldout: {source: h.jsonl, count: 4}}"
PEOPLE = "evaluation.judges={people: {type: human}}"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["judge.annotators=3", "judge.consensus=dawid_skene", "judge.disagreement=soft", "judge.wait=false"],
        ["judge.max_comparisons=3", "sampling.num_samples=6"],
        ["overlap=1", "judge.wait=false"],
        ["layout=colocated"],
        [MODEL, "pairing={strategy: uncertain, budget: 4, annotator: {type: human}}"],
        [SETS, PEOPLE, "verdicts.repeated=0.1", "evaluation.judges.model={type: python, target: a:b}"],
        [SETS, PEOPLE, "alarm.over_optimisation=auto"],
        ["objective.type=kto"],  # both answers of a pair need no score
    ],
)
def test_what_goes_together(overrides: list[str]) -> None:
    load_config(BASE, overrides)


OTHERS = "no other judge waits for them: make them the judge itself, pairing.annotator or one of evaluation.judges"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["judge={type: cached, judge: {type: human}}"], OTHERS),
        (["judge={type: length_penalty, rate: 0.1, judge: {type: human}}"], OTHERS),
        (["judge={type: ensemble, judges: {a: {type: human}, b: {type: python, target: a:b}}}"], OTHERS),
        (["pairing.min_chosen_score=1"], "pairing.min_chosen_score is 1.0, which reads scores of single answers"),
        (
            ["objective.type=kto", "pairing.labels.type=quantile"],
            "reads scores of single answers, but judge.type human",
        ),
        (["pairing.annotator={type: human}"], "judge.type and pairing.annotator.type are both human"),
        (["judge.max_comparisons=1", "sampling.num_samples=4"], "set max_comparisons to 2 or more, or sample fewer"),
        (
            [SETS, PEOPLE, "evaluation.judges.people.max_comparisons=1"],
            "compares two answers of each prompt: remove it",
        ),
        (
            [SETS, PEOPLE, "judge.annotators=3"],
            "judge.annotators is 3 and evaluation.judges.people.annotators is 1; the",
        ),
        ([SETS, PEOPLE, "judge.quality.min_checks=3"], "give both the same quality"),
        (["verdicts.repeated=0.1"], "is seen by quality.repeat_share: set verdicts.repeated to 0"),
        ([SETS, PEOPLE, "alarm.over_optimisation=true"], "compares scores, and judge is human"),
        ([SETS, PEOPLE, MODEL, "alarm.over_optimisation=true"], "compares scores, and evaluation.judges is human"),
        (["judge.criteria=[fit, fit]"], "criteria has 'fit' twice"),
        (["judge.quality={gold_share: 0.4, repeat_share: 0.2}"], "together they take more than half of what people"),
        (["judge.timeout_s=3"], "judge.timeout_s is not a known key; known here: annotators"),
        (["judge.retries=3"], "judge.retries is not a known key"),
    ],
)
def test_what_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(BASE, overrides)
    assert message in str(refused.value)


def test_gold_questions_hide_their_answer_and_every_rule_arrives(tmp_path: Path) -> None:
    rows = "".join(f'{{"prompt": "p{i}", "chosen": "good {i}", "rejected": "bad {i}"}}\n' for i in range(40))
    (tmp_path / "gold.jsonl").write_text(rows)
    quality = {"gold": str(tmp_path / "gold.jsonl"), "gold_share": 0.3, "repeat_share": 0.2, "min_seconds": 2.0}
    quality |= {"min_accuracy": 0.9, "min_consistency": 0.8, "min_checks": 5}
    section = {"type": "human", "annotators": 4, "lease_s": 7.0, "criteria": ["fit"], "instructions": "Do!", "seed": 3}
    config = load_config({**BASE, "judge": {**section, "quality": quality}})
    found = gold_questions(config.judge, "judge")
    assert all((q.first_text if q.answer == "first" else q.second_text).startswith("good") for q in found)
    assert 10 < sum(q.answer == "first" for q in found) < 30
    rules = rules_of(config.judge)
    names = {name: getattr(rules, name) for name in ("gold_share", "repeat_share", "min_seconds", "min_accuracy")}
    assert names == {name: quality[name] for name in names}
    assert (rules.min_consistency, rules.min_checks, rules.votes_per_question, rules.lease_s) == (0.8, 5, 4, 7.0)
    assert (rules.criteria, rules.instructions, rules.seed) == (("fit",), "Do!", 3)


def test_gold_questions_that_cannot_be_read_are_found_before_a_run_starts(tmp_path: Path) -> None:
    file = tmp_path / "gold.jsonl"
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "p"}\n')
    judge = {"type": "human", "quality": {"gold": str(file)}}
    config = load_config({**BASE, "judge": judge, "prompts": {"source": str(tmp_path / "prompts.jsonl")}})
    with pytest.raises(DataError, match=r"judge\.quality\.gold"):
        peek_sources(config)
    file.write_text('{"prompt": "p", "chosen": "same", "rejected": "same"}\n')
    with pytest.raises(DataError, match="two equal answers"):
        gold_questions(config.judge, "judge")

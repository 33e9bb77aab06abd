"""The `pairing` section: what goes with what, and why the rest is refused before a run starts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from judges.registry import build_caller, make_spec
from judges.trial import try_judges
from online_dpo.config.judges.hosted import PythonJudge
from online_dpo.config.loading import dump_config, load_config
from online_dpo.config.pairing import PairingSection
from online_dpo.errors import ConfigError, JudgeError

BASE: dict[str, Any] = {
    "model": {"path": "m"},
    "prompts": {"source": "prompts.jsonl"},
    "judge": {"type": "python", "target": "judge.py:score"},
}
KTO, THRESHOLD = "objective.type=kto", "pairing.labels={type: threshold, value: 0.5}"
COMPARES = ["judge={type: llm, endpoint: {base_url: 'http://localhost/v1', model: m}}"]
ANNOTATOR = "pairing.annotator={type: python, target: b:c}"
TWO = "judges: {a: {type: python, target: a:b}, b: {type: python, target: a:b}}"
VOTES = [f"judge={{type: ensemble, aggregate: majority, {TWO}}}"]
WRAPPED = [f"judge={{type: length_penalty, rate: 0.1, judge: {COMPARES[0].removeprefix('judge=')}}}"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["pairing.strategy=length_controlled"],
        ["pairing.strategy=length_controlled", "pairing.max_length_ratio=2.0", "pairing.near_duplicate=0.9"],
        ["pairing.strategy=all_pairs", "pairing.max_pairs_per_prompt=2", "pairing.duplicates=text"],
        ["pairing.strategy=uncertain", "pairing.budget=16", "pairing.min_chosen_score=-1"],
        ["pairing.strategy=min_margin", "pairing.min_margin=0.5"],
        [KTO, THRESHOLD, "pairing.duplicates=text"],
        [KTO, "pairing.labels.type=quantile"],
        ["pairing.strategy=uncertain", "pairing.budget=16", "pairing.annotator={type: python, target: b:c}"],
        [KTO, *COMPARES],  # both answers of pairs need no score
        [*COMPARES, "judge.form=pointwise", "pairing.min_chosen_score=5"],
    ],
)
def test_what_goes_together(overrides: list[str]) -> None:
    config = load_config(BASE, overrides)
    assert load_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pairing.strategy=best"], "pairing.strategy is \"best\"; it must be 'best_vs_worst', 'best_vs_second'"),
        (
            ["pairing.max_length_ratio=2.0"],
            "pairing.max_length_ratio is 2.0, but pairing.strategy is best_vs_worst, which takes pairs of any lengths: "
            "set strategy to length_controlled, or remove max_length_ratio",
        ),
        (
            ["pairing.strategy=random", "pairing.max_pairs_per_prompt=2"],
            "which takes one pair per prompt: set strategy to all_pairs, or remove max_pairs_per_prompt",
        ),
        (
            ["pairing.strategy=min_margin", "pairing.budget=2"],
            "which does not rank prompts: set strategy to uncertain, or remove budget",
        ),
        (["pairing.near_duplicate=1.5"], "pairing.near_duplicate is 1.5; it must be less than or equal to 1"),
        (
            [KTO, THRESHOLD, "pairing.strategy=random"],
            "pairing.strategy is random, but pairing.labels is set, which labels every answer by its own score and "
            "pairs none: remove one of the two",
        ),
        ([KTO, THRESHOLD, "pairing.budget=3"], "pairing.budget is 3, but pairing.labels is set"),
        ([KTO, THRESHOLD, "pairing.near_duplicate=0.5"], "pairing.near_duplicate is 0.5, but pairing.labels is set"),
        (
            [THRESHOLD],
            "pairing.labels is set, but objective.type is sigmoid, which compares two answers: set objective.type to "
            "kto, or remove pairing.labels",
        ),
        ([KTO, "pairing.labels.type=threshold"], "pairing.labels.value is missing"),
        ([KTO, "pairing.labels={type: quantile, share: 0.6}"], "pairing.labels.share is 0.6; it must be less than"),
        ([KTO, "pairing.labels={type: quantile, value: 1}"], "pairing.labels.value is not a known key"),
        (
            ["pairing.strategy=all_pairs", ANNOTATOR],
            "pairing.annotator is set, but pairing.strategy is all_pairs, which would ask it about every pair: set",
        ),
        ([KTO, THRESHOLD, ANNOTATOR], "pairing.annotator is set, but pairing.labels is set, which labels every answer"),
        (
            [ANNOTATOR, "evaluation.judges.annotator={type: python, target: a:b}"],
            "evaluation.judges has a judge named annotator; with pairing.annotator that name is taken: choose another",
        ),
        (["pairing.annotator={type: python}"], "pairing.annotator.target is missing"),
        (
            [*COMPARES, "pairing.min_chosen_score=0.5"],
            "pairing.min_chosen_score is 0.5, which reads scores of single answers, but judge.type llm as it is set "
            "only compares two: remove pairing.min_chosen_score, or take a judge that scores",
        ),
        ([*COMPARES, KTO, THRESHOLD], "pairing.labels.type is threshold, which reads scores of single answers, but"),
        ([*VOTES, "pairing.min_chosen_score=0.5"], "but judge.type ensemble as it is set only compares two"),
        ([*WRAPPED, "pairing.min_chosen_score=0.5"], "but judge.type length_penalty as it is set only compares two"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason_and_the_remedy(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(BASE, overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_trial_finds_a_judge_of_ours_or_yours_that_only_compares(tmp_path: Path) -> None:
    """Before any engine starts; a config cannot tell what a class does."""
    (tmp_path / "mine.py").write_text(
        "class Longer:\n"
        "    def compare(self, prompt, a, b):\n"
        "        return 'a' if len(a) > len(b) else 'b'\n"
        "def length(prompt, completion):\n"
        "    return len(completion)\n"
    )

    def tried(name: str, rules: PairingSection) -> None:
        section = PythonJudge(type="python", target=f"mine.py:{name}", threads=1)
        caller = build_caller(make_spec(section, field="judge", base_dir=tmp_path))
        asyncio.run(try_judges(caller, chat=False, rules=rules))

    scoring = PairingSection(min_chosen_score=0.5)
    with pytest.raises(JudgeError) as error:
        tried("Longer", scoring)
    assert str(error.value).startswith(
        "pairing.min_chosen_score is 0.5, which reads scores of single answers, but judge.target mine.py:Longer only "
        "compares two: remove"
    )
    tried("Longer", PairingSection())
    tried("length", scoring)

"""The `pairs` section: what goes with what, and why the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest

from online_dpo.config_loading import load_config
from online_dpo.errors import ConfigError

ALONE: dict[str, Any] = {"model": {"path": "m"}, "pairs": {"source": "pairs.jsonl"}}
ONLINE: dict[str, Any] = {
    "model": {"path": "m"},
    "prompts": {"source": "prompts.jsonl"},
    "judge": {"type": "python", "target": "judge.py:score"},
}
JUDGE = ["judge.type=python", "judge.target=a:b"]
SETS = ["evaluation.sets.h.source=h.jsonl"]


@pytest.mark.parametrize(
    ("base", "overrides"),
    [
        (ALONE, []),
        (ALONE, ["pairs.per_round=64", "objective.type=kto", "pairs.format=labelled", "pairs.label=good"]),
        (ALONE, [*SETS, "evaluation.judges.gold.type=python", "evaluation.judges.gold.target=a:b"]),
        (ALONE, [*SETS, "sampling.max_tokens=8", "pairs.chat_template_kwargs.enable_thinking=false"]),
        (ALONE, ["objective.type=kto", "evaluation.pairs.people.source=h.jsonl"]),
        (ONLINE, ["pairs.source=p", "pairs.warm_start_rounds=2", "pairs.per_round=64"]),
        (ONLINE, ["pairs.source=p", "pairs.fraction=0.25", "objective.type=kto"]),
        (ONLINE, ["pairs.source=p", "pairs.fraction=0.25", "pairs.warm_start_rounds=1", "pairs.per_round=64"]),
        (ONLINE, ["evaluation.pairs.people.source=h.jsonl"]),
    ],
)
def test_what_goes_together(base: dict[str, Any], overrides: list[str]) -> None:
    load_config(base, overrides)


@pytest.mark.parametrize(
    ("base", "overrides", "message"),
    [
        (
            {"model": {"path": "m"}},
            [],
            "prompts and judge are missing; they have no default, so set both, or set pairs",
        ),
        (
            {"model": {"path": "m"}},
            ["prompts.source=p"],
            "judge is missing; it has no default, so set it",
        ),
        (ALONE, ["prompts.source=p"], "prompts is set, but pairs has neither warm_start_rounds nor fraction"),
        (ALONE, JUDGE, "judge is set, but pairs has neither warm_start_rounds nor fraction"),
        (ALONE, JUDGE, "goes under evaluation.judges"),
        (ALONE, ["pairing.strategy=random"], "pairing is set, but"),
        (ALONE, ["sampling.max_tokens=8"], "sampling.max_tokens is 8, but"),
        (ALONE, [*SETS, "sampling.num_samples=2"], "evaluation samples are drawn at temperature 1, one per prompt"),
        (ALONE, ["evaluation.judges.g.type=python", "evaluation.judges.g.target=a:b"], "there is no sample to judge"),
        (
            ALONE,
            ["pairs.warm_start_rounds=1"],
            "pairs.warm_start_rounds is 1, which leaves rounds that sample and judge, ",
        ),
        (ALONE, ["pairs.fraction=0.5", "prompts.source=p"], "but judge is missing: set it, or remove pairs.fraction"),
        (ONLINE, ["pairs.source=p", "pairs.warm_start_rounds=5"], "leaves no online round: raise run.rounds, or"),
        (ONLINE, ["pairs.source=p", "pairs.fraction=0.5", "pairs.per_round=8"], "remove per_round, or set warm_start"),
        (
            ONLINE,
            ["pairs.source=p", "pairs.fraction=0.5", "pairs.chat_template_kwargs.x=1"],
            "use prompts.chat_template_kwargs, which holds for pairs as well",
        ),
        (ALONE, ["pairs.fraction=1.0"], "pairs.fraction is 1.0; it must be less than 1"),
        (
            ALONE,
            ["pairs.label=good"],
            "pairs.label is good, but pairs.format is pairs, which has no such column: set it to la",
        ),
        (
            ALONE,
            ["pairs.format=labelled", "objective.type=kto", "pairs.chosen=a"],
            "set it to pairs, or remove pairs.chosen",
        ),
        (ALONE, ["pairs.format=labelled"], "objective.type is sigmoid, which compares two answers; set objective.type"),
        (ALONE, ["objective.soft_labels=true"], "objective.soft_labels is True, which reads what a judge says"),
        (
            ALONE,
            ["objective={type: sum, terms: [{objective: {type: ipo, pair_weights: margin}}]}"],
            "objective.pair_weights is margin, which reads what a judge says",
        ),
    ],
)
def test_nonsense_is_refused_with_the_reason_and_the_remedy(
    base: dict[str, Any], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(base, overrides)
    assert message in str(error.value) and "\n" not in str(error.value)
